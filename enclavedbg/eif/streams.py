"""Unpacks a compressed stream piece by piece, so that a large ramdisk never lies unpacked in memory.

`enclavedbg.eif.compression` unpacks in one go for those who need the whole; formats and limits are the same.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Protocol

from enclavedbg.eif.compression import LZ4_BLOCK_SIZE, LZ4_MAGIC, XZ_MEMORY_LIMIT, detect, zstd_frame
from enclavedbg.errors import EifError

PIECE = 1 << 20
"""Bytes of a piece at most (a block of lz4 is larger)."""
ZSTD_WINDOW_MAX = 1 << 27
"""Linux lib/decompress_unzstd.c takes no larger window."""

RELEASE_EACH = 32 << 20
"""Bytes after which the pages of a mapped file that were gone through are given back."""

_FEED = 128 << 10


class Release:
    """Counts bytes gone through, and now and then gives back the pages of the mapped file that `view` is of, if it is.

    Without it, a large file that is read once from beginning to end would all count as this process's memory.
    """

    def __init__(self, view: memoryview) -> None:
        self._mapping = view.obj if isinstance(view.obj, mmap.mmap) else None
        self._passed = 0

    def passed(self, size: int) -> None:
        """`size` more bytes were gone through."""
        self._passed += size
        if self._mapping is not None and self._passed >= RELEASE_EACH:
            self._passed = 0
            # Only a hint for pages that are the file's anyway: what is still needed comes back by itself.
            self._mapping.madvise(mmap.MADV_DONTNEED)


class _Incremental(Protocol):
    """The incremental decompressors of bz2 and lzma; zlib's needs the class below."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class CompressedStream:
    """The stream that `view` begins with: iterate once over its unpacked pieces, then `consumed` is its length.

    Raises EifError, from the constructor for an unknown or unsupported format, while iterating for damage and
    when more than `limit` bytes come out.
    """

    def __init__(self, view: memoryview, *, limit: int) -> None:
        name = detect(view)
        if name is None:
            raise EifError(
                f"neither a cpio archive nor a known compression, it begins with {bytes(view[:4])!r}; "
                f"expected 070701 or one of {', '.join(_FORMATS)}"
            )
        if name not in _FORMATS:
            raise EifError(f"{name} compression is not supported; use one of {', '.join(_FORMATS)}")
        self.format = name
        self.limit = limit
        self.consumed = 0
        self._view = view

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        release = Release(self._view)
        for piece in _FORMATS[self.format](self):
            total += len(piece)
            release.passed(len(piece))
            if total > self.limit:
                raise EifError(
                    f"{self.format} data unpacks to more than the {self.limit} bytes that it may; "
                    "it is damaged or a bomb, or raise the limit"
                )
            if piece:
                yield piece

    def damaged(self, why: object) -> EifError:
        """The error for a stream that cannot be what its compressor wrote."""
        return EifError(f"{self.format} data is damaged ({str(why).partition(chr(10))[0]}); build it again")

    def feed(self, stream: _Incremental, errors: tuple[type[Exception], ...]) -> Iterator[bytes]:
        """Drive a decompressor that takes its input in pieces and whose output can be bounded."""
        position = 0
        try:
            while not stream.eof:
                fed = b""
                if stream.needs_input:
                    fed = bytes(self._view[position : position + _FEED])
                    position += len(fed)
                    if not fed:
                        raise self.damaged("it ends too early")
                yield stream.decompress(fed, PIECE)
        except errors as error:
            raise self.damaged(error) from error
        self.consumed = position - len(stream.unused_data)

    def gzip(self) -> Iterator[bytes]:
        import zlib

        inner = zlib.decompressobj(wbits=31)
        position = 0
        tail = b""
        try:
            while not inner.eof:
                if not tail:
                    tail = bytes(self._view[position : position + _FEED])
                    position += len(tail)
                    if not tail:
                        raise self.damaged("it ends too early")
                yield inner.decompress(tail, PIECE)
                tail = inner.unconsumed_tail
        except zlib.error as error:
            raise self.damaged(error) from error
        self.consumed = position - len(inner.unused_data)

    def bzip2(self) -> Iterator[bytes]:
        import bz2

        return self.feed(bz2.BZ2Decompressor(), (OSError, ValueError))

    def xz(self) -> Iterator[bytes]:
        import lzma

        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_LIMIT)
        return self.feed(stream, (lzma.LZMAError, EOFError, MemoryError))

    def lzma(self) -> Iterator[bytes]:
        import lzma

        stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=XZ_MEMORY_LIMIT)
        return self.feed(stream, (lzma.LZMAError, EOFError, MemoryError))

    def zstd(self) -> Iterator[bytes]:
        import zstandard

        frame = zstd_frame(self._view)
        stated = frame.content_size
        if stated is not None and stated > frame.at_most:
            raise self.damaged(f"it states {stated} bytes and has blocks for {frame.at_most}")
        try:
            unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
            with unpacker.stream_reader(self._view[: frame.size], read_size=_FEED, closefd=False) as reader:
                while piece := reader.read(PIECE):
                    yield piece
        except (zstandard.ZstdError, MemoryError) as error:
            raise self.damaged(error) from error
        self.consumed = frame.size

    def lz4(self) -> Iterator[bytes]:
        """Blocks behind their sizes, as `compression.lz4_blocks` describes, without a list of them."""
        import lz4.block

        view = self._view
        position = len(LZ4_MAGIC)
        while position + 4 <= len(view):
            if view[position : position + 4] == LZ4_MAGIC:
                position += 4
                continue
            (size,) = struct.unpack_from("<I", view, position)
            if size == 0:
                break
            start = position + 4
            if start + size > len(view):
                raise self.damaged(f"a block of {size} bytes at {position:#x}, {len(view) - start} are left")
            try:
                piece: bytes = lz4.block.decompress(view[start : start + size], uncompressed_size=LZ4_BLOCK_SIZE)
            except (lz4.block.LZ4BlockError, ValueError) as error:
                raise self.damaged(error) from error
            position = start + size
            yield piece
        if len(view) - position < 4 and any(view[position:]):
            raise self.damaged("it ends too early")
        self.consumed = position


