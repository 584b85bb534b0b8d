"""Images: measuring one of 1 GiB against bare SHA-384, listing a large gzip ramdisk against zlib alone."""

from __future__ import annotations

import random
import re
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from benchmarks.harness import Context, Sample
from benchmarks.process import Failed
from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.format import (
    DEFAULT_CPUS,
    DEFAULT_MEMORY,
    HEADER_SIZE,
    SECTION_HEADER,
    EifHeader,
    SectionType,
)

MIB = 1 << 20
_TIME = "the whole command"
_MEMORY = "most memory resident"
_BARE = "SHA-384 of 1 GiB"
_ZLIB = "zlib alone"
_RATIO = 1.25
"""Of times; 0.8 of the speed."""
_MEMORY_TARGET = 64e6
_PIECE = 256 << 10
_GZIP_SIZE = 300 * MIB

# The command in a process of its own, which then says the most memory that it has had. Not wait4: its figure begins
# with the memory of the process that started it.
_COMMAND = """
import sys
from enclavedbg.cli import main
status = main(sys.argv[1:])
sys.stdout.flush()
print(open("/proc/self/status").read(), file=sys.stderr)
sys.exit(status)
"""

_BARE_COMMAND = """
import hashlib
block, digest = bytes(1 << 20), hashlib.sha384()
for _ in range(1024):
    digest.update(block)
digest.digest()
"""


def measure(context: Context) -> None:
    """`eif measure` of 1 GiB, page cache warm, in turns with a Python that only hashes as many bytes."""
    block = random.Random(1).randbytes(MIB)
    one, two = context.folder / "one.eif", context.folder / "two.eif"
    context.progress.say("writing two images of 1 GiB")
    _write(one, [(SectionType.KERNEL, 8 * MIB), (SectionType.RAMDISK, 1016 * MIB)], block)
    _write(two, [(SectionType.KERNEL, 8 * MIB), (SectionType.RAMDISK, MIB), (SectionType.RAMDISK, 1015 * MIB)], block)

    def bare() -> Sample:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _BARE_COMMAND], check=True)
        return {_TIME: time.perf_counter() - began}

    sides = {"one ramdisk": _command("measure", one), "two ramdisks": _command("measure", two), _BARE: bare}
    samples = context.in_turns(sides, rounds=7)
    context.add(samples, _TIME)
    for side in ("one ramdisk", "two ramdisks"):
        context.report.ratio(_TIME, side, _BARE, target=_RATIO)
    context.add(samples, _MEMORY, unit="B", targets=dict.fromkeys(sides, _MEMORY_TARGET))
    context.report.note("what is in a second ramdisk is hashed twice, into PCR0 and PCR2: it needs a second idle core")


def listing(context: Context) -> None:
    """`eif ls -R` of an image whose ramdisk is 300 MB of gzip, in turns with zlib unpacking it to nowhere."""
    image = context.folder / "gzip.eif"
    context.progress.say("compressing 300 MB")
    ramdisk = context.folder / "ramdisk.gz"
    unpacked = _write_gzip(ramdisk)
    with ramdisk.open("rb") as file:
        pieces = chain([bytes(MIB)], iter(lambda: file.read(MIB), b""))
        _write_sections(image, [(SectionType.KERNEL, MIB), (SectionType.RAMDISK, ramdisk.stat().st_size)], pieces)

    def alone() -> Sample:
        began = time.perf_counter()
        inflate = zlib.decompressobj(wbits=31)
        total = 0
        with ramdisk.open("rb") as file:
            while piece := file.read(_PIECE):
                total += len(inflate.decompress(piece))
                while inflate.unconsumed_tail:
                    total += len(inflate.decompress(inflate.unconsumed_tail, MIB))
        if total != unpacked:
            raise Failed(f"zlib unpacked {total} bytes of {unpacked}")
        return {_TIME: time.perf_counter() - began}

    sides = {"eif ls -R": _command("ls", image, "-R"), _ZLIB: alone}
    samples = context.in_turns(sides, rounds=5)
    context.add(samples, _TIME)
    context.report.ratio(_TIME, "eif ls -R", _ZLIB, target=_RATIO)
    context.add(samples, _MEMORY, unit="B")
    context.report.note(f"{ramdisk.stat().st_size} bytes of gzip, {unpacked} unpacked")


