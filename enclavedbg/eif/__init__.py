"""The Enclave Image Format: read, check, measure, write."""

from __future__ import annotations

from enclavedbg.eif.writer import write_eif

__all__ = ["write_eif"]
