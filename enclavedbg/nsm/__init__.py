"""The Nitro Secure Module: messages, PCR bank, attestation, development authority."""
