"""Debian's own 6.12 cloud kernel for the tests: fetched once with apt, or the reason why it cannot be had."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from recipe.debian import debian_image, fetch_kernel
from recipe.errors import RecipeError


@functools.cache
def _package() -> Path | str:
    try:
        return fetch_kernel()
    except (RecipeError, OSError) as error:
        return str(error)


@functools.cache
def debian_eif(program: str, *arguments: str) -> bytes:
    """An EIF around the kernel with the program `demo` or `stress`; skips the test where apt cannot fetch it."""
    package = _package()
    if isinstance(package, str):
        pytest.skip(f"Debian's kernel cannot be fetched: {package}")
    return debian_image(package, program=program, arguments=arguments)
