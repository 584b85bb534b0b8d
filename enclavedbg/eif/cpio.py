"""The cpio archive format "newc", which Linux unpacks as its initramfs.

Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst. Thirteen fields of eight hex digits
follow the magic; name and data are padded to four bytes each.
"""

from __future__ import annotations

import binascii
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from enclavedbg.errors import EifError

MAGIC_NEWC = b"070701"
MAGIC_CRC = b"070702"
TRAILER = "TRAILER!!!"
HEADER_SIZE = 110
NAME_MAX = 4096
"""Linux's PATH_MAX: the kernel skips longer names, terminating NUL included."""
DEFAULT_ENTRY_LIMIT = 1_000_000

_FIELDS = struct.Struct(">13I")
"""ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check."""


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One file, directory, link or device node of an archive.

    `name` is the path without a leading slash (bytes that are not UTF-8 as surrogates); `mode` has the type
    bits; `data` is a file's contents or a symbolic link's target; `mtime` counts seconds since 1970; `rdev` is
    a device node's major and minor. `ino` 0 lets the writer number the entry; hard links share ino and nlink.
    """

    name: str
    mode: int
    data: bytes | memoryview = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    nlink: int = 1
    rdev: tuple[int, int] = (0, 0)
    ino: int = field(default=0, compare=False)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


def write_newc(entries: Iterable[CpioEntry]) -> bytes:
    """An archive of the entries in their order, closed by the trailer, a multiple of four bytes long.

    The result depends on the entries only, so equal inputs give equal bytes. Raises EifError for a name or a
    number that the format cannot hold.
    """
    chunks: list[bytes | memoryview] = []
    for number, entry in enumerate(entries, start=1):
        if entry.name == TRAILER:
            raise EifError(f"cpio: a file may not be named {TRAILER!r}, which closes an archive; rename it")
        _append(chunks, entry, ino=entry.ino or number)
    _append(chunks, CpioEntry(TRAILER, 0), ino=0)
    return b"".join(chunks)


def _append(chunks: list[bytes | memoryview], entry: CpioEntry, *, ino: int) -> None:
    size = len(entry.data)
    chunks.append(encode_head(entry, ino=ino, size=size))
    chunks.append(entry.data)
    chunks.append(bytes(-size % 4))


def encode_head(entry: CpioEntry, *, ino: int, size: int) -> bytes:
    """What goes before an entry's `size` bytes of data (zeros to a multiple of four follow these).

    For archives written piece by piece; the entry's own `ino` and `data` do not count. Raises EifError for a name
    or a number that the format cannot hold.
    """
    try:
        name = entry.name.encode("utf-8", "surrogateescape") + b"\0"
    except UnicodeEncodeError as error:
        raise EifError(f"cpio: the name {entry.name[:60]!r} cannot be written: {error.reason}") from error
    if not entry.name or b"\0" in name[:-1] or len(name) > NAME_MAX:
        raise EifError(f"cpio: the name {entry.name[:60]!r} must have 1 to {NAME_MAX - 1} bytes and no NUL")
    try:
        fields = _FIELDS.pack(
            ino, entry.mode, entry.uid, entry.gid, entry.nlink, entry.mtime, size, 0, 0, *entry.rdev, len(name), 0
        )
    except struct.error as error:
        raise EifError(f"cpio: a number of {entry.name[:60]!r} does not fit 32 bits: {error}") from error
    return MAGIC_NEWC + binascii.hexlify(fields).upper() + name + bytes(-(HEADER_SIZE + len(name)) % 4)


def read_newc(data: bytes | bytearray | memoryview, *, limit: int = DEFAULT_ENTRY_LIMIT) -> list[CpioEntry]:
    """The entries of one archive or of several behind each other (zero bytes between them are skipped, as Linux does).

    File contents are views of `data`, not copies. Raises EifError when an archive is damaged, has no trailer, or
    when there are more than `limit` entries.
    """
    entries: list[CpioEntry] = []
    for entry in iter_newc(data):
        if len(entries) >= limit:
            raise EifError(f"cpio: more than {limit} entries")
        entries.append(entry)
    return entries


def iter_newc(data: bytes | bytearray | memoryview) -> Iterator[CpioEntry]:
    """Like `read_newc`, one entry at a time and without a limit."""
    view = memoryview(data).toreadonly().cast("B")
    position = 0
    while position < len(view):
        if view[position] == 0:
            position = skip_zeros(view, position)
            continue
        if position % 4:
            raise EifError(
                f"cpio: an archive begins at byte {position:#x}, expected a multiple of 4; pad the one before"
            )
        entry, position = _read_entry(view, position)
        while entry is not None:
            yield entry
            entry, position = _read_entry(view, position)


def archive_end(data: bytes | bytearray | memoryview, position: int) -> int:
    """Where the archive that begins at `position` ends, its trailer's padding included if there; raises EifError."""
    view = memoryview(data).toreadonly().cast("B")
    entry, end = _read_entry(view, position)
    while entry is not None:
        entry, end = _read_entry(view, end)
    return min(end, len(view))


def skip_zeros(view: memoryview, position: int) -> int:
    """The first position from `position` that holds something; the end when there is none."""
    while position < len(view):
        piece = bytes(view[position : position + 65536])
        rest = piece.lstrip(b"\0")
        if rest:
            return position + len(piece) - len(rest)
        position += len(piece)
    return position


def _read_entry(view: memoryview, position: int) -> tuple[CpioEntry | None, int]:
    """The entry whose header is at `position` (None for the trailer), and where the next header lies."""
    header = bytes(view[position : position + HEADER_SIZE])
    magic = header[:6]
    if len(header) < HEADER_SIZE:
        raise EifError(f"cpio: the archive ends at byte {len(view)} without {TRAILER!r}; it is truncated")
    if magic not in (MAGIC_NEWC, MAGIC_CRC):
        raise EifError(
            f"cpio: found {magic!r} at byte {position:#x} of the archive, expected {MAGIC_NEWC.decode()} (newc)"
        )
    try:
        fields = _FIELDS.unpack(binascii.unhexlify(header[6:]))
    except (binascii.Error, ValueError) as error:
        raise EifError(f"cpio: the header at byte {position:#x} of the archive is not in hex digits") from error
    ino, mode, uid, gid, nlink, mtime, size, _, _, rdev_major, rdev_minor, name_size, check = fields
    if not 2 <= name_size <= NAME_MAX:
        raise EifError(
            f"cpio: a name of {name_size} bytes at byte {position:#x} of the archive, expected 2 to {NAME_MAX}"
        )
    name_end = position + HEADER_SIZE + name_size
    start = name_end + -(HEADER_SIZE + name_size) % 4
    if start + size > len(view):
        raise EifError(
            f"cpio: the entry at byte {position:#x} wants {size} bytes of data, {max(len(view) - start, 0)} are left"
        )
    raw_name = bytes(view[position + HEADER_SIZE : name_end])
    if raw_name.find(0) != name_size - 1:
        raise EifError(f"cpio: the name at byte {position + HEADER_SIZE:#x} of the archive does not end in its one NUL")
    following = start + size + -size % 4
    if raw_name == TRAILER.encode() + b"\0":
        return None, following
    contents = view[start : start + size]
    if magic == MAGIC_CRC and sum(contents) & 0xFFFF_FFFF != check:
        raise EifError(f"cpio: the contents at byte {start:#x} of the archive do not have their checksum")
    name = raw_name[:-1].decode("utf-8", "surrogateescape")
    entry = CpioEntry(name, mode, contents, uid, gid, mtime, nlink, (rdev_major, rdev_minor), ino)
    return entry, following
