"""What the recipe recorded beside the images it made: measurements, and the digest of everything that went in.

The tests compare it with the images and with the tree, so nobody can change a source and forget to make the image
again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from enclavedbg.eif.measure import measure
from enclavedbg.eif.reader import read_eif

from .images import DATA, RECIPE_VERSION, Parts
from .kernel import SOURCE, TARBALL, TARBALL_SHA256
from .programs import HEADERS, PROGRAMS, SOURCE_DIRECTORY, Toolchain

RECORD = DATA / "measurements.json"
GUEST = SOURCE_DIRECTORY.parent


def input_digests() -> dict[str, str]:
    """Return the SHA-256 of every file of the tree that an image is made of, by its path from the project's top."""
    sources = sorted({file for name in PROGRAMS for file in PROGRAMS[name] + HEADERS[name]})
    paths = [GUEST / "kernel.config", GUEST / "kernel.fragment", *(SOURCE_DIRECTORY / file for file in sources)]
    return {f"guest/{path.relative_to(GUEST)}": digest(path.read_bytes()) for path in paths}


def digest(data: bytes) -> str:
    """Return the SHA-256 as lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def make_record(demo: bytes, parts: Parts, *, stress: bytes, nsm_check: bytes, tools: Toolchain) -> dict[str, object]:
    """Return the record of a demo image, and of the programs that go with it."""
    values = measure(read_eif(demo))
    return {
        "image": "demo.eif",
        "size": len(demo),
        "sha256": digest(demo),
        "PCR0": values.pcr0.hex(),
        "PCR1": values.pcr1.hex(),
        "PCR2": values.pcr2.hex(),
        "kernel_release": parts.kernel_release,
        "recipe_version": RECIPE_VERSION,
        "kernel_source": {
            "package": SOURCE.name,
            "version": SOURCE.version,
            "package_sha256": SOURCE.sha256,
            "tarball": Path(TARBALL).name,
            "tarball_sha256": TARBALL_SHA256,
        },
        "toolchain": asdict(tools),
        "inputs": input_digests(),
        "built": {
            "demo-bzImage": digest(parts.kernel),
            "lkdtm.ko": digest(parts.crash_module),
            "init": digest(parts.init),
            "demo": digest(parts.demo),
            "stress": digest(stress),
            "nsm-check": digest(nsm_check),
        },
    }


def write_record(record: dict[str, object], path: Path = RECORD) -> None:
    """Write the record as JSON that a person can read."""
    path.write_text(json.dumps(record, indent=2) + "\n")


def read_record(path: Path = RECORD) -> dict[str, object]:
    """Return the packaged record."""
    record: dict[str, object] = json.loads(path.read_text())
    return record
