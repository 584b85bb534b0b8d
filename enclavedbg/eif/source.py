"""Bytes of an image by their offset, from a file or from memory, without holding all of a file at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from enclavedbg.errors import EifError

CHUNK_SIZE = 2 << 20
"""Bytes read at a time when a whole section is gone through."""


class EifSource:
    """An open image file or bytes in memory; `size` in bytes is that at the time of opening.

    Use it in a `with` statement; `open_source` makes it.
    """

    def __init__(self, *, descriptor: int | None = None, data: memoryview | None = None, size: int) -> None:
        self._descriptor = descriptor
        self._data = data
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`: fewer only where the image ends. Raises EifError."""
        size = max(min(size, self.size - offset), 0)
        if self._data is not None:
            return bytes(self._data[offset : offset + size])
        return b"".join(self._pieces(offset, size))

    def chunks(self, offset: int, size: int) -> Iterator[bytes | memoryview]:
        """Exactly `size` bytes from `offset` on, in pieces of at most CHUNK_SIZE. Raises EifError."""
        if offset + size > self.size:
            raise EifError(f"{size} bytes were expected here, the file ends at {self.size:#x}", offset=offset)
        if self._data is None:
            yield from self._pieces(offset, size)
            return
        for start in range(offset, offset + size, CHUNK_SIZE):
            yield self._data[start : min(start + CHUNK_SIZE, offset + size)]

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        assert self._descriptor is not None, "closed"
        while size:
            try:
                piece = os.pread(self._descriptor, min(size, CHUNK_SIZE), offset)
            except OSError as error:
                raise EifError(f"the image cannot be read: {error.strerror}; check the disk", offset=offset) from error
            if not piece:
                raise EifError("the image became shorter while it was read; try again", offset=offset)
            yield piece
            offset += len(piece)
            size -= len(piece)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def open_source(source: Path | bytes | memoryview) -> EifSource:
    """Open an image file, or wrap an image in memory. Raises EifError for what is no readable regular file."""
    if not isinstance(source, Path):
        data = memoryview(source).toreadonly().cast("B")
        return EifSource(data=data, size=len(data))
    try:
        # Not blocking, so that a FIFO given by mistake is refused and not waited for.
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EifError(f"cannot read the image {source}: {reason}; check the path and its permissions") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise EifError(f"{source} is not a regular file; give the .eif file that nitro-cli build-enclave wrote")
    return EifSource(descriptor=descriptor, size=status.st_size)
