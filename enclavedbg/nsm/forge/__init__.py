"""Documents that a verifier must refuse, each for one known reason, to test a verifier with."""

from __future__ import annotations

from enclavedbg.nsm.forge.catalogue import FORGERIES, GENUINE, Forgery, forge
from enclavedbg.nsm.forge.original import Claims, Original

__all__ = ["FORGERIES", "GENUINE", "Claims", "Forgery", "Original", "forge"]
