"""Makes the files in seeds/: `python -m tests.fuzz.seeds`. Small ones, so that a mutation has something to hit."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
from pathlib import Path

import zstandard

from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.reader import read_eif
from enclavedbg.eif.writer import assemble
from tests.eif.test_compression import lz4_legacy

VECTORS = Path(__file__).parents[1] / "eif" / "vectors"
FIRST = write_newc(
    [
        CpioEntry("dev", stat.S_IFDIR | 0o755),
        CpioEntry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1)),
        CpioEntry("init", stat.S_IFREG | 0o755, b"\x7fELF, more or less"),
    ]
)
SECOND = write_newc(
    [
        CpioEntry("cmd", stat.S_IFREG | 0o644, b"/app\n"),
        CpioEntry("env", stat.S_IFREG | 0o644, b"A=b\n"),
        CpioEntry("rootfs", stat.S_IFDIR | 0o755),
        CpioEntry("rootfs/app", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        CpioEntry("rootfs/link", stat.S_IFLNK | 0o777, b"../../etc/passwd"),
        CpioEntry("rootfs/../up", stat.S_IFREG | 0o644, b"out"),
    ]
)


def ramdisks() -> dict[str, bytes]:
    """Each compression, and several archives behind each other."""
    return {
        "plain": FIRST,
        "gzip": gzip.compress(SECOND, mtime=0),
        "xz": lzma.compress(SECOND, check=lzma.CHECK_CRC32),
        "lzma": lzma.compress(SECOND, format=lzma.FORMAT_ALONE),
        "bzip2": bz2.compress(SECOND),
        "zstd": zstandard.ZstdCompressor().compress(SECOND),
        "lz4": lz4_legacy(SECOND),
        "two": FIRST + bytes(64) + SECOND,
        "mixed": FIRST + gzip.compress(SECOND, mtime=0) + bytes(3) + gzip.compress(FIRST, mtime=0),
    }


def images() -> dict[str, bytes]:
    """The vectors, and images whose ramdisks can be listed."""
    found = {path.stem: path.read_bytes() for path in sorted(VECTORS.glob("*.eif"))}
    for name, second in ramdisks().items():
        found[f"files-{name}"] = assemble([(1, b"K"), (2, b"console=ttyS0"), (5, b"null"), (3, FIRST), (3, second)])
    return found


def signatures() -> dict[str, bytes]:
    """The Signature sections of the vectors."""
    found = {}
    for path in sorted(VECTORS.glob("*.eif")):
        if (section := read_eif(path).signature) is not None:
            found[path.stem] = section
    return found


def main() -> None:
    """Write all of them."""
    for target, made in (("image", images()), ("ramdisk", ramdisks()), ("signature", signatures())):
        folder = Path(__file__).with_name("seeds") / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in made.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
