"""enclavedbg: run an AWS Nitro Enclave image on a machine of its own, and debug it."""

from __future__ import annotations

__version__ = "0.1.0"
