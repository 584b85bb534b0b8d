"""Unpacks what Linux's build compresses: kernel payloads and ramdisks, always up to a stated limit.

The formats are those of the kernel's lib/decompress*.c, recognised by their first bytes. Each module that
does the work is imported when its format is met.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from enclavedbg.errors import EifError

LZ4_BLOCK_SIZE = 8 << 20
"""What one block of the legacy LZ4 format unpacks to at most."""
LZ4_MAGIC = b"\x02\x21\x4c\x18"
ZSTD_BLOCK_SIZE = 128 << 10
XZ_MEMORY_LIMIT = 256 << 20

_FIRST_PIECE = 256
_LARGEST_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The contents of one compressed stream, and how many bytes the stream itself took."""

    format: str
    data: bytes
    consumed: int


class _Stream(Protocol):
    """The incremental decompressors of bz2 and lzma."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def detect(data: bytes | bytearray | memoryview) -> str | None:
    """The name of the compression format that `data` begins with, or None."""
    start = bytes(data[:6])
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def unpack(data: bytes | bytearray | memoryview, *, limit: int) -> Unpacked:
    """Unpack the stream that `data` begins with, to at most `limit` bytes; what follows the stream is left alone.

    Raises EifError when the format is unknown or unsupported, the stream is damaged, or the limit is passed;
    memory use stays near the limit whatever the stream says of itself.
    """
    view = memoryview(data).toreadonly().cast("B")
    name = detect(view)
    if name is None:
        raise EifError(f"unknown compression, it begins with {bytes(view[:4])!r}; use one of {', '.join(_UNPACKERS)}")
    unpacker = _UNPACKERS.get(name)
    if unpacker is None:
        raise EifError(f"{name} compression is not supported; use one of {', '.join(_UNPACKERS)}")
    contents, consumed = unpacker(view, limit)
    return Unpacked(name, contents, consumed)


def _too_large(name: str, limit: int) -> EifError:
    return EifError(
        f"{name} data unpacks to more than the {limit} bytes that it may; it is damaged or a bomb, build it again"
    )


def _damaged(name: str, why: object) -> EifError:
    return EifError(f"{name} data is damaged ({str(why).partition(chr(10))[0]}); build it again")


class _GzipStream:
    """zlib's decompressor with the interface of bz2's and lzma's."""

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _run_stream(
    name: str, stream: _Stream, view: memoryview, limit: int, errors: tuple[type[Exception], ...]
) -> tuple[bytes, int]:
    """Feed growing pieces (a short stream costs little, whatever follows it) until the stream ends."""
    chunks: list[bytes] = []
    total = position = 0
    piece = _FIRST_PIECE
    try:
        while not stream.eof:
            fed = b""
            if stream.needs_input:
                fed = bytes(view[position : position + piece])
                position += len(fed)
                piece = min(piece * 2, _LARGEST_PIECE)
                if not fed:
                    raise _damaged(name, "it ends too early")
            chunk = stream.decompress(fed, limit - total + 1)
            total += len(chunk)
            if total > limit:
                raise _too_large(name, limit)
            chunks.append(chunk)
    except errors as error:
        raise _damaged(name, error) from error
    return b"".join(chunks), position - len(stream.unused_data)


def _gzip(view: memoryview, limit: int) -> tuple[bytes, int]:
    import zlib

    return _run_stream("gzip", _GzipStream(), view, limit, (zlib.error,))


def _bzip2(view: memoryview, limit: int) -> tuple[bytes, int]:
    import bz2

    return _run_stream("bzip2", bz2.BZ2Decompressor(), view, limit, (OSError, ValueError))


def _xz(view: memoryview, limit: int) -> tuple[bytes, int]:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)
    return _run_stream("xz", stream, view, limit, (lzma.LZMAError, EOFError, MemoryError))


def _lzma(view: memoryview, limit: int) -> tuple[bytes, int]:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=XZ_MEMORY_LIMIT)
    return _run_stream("lzma", stream, view, limit, (lzma.LZMAError, EOFError, MemoryError))


