"""Ramdisks as Linux reads them: mixtures of archives, limits, estimates."""

from __future__ import annotations

import contextlib
import gzip

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.cpio import CpioEntry, read_newc, write_newc
from enclavedbg.eif.ramdisk import decompress, unpacked_size
from enclavedbg.errors import EifError

ONE = write_newc([CpioEntry("init", 0o100755, b"#!/bin/sh\n" * 500)])
TWO = write_newc([CpioEntry("cmd", 0o100644, b"demo\n")])


def names(archive: bytes) -> list[str]:
    return [entry.name for entry in read_newc(archive)]


@pytest.mark.parametrize(
    "ramdisk",
    [
        ONE + TWO,
        gzip.compress(ONE) + gzip.compress(TWO),
        ONE + bytes(512) + zstandard.compress(TWO),
        zstandard.compress(ONE) + bytes(3) + TWO + bytes(1),
        bytes(4) + gzip.compress(ONE + TWO),
    ],
)
def test_mixtures(ramdisk: bytes) -> None:
    assert names(decompress(ramdisk, limit=1 << 20)) == ["init", "cmd"]


def test_nothing_is_an_empty_ramdisk() -> None:
    assert decompress(b"", limit=0) == decompress(bytes(100), limit=0) == b""


def test_parts_are_aligned_for_the_reader() -> None:
    odd = gzip.compress(TWO + bytes(3))
    assert names(decompress(odd + odd, limit=10_000)) == ["cmd", "cmd"]


def test_the_limit_is_for_all_parts_together() -> None:
    both = gzip.compress(ONE) + gzip.compress(ONE)
    assert len(decompress(both, limit=2 * len(ONE))) == 2 * len(ONE)
    for ramdisk in (both, ONE + ONE, zstandard.compress(bytes(64 << 20))):
        with pytest.raises(EifError, match="may"):
            decompress(ramdisk, limit=2 * len(ONE) - 1)


def test_damage_says_where() -> None:
    with pytest.raises(EifError, match="part at byte 0x10: unknown compression"):
        decompress(bytes(16) + b"rubbish", limit=100)
    with pytest.raises(EifError, match="truncated"):
        decompress(ONE[:-50], limit=10_000)
    with pytest.raises(EifError, match="more than 4096 archives"):
        decompress(gzip.compress(b"") * 4097, limit=100)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_estimate_is_near(compress: type[bytes]) -> None:
    archive = write_newc([CpioEntry("data", 0o100644, b"".join(b"%d " % n for n in range(200_000)))])
    assert 0.99 * len(archive) <= unpacked_size(compress(archive)) <= 1.1 * len(archive)


def test_estimates_of_the_other_formats_are_plausible() -> None:
    import bz2

    from lz4.block import compress

    blocks = b"\x02\x21\x4c\x18"
    for size in (8 << 20, 5000):
        block = compress(bytes(size), store_size=False)
        blocks += len(block).to_bytes(4, "little") + block
    assert 8 << 20 <= unpacked_size(blocks) <= 9 << 20
    assert unpacked_size(bz2.compress(ONE)) >= len(bz2.compress(ONE))


def test_a_gzip_trailer_that_lies_is_not_believed() -> None:
    lying = gzip.compress(ONE)[:-4] + b"\xff\xff\xff\xff"
    assert unpacked_size(lying) < 100 * len(lying)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_unpacked_or_refused_as_ours(data: bytes) -> None:
    for candidate in (data, ONE + data, b"\x1f\x8b" + data, b"\x28\xb5\x2f\xfd" + data, b"\x02\x21\x4c\x18" + data):
        assert unpacked_size(candidate) >= 0
        with contextlib.suppress(EifError):
            assert len(decompress(candidate, limit=10_000)) <= 10_000
