"""Every compression that Linux uses: round trips against the real compressors, limits, damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import random
import struct
import tracemalloc
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from enclavedbg.eif.compression import detect, unpack, zstd_frame
from enclavedbg.errors import EifError


def lz4_legacy(data: bytes) -> bytes:
    out = [b"\x02\x21\x4c\x18"]
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        out += (struct.pack("<I", len(block)), block)
    return b"".join(out)


def zstd_unsized(data: bytes) -> bytes:
    """As a pipe makes it: no content size, with a checksum."""
    compressor = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compressobj()
    return compressor.compress(data) + compressor.flush()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "lz4": lz4_legacy,
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd-unsized": zstd_unsized,
}
NAMES = sorted(COMPRESSORS)
TEXT = b"".join(b"line %d\n" % n for n in range(40_000)) + random.Random(7).randbytes(300_000)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    for data in (b"x", TEXT):
        packed = COMPRESSORS[name](data)
        assert detect(packed) == name.removesuffix("-unsized")
        unpacked = unpack(memoryview(packed), limit=len(data))
        assert (unpacked.data, unpacked.consumed) == (data, len(packed))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lz4"])
def test_what_follows_is_left_alone(name: str) -> None:
    packed = COMPRESSORS[name](TEXT)
    unpacked = unpack(packed + bytes(100) + b"more", limit=1 << 20)
    assert (unpacked.data, unpacked.consumed) == (TEXT, len(packed))


def test_lz4_ends_at_a_zero_and_goes_on_at_a_magic() -> None:
    packed = lz4_legacy(b"abc")
    assert unpack(packed + bytes(8), limit=10).consumed == len(packed)
    assert unpack(packed + packed, limit=10).data == b"abcabc"
    assert unpack(lz4_legacy(bytes(9 << 20)), limit=9 << 20).data == bytes(9 << 20)


@pytest.mark.parametrize("name", NAMES)
def test_bombs_stop_at_the_limit(name: str) -> None:
    packed = COMPRESSORS[name](bytes(32 << 20))
    assert len(packed) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(EifError, match="more than the 1000000 bytes"):
            unpack(packed, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_exact(name: str) -> None:
    packed = COMPRESSORS[name](TEXT)
    assert unpack(packed, limit=len(TEXT)).data == TEXT
    with pytest.raises(EifError, match="more than"):
        unpack(packed, limit=len(TEXT) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_truncation_is_damage(name: str) -> None:
    packed = COMPRESSORS[name](TEXT)
    for length in (len(packed) - 1, len(packed) // 2, 7):
        with pytest.raises(EifError, match="damaged"):
            unpack(packed[:length], limit=1 << 20)


def test_zstd_frame_states_what_it_holds() -> None:
    frame = zstd_frame(memoryview(COMPRESSORS["zstd"](TEXT)))
    assert frame.content_size == len(TEXT) <= frame.at_most < 2 * len(TEXT)
    assert zstd_frame(memoryview(zstd_unsized(TEXT))).content_size is None
    for size in (0, 255, 256, 70_000):
        assert zstd_frame(memoryview(COMPRESSORS["zstd"](bytes(size)))).content_size == size


def test_a_zstd_frame_that_lies_about_its_size() -> None:
    honest = COMPRESSORS["zstd"](bytes(1000))
    assert honest[4] >> 6 == 1
    lying = honest[:4] + bytes([honest[4] | 0xC0]) + (1 << 40).to_bytes(8, "little") + honest[7:]
    with pytest.raises(EifError, match="blocks for"):
        unpack(lying, limit=1 << 50)
    with pytest.raises(EifError, match="more than"):
        unpack(lying, limit=1 << 30)


def test_unknown_and_unsupported() -> None:
    with pytest.raises(EifError, match="lzo compression is not supported; use one of gzip"):
        unpack(b"\x89LZO\0\r\n\x1a\n" + bytes(50), limit=100)
    with pytest.raises(EifError, match="begins with b'rubb'"):
        unpack(b"rubbish", limit=100)
    with pytest.raises(EifError, match="begins with b''"):
        unpack(b"", limit=100)


@given(st.sampled_from(NAMES), st.binary(max_size=400), st.integers(0, 500))
@example("zstd-unsized", b"\0", 0)
@settings(max_examples=80, deadline=None)
def test_any_data_round_trips_within_its_limit(name: str, data: bytes, limit: int) -> None:
    if name == "lz4" and not data:
        return  # the format cannot hold nothing
    packed = COMPRESSORS[name](data)
    if limit >= len(data):
        assert unpack(packed, limit=limit).data == data
    else:
        with pytest.raises(EifError):
            unpack(packed, limit=limit)


SMALL = {name: compress(TEXT[:3000]) for name, compress in COMPRESSORS.items()}


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=200, deadline=None)
def test_mutations_are_ours(name: str, data: st.DataObject) -> None:
    packed = bytearray(SMALL[name])
    at = data.draw(st.integers(0, min(len(packed) - 1, 200)))
    packed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    with contextlib.suppress(EifError):
        assert len(unpack(packed, limit=4000).data) <= 4000


@given(st.sampled_from(NAMES), st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_rubbish_behind_a_magic_is_ours(name: str, rubbish: bytes) -> None:
    with contextlib.suppress(EifError):
        unpack(SMALL[name][:6] + rubbish, limit=4000)
