"""What a section or a file will hold: bytes in memory, or a file that is read when they are written."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enclavedbg.errors import EifError

PIECE = 1 << 20
MAPPED_FROM = 1 << 20
"""Input files from this size on are mapped."""


class Contents(Protocol):
    """Something of a known size that gives its bytes in pieces, as often as asked."""

    @property
    def size(self) -> int:
        """Bytes that `pieces` gives in all."""
        ...

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The bytes; raises EifError when they cannot be had."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """Contents that are there already, perhaps as a view of a mapped file."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[bytes | memoryview]:
        yield self.data


@dataclass(frozen=True, slots=True, eq=False)
class InFile:
    """Contents of a file that had `size` bytes when it was found, and must still have them when it is read."""

    path: Path
    size: int

    def pieces(self) -> Iterator[bytes | memoryview]:
        left = self.size
        try:
            # Not through a link: it was a regular file when it was found.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    left -= len(piece)
                    if left < 0:
                        break
                    yield piece
        except OSError as error:
            raise EifError(f"cannot read {self.path}: {error.strerror}; check its permissions") from error
        if left:
            raise EifError(f"{self.path} changed while it was read, it had {self.size} bytes; build again")


def read_input(path: Path, *, what: str, limit: int | None = None) -> memoryview:
    """The bytes of a file that the user named (`what` says as what); large ones are mapped, not copied.

    Raises EifError when it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    try:
        # Not blocking, so that a FIFO given by mistake is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise EifError(f"{what} {path} is not a regular file; name a file")
        with open(descriptor, "rb") as file:
            if limit is not None and status.st_size > limit:
                raise EifError(f"{what} {path} has {status.st_size} bytes, at most {limit} are allowed")
            if status.st_size >= MAPPED_FROM:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return memoryview(file.read())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise EifError(f"cannot read {what} {path}: {reason}; check the path and its permissions") from error
