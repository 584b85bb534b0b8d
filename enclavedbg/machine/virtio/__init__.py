"""virtio over memory-mapped registers, and the two devices of an enclave."""
