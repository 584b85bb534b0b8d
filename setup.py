"""The one part that setuptools cannot learn from pyproject.toml everywhere: the optional C library."""

import sys
from pathlib import Path

from setuptools import Extension, setup

FOLDER = "enclavedbg/machine/cpu/soft"
SOURCES = [f"{FOLDER}/{name}.c" for name in ("native", "native_memory", "native_stops")]

# A plain shared library, no Python module: it needs a C compiler, but no Python headers. Interposition works on
# Linux alone (native.c says why); where it does not, or where no compiler is, the package runs without it.
extensions = []
if sys.platform == "linux" and all(Path(source).exists() for source in SOURCES):
    extensions.append(
        Extension(
            "enclavedbg.machine.cpu.soft._native",
            SOURCES,
            depends=[f"{FOLDER}/native.h"],
            libraries=["dl"],
            optional=True,
        )
    )

setup(ext_modules=extensions)
