"""The enclave machine: memory, CPU, bus, devices, firmware."""
