"""Reads tar archives that may be hostile: members in order, each checked, none unpacked to disk."""

from __future__ import annotations

import io
import mmap
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from enclavedbg.eif.compression import detect
from enclavedbg.eif.cpio import skip_zeros
from enclavedbg.eif.streams import CompressedStream
from enclavedbg.errors import EifError

MEMBER_LIMIT = 1_000_000
STREAM_LIMIT = 1_000_000
"""Streams one behind the other in one compressed layer; eStargz has one for each file."""

_DAMAGED = (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError, KeyError, MemoryError, RecursionError)
_SKIPPABLE_FRAME = b"\x2a\x4d\x18"
"""What follows the first byte (0x50 to 0x5f) of a zstd frame without contents (RFC 8878, 3.1.2)."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive as it says of itself; `data` is a view of a regular file's bytes, empty for others.

    `kind` is `file`, `folder`, `symlink`, `link` (a hard one), `fifo` or `device`.
    """

    name: str
    kind: str
    mode: int
    uid: int
    gid: int
    target: str
    data: memoryview
    capabilities: bool


class _ViewFile(io.RawIOBase):
    """A view as a file for tarfile, without a copy of the whole."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else self._position + size
        data = bytes(self._view[self._position : end])
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, len(self._view))[whence]
        if base + offset < 0:
            raise ValueError("a negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position


def read_members(view: memoryview, *, what: str) -> Iterator[Member]:
    """The members of a plain tar archive (`what` names it in errors), in their order; nothing is an empty archive.

    Raises EifError when it is damaged, ends early, has more than MEMBER_LIMIT members, or a sparse one.
    """
    if not view:
        return
    count = 0
    end = -1
    try:
        # Names are the same in every locale.
        archive = tarfile.open(  # noqa: SIM115 (it has nothing to close)
            fileobj=_ViewFile(view), mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        while (info := archive.next()) is not None:
            count += 1
            # A size below zero would lead back to where we were.
            if info.size < 0 or archive.offset <= end or count > MEMBER_LIMIT:
                raise EifError(f"{what}: member {count} is damaged, or one too many; build or fetch it again")
            end = archive.offset
            # Or it would keep all of them.
            archive.members = []  # type: ignore[attr-defined]
            yield _member(info, view, what=what)
        # tarfile takes a damaged header for the archive's end.
        rest = bytes(view[archive.offset : archive.offset + tarfile.BLOCKSIZE])
    except _DAMAGED as error:
        raise EifError(f"{what} is no sound tar archive ({str(error)[:80]}); build or fetch it again") from error
    if any(rest) or len(rest) not in (0, tarfile.BLOCKSIZE):
        raise EifError(f"{what} is damaged after member {count}, at byte {archive.offset:#x}; build or fetch it again")


def _member(info: tarfile.TarInfo, view: memoryview, *, what: str) -> Member:
    kind = next((name for name, test in _KINDS.items() if test(info)), None)
    if kind is None or info.issparse():
        form = "sparse" if kind else f"of type {info.type!r}"
        raise EifError(f"{what}: {info.name[:80]!r} is {form}, which is not supported; build it again without")
    data = view[:0]
    if kind == "file":
        if info.offset_data + info.size > len(view):
            raise EifError(
                f"{what}: {info.name[:80]!r} has {info.size} bytes, {max(len(view) - info.offset_data, 0)} are left; "
                "it is truncated, fetch it again"
            )
        data = view[info.offset_data : info.offset_data + info.size]
    capabilities = "SCHILY.xattr.security.capability" in info.pax_headers
    return Member(info.name, kind, info.mode & 0o7777, info.uid, info.gid, info.linkname, data, capabilities)


_KINDS = {
    "file": tarfile.TarInfo.isreg,
    "folder": tarfile.TarInfo.isdir,
    "symlink": tarfile.TarInfo.issym,
    "link": tarfile.TarInfo.islnk,
    "fifo": tarfile.TarInfo.isfifo,
    "device": tarfile.TarInfo.isdev,
}


def uncompressed(view: memoryview, *, limit: int, what: str) -> memoryview:
    """A tar archive without its gzip, zstd or other compression: `view` itself, or a view of an unnamed file.

    Raises EifError for damage, when the disk for temporary files is full, or when more than `limit` bytes come out.
    """
    if detect(view) is None and not _is_skippable(view):
        if len(view) > limit:
            raise EifError(f"{what} has {len(view)} bytes, at most {limit} are unpacked; raise the limit")
        return view
    try:
        with tempfile.TemporaryFile(prefix="enclavedbg-") as file:
            total = 0
            for piece in _unpacked(view, limit):
                file.write(piece)
                total += len(piece)
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if total else memoryview(b"")
    except EifError as error:
        raise EifError(f"{what}: {error}") from error
    except OSError as error:
        raise EifError(f"cannot unpack {what} below {tempfile.gettempdir()}: {error.strerror}; set TMPDIR") from error


def _unpacked(view: memoryview, limit: int) -> Iterator[bytes]:
    """What all streams of `view` unpack to: both gzip and zstd allow several, and zeros or nothing after them."""
    position = streams = total = 0
    while position < len(view):
        if _is_skippable(view[position:]):
            position += 8 + int.from_bytes(view[position + 4 : position + 8], "little")
            if position > len(view):
                raise EifError("zstd data ends too early; fetch it again")
            continue
        stream = CompressedStream(view[position:], limit=limit - total)
        for piece in stream:
            total += len(piece)
            yield piece
        position = skip_zeros(view, position + stream.consumed)
        streams += 1
        if streams > STREAM_LIMIT:
            raise EifError(f"more than {STREAM_LIMIT} compressed streams; build it again")


def _is_skippable(view: memoryview) -> bool:
    return len(view) >= 8 and view[0] & 0xF0 == 0x50 and bytes(view[1:4]) == _SKIPPABLE_FRAME