def _lz4(view: memoryview, limit: int) -> tuple[bytes, int]:
    """The legacy format: a magic, then blocks behind their 32-bit sizes, until a size of zero or the end."""
    import lz4.block

    chunks: list[bytes] = []
    total = 0
    position = len(LZ4_MAGIC)
    for start, size in lz4_blocks(view):
        try:
            chunk: bytes = lz4.block.decompress(
                view[start : start + size], uncompressed_size=max(0, min(LZ4_BLOCK_SIZE, limit - total + 1))
            )
        except (lz4.block.LZ4BlockError, ValueError) as error:
            if limit - total < LZ4_BLOCK_SIZE:
                raise _too_large("lz4", limit) from error
            raise _damaged("lz4", error) from error
        position = start + size
        total += len(chunk)
        if total > limit:
            raise _too_large("lz4", limit)
        chunks.append(chunk)
    return b"".join(chunks), position


def lz4_blocks(view: memoryview) -> list[tuple[int, int]]:
    """Start and size of each block's data. A repeated magic begins another archive, as `cat` of two gives."""
    blocks = []
    position = 0
    while position + 4 <= len(view):
        if view[position : position + 4] == LZ4_MAGIC:
            position += 4
            continue
        (size,) = struct.unpack_from("<I", view, position)
        if size == 0:
            break
        if position + 4 + size > len(view):
            raise _damaged("lz4", f"a block of {size} bytes at {position:#x}, {len(view) - position - 4} are left")
        blocks.append((position + 4, size))
        position += 4 + size
    if len(view) - position < 4 and any(view[position:]):
        raise _damaged("lz4", "it ends too early")
    return blocks


@dataclass(frozen=True, slots=True)
class ZstdFrame:
    """A frame as its headers describe it: bytes it takes, its content's size if stated, and the most in its blocks."""

    size: int
    content_size: int | None
    at_most: int


def zstd_frame(view: memoryview) -> ZstdFrame:
    """Walk the block headers of the frame that `view` begins with (RFC 8878, 3.1.1), unpacking nothing."""
    try:
        descriptor = view[4]
        single_segment = descriptor & 0x20
        position = 5 if single_segment else 6
        position += (0, 1, 2, 4)[descriptor & 3]
        width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
        content_size = int.from_bytes(view[position : position + width], "little") if width else None
        if content_size is not None and width == 2:
            content_size += 256
        position += width
        at_most = 0
        last = 0
        while not last:
            header = view[position] | view[position + 1] << 8 | view[position + 2] << 16
            last, kind, size = header & 1, header >> 1 & 3, header >> 3
            if kind == 3:
                raise _damaged("zstd", f"reserved block type at {position:#x}")
            at_most += min(size, ZSTD_BLOCK_SIZE) if kind != 2 else ZSTD_BLOCK_SIZE
            position += 3 + (1 if kind == 1 else size)
    except IndexError:
        raise _damaged("zstd", "it ends too early") from None
    if descriptor & 4:
        position += 4
    if position > len(view):
        raise _damaged("zstd", "it ends too early")
    return ZstdFrame(position, content_size, at_most)


def _zstd(view: memoryview, limit: int) -> tuple[bytes, int]:
    """In one call, which is several times faster than piece by piece: the block headers bound the result first."""
    import zstandard

    frame = zstd_frame(view)
    stated = frame.content_size
    if stated is not None and stated > min(limit, frame.at_most):
        if stated > limit:
            raise _too_large("zstd", limit)
        raise _damaged("zstd", f"it states {stated} bytes and has blocks for {frame.at_most}")
    room = min(limit, frame.at_most)
    try:
        # A size of zero would mean "whatever the frame says".
        data = zstandard.ZstdDecompressor().decompress(view[: frame.size], max_output_size=max(room, 1))
    except (zstandard.ZstdError, MemoryError) as error:
        if frame.at_most > limit and "full frame" in str(error):
            raise _too_large("zstd", limit) from error
        raise _damaged("zstd", error) from error
    if len(data) > limit:
        raise _too_large("zstd", limit)
    return data, frame.size


_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x89LZO": "lzo",
    LZ4_MAGIC: "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}

_UNPACKERS: dict[str, Callable[[memoryview, int], tuple[bytes, int]]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "lzma": _lzma,
    "xz": _xz,
    "lz4": _lz4,
    "zstd": _zstd,
}
