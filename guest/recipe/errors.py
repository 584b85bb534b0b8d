"""What goes wrong while an image is made."""

from __future__ import annotations

from enclavedbg.errors import EnclaveDbgError


class RecipeError(EnclaveDbgError):
    """An image cannot be made; the message is one line with what is missing and what to do."""


class FetchError(RecipeError):
    """A package could not be had: no apt, no network, or it is no longer on the mirror."""
