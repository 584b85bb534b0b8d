"""The Enclave Image Format: read, check, measure, write."""
