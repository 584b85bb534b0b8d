"""Whatever the bytes: findings or EifError, nothing else."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from enclavedbg.eif.archives import DEFAULT_LIMITS
from enclavedbg.eif.format import CRC_OFFSET, HEADER_SIZE, MAGIC
from enclavedbg.eif.lint import CHECKS, lint
from enclavedbg.errors import EifError
from tests.eif.lint.images import NOW, application, bootstrap, image, kernel, program, ramdisk

LIMITS = replace(DEFAULT_LIMITS, unpacked=1 << 22)
SOUND = image()


def check(data: bytes) -> None:
    with contextlib.suppress(EifError):
        for finding in lint(data, memory=64 << 20, now=NOW, limits=LIMITS).findings:
            assert finding.check is CHECKS[finding.id] and finding.message and "\n" not in finding.message


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=700), st.integers(0, len(SOUND)), st.binary(min_size=1, max_size=12))
def test_any_bytes(data: bytes, at: int, change: bytes) -> None:
    check(data)
    check(MAGIC + data)
    spoilt = bytearray(SOUND)
    spoilt[at : at + len(change)] = change
    check(bytes(spoilt))
    check(SOUND[:at])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=200), st.binary(max_size=60))
def test_any_contents(code: bytes, init: bytes, command: bytes, line: bytes) -> None:
    """Well-formed images of any parts."""
    line = line.replace(b"\0", b"x")
    check(
        image(
            kernel_data=code, boot={"init": init, "modules": command}, app={"cmd": command, "env": init}, cmdline=line
        )
    )
    check(image(boot={"init": b"\x7fELF" + init, "nsm.ko": code}, app={"rootfs/app/run": b"#!" + init, "env": command}))


RUN = program(interpreter="/lib/ld-linux.so", needed=["liba.so.1"], runpath="$ORIGIN:$LIB")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(RUN)), st.binary(min_size=1, max_size=8), st.integers(0, 8000), st.binary(max_size=8))
@example(RUN.index(b"/lib/ld") + 1, b"\n", 0, b"")
def test_damaged_programs_kernels_and_archives(at: int, change: bytes, place: int, other: bytes) -> None:
    spoilt = RUN[:at] + change + RUN[at + len(change) :]
    packed = gzip.compress(ramdisk(bootstrap()), mtime=0)
    packed = packed[: place % len(packed)] + other + packed[place % len(packed) + len(other) :]
    code = kernel()
    code = code[: place % len(code)] + other + code[place % len(code) + len(other) :]
    check(image(boot={"init": spoilt}, app={"rootfs/app/lib/liba.so.1": spoilt}))
    check(image(kernel_data=code, ramdisks=[packed, ramdisk(application())]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=8, max_size=8), min_size=64, max_size=64), st.integers(0, 40))
def test_any_table(entries: list[bytes], count: int) -> None:
    header = bytearray(SOUND[:HEADER_SIZE])
    header[0x1A:0x1C] = count.to_bytes(2, "big")
    header[0x1C:0x21C] = b"".join(entries)
    crc = zlib.crc32(SOUND[HEADER_SIZE:], zlib.crc32(header[:CRC_OFFSET]))
    check(bytes(header[:CRC_OFFSET]) + crc.to_bytes(4, "big") + SOUND[HEADER_SIZE:])