def _command(verb: str, *arguments: str | Path) -> Callable[[], Sample]:
    def run() -> Sample:
        command = [sys.executable, "-c", _COMMAND, "eif", verb, *map(str, arguments)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode:
            raise Failed(f"eif {verb} failed: {done.stderr.splitlines()[0]}")
        sample = {_TIME: took}
        if found := re.search(r"^VmHWM:\s+([0-9]+) kB", done.stderr, re.MULTILINE):
            sample[_MEMORY] = int(found[1]) * 1024.0
        return sample

    return run


def _write(path: Path, parts: list[tuple[SectionType, int]], block: bytes) -> None:
    """An image whose sections repeat `block`, of whole blocks each."""
    _write_sections(path, parts, (block for _ in range(sum(size for _, size in parts) // len(block))))


def _write_sections(path: Path, parts: list[tuple[SectionType, int]], data: Iterable[bytes]) -> None:
    """An image of `parts` (and an empty command line) from pieces; for sections but the last of whole MiB."""
    parts = [*parts[:1], (SectionType.CMDLINE, 0), *parts[1:]]
    offsets, position = [], HEADER_SIZE
    for _, size in parts:
        offsets.append(position)
        position += SECTION_HEADER.size + size
    header = EifHeader(
        version=3,
        flags=0,
        default_memory=DEFAULT_MEMORY,
        default_cpus=DEFAULT_CPUS,
        offsets=tuple(offsets),
        sizes=tuple(size for _, size in parts),
        crc32=0,
    ).pack()[:-4]
    crc = zlib.crc32(header)
    pieces = iter(data)
    with path.open("wb") as file:
        file.write(header + bytes(4))
        for kind, size in parts:
            start = SECTION_HEADER.pack(kind, 0, size)
            crc = zlib.crc32(start, crc)
            file.write(start)
            while size:
                piece = next(pieces)
                crc = zlib.crc32(piece, crc)
                file.write(piece)
                size -= len(piece)
        file.seek(len(header))
        file.write(crc.to_bytes(4, "big"))


def _write_gzip(path: Path) -> int:
    """A cpio archive of files of 1 MiB each as 300 MB of gzip, at level 6; its size unpacked.

    All files are alike and compressed once. The flush after each piece makes it stand by itself, so that pieces can
    be put behind each other; what unpacks them sees a stream like any other.
    """
    dice = random.Random(2)
    words = [dice.randbytes(dice.randint(2, 9)) for _ in range(4096)]
    content = b"".join(dice.choices(words, k=220_000))[:MIB]
    packed, end = _deflated(content), write_newc([])
    crc = unpacked = number = 0
    with path.open("wb") as file:
        file.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")
        while file.tell() < _GZIP_SIZE:
            # Neither contents nor the closing entry, which each call writes.
            entry = CpioEntry(f"file{number:04}", stat.S_IFREG | 0o644, content)
            head = write_newc([entry])[: -len(content) - len(end)]
            file.write(_deflated(head) + packed)
            crc = zlib.crc32(content, zlib.crc32(head, crc))
            unpacked += len(head) + len(content)
            number += 1
        crc, unpacked = zlib.crc32(end, crc), unpacked + len(end)
        file.write(_deflated(end, flush=zlib.Z_FINISH) + struct.pack("<II", crc, unpacked & 0xFFFFFFFF))
    return unpacked


def _deflated(data: bytes, *, flush: int = zlib.Z_FULL_FLUSH) -> bytes:
    packer = zlib.compressobj(6, wbits=-15)
    return packer.compress(data) + packer.flush(flush)