_FORMATS: dict[str, Callable[[CompressedStream], Iterator[bytes]]] = {
    "gzip": CompressedStream.gzip,
    "bzip2": CompressedStream.bzip2,
    "lzma": CompressedStream.lzma,
    "xz": CompressedStream.xz,
    "lz4": CompressedStream.lz4,
    "zstd": CompressedStream.zstd,
}


class Window:
    """A forward-only view over pieces of bytes: what the cpio parser reads from, raw or unpacked."""

    def __init__(self, pieces: Iterator[bytes] | Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._piece: memoryview = memoryview(b"")
        self._at = 0
        self.position = 0

    def _more(self) -> bool:
        """Whether there is a byte at the position; fetches the next piece for it."""
        while self._at >= len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._piece, self._at = memoryview(piece), 0
        return True

    def peek(self) -> int | None:
        """The next byte, None at the end."""
        return self._piece[self._at] if self._more() else None

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end only; for small sizes."""
        if self._at + size <= len(self._piece):
            data = bytes(self._piece[self._at : self._at + size])
            self._at += size
            self.position += size
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes in pieces of bounded size, fewer at the end only."""
        release = Release(self._piece)
        while size and self._more():
            piece = self._piece[self._at : self._at + min(size, PIECE)]
            self._at += len(piece)
            self.position += len(piece)
            size -= len(piece)
            yield piece
            release.passed(len(piece))

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; how many there were."""
        left = size
        while left and self._more():
            step = min(left, len(self._piece) - self._at)
            self._at += step
            left -= step
        self.position += size - left
        return size - left

    def skip_zeros(self) -> None:
        """Pass over the zero bytes here."""
        while self.peek() == 0:
            piece = bytes(self._piece[self._at : self._at + 65536])
            step = len(piece) - len(piece.lstrip(b"\0"))
            self._at += step
            self.position += step
