"""The host side of the enclave's socket: connections, endpoints, parent services, trace."""
