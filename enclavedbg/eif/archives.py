"""The files of one ramdisk in archive order, as Linux's unpacker meets them, without unpacking to memory or disk.

Source: Linux init/initramfs.c. A ramdisk is any mixture of plain and compressed cpio archives; zero bytes may lie
between archives and between entries; the trailer is not needed, it only ends the scope of hard links.
"""

from __future__ import annotations

import binascii
import stat
import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from enclavedbg.eif.cpio import DEFAULT_ENTRY_LIMIT, HEADER_SIZE, MAGIC_CRC, MAGIC_NEWC, NAME_MAX, TRAILER, skip_zeros
from enclavedbg.eif.parameters import Parameters, parameters
from enclavedbg.eif.streams import CompressedStream, Window
from enclavedbg.errors import EifError

_FIELDS = struct.Struct(">13I")
_TRAILER = TRAILER.encode()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one ramdisk may grow to: bytes unpacked from compressed streams, entries, archives, bytes of names."""

    unpacked: int = 8 << 30
    entries: int = DEFAULT_ENTRY_LIMIT
    archives: int = 4096
    text: int = 256 << 20


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a cpio archive, with everything that its header says.

    `name` is as written (bytes that are not UTF-8 as surrogates), cut at its first NUL; `mode` has the type
    bits; `mtime` counts seconds since 1970; `size` is in bytes; `dev` and `rdev` are major and minor; `target` is
    a symbolic link's. `order` counts entries within the ramdisk, `archive` indexes its archives, `scope` counts
    the trailers before it; `offset` is where the contents begin in the archive (unpacked, if compressed).
    """

    name: str
    mode: int
    uid: int
    gid: int
    mtime: int
    ino: int
    nlink: int
    size: int
    dev: tuple[int, int]
    rdev: tuple[int, int]
    target: str
    checksum: int | None
    ramdisk: int
    archive: int
    scope: int
    order: int
    offset: int

    @property
    def key(self) -> tuple[int, int]:
        """Ramdisk and order: unique in an image."""
        return self.ramdisk, self.order

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


@dataclass(frozen=True, slots=True)
class Archive:
    """A compressed stream or a plain cpio archive: where it lies in its ramdisk (`offset`, `size`) and what is in it.

    `compression` is None for plain cpio; `parameters` is what the stream's headers say; `unpacked` is in bytes;
    `trailers` is 1 for an archive as cpio writes it, 0 where the closing entry is missing.
    """

    offset: int
    size: int
    compression: str | None
    parameters: Parameters
    unpacked: int
    entries: int
    trailers: int
    checksummed: bool


_Met = tuple[Entry, Iterator[memoryview]]
"""An entry and its contents."""


@dataclass(slots=True)
class _Counts:
    entries: int = 0
    trailers: int = 0
    checksummed: bool = False


@dataclass(slots=True)
class RamdiskReader:
    """Iterates over (entry, contents) of one ramdisk; after the end, `archives` and `skipped` are complete.

    `contents` is an iterator over a file's bytes in pieces, good until the next entry is asked for. `index` is the
    ramdisk's number, `base` where its data lies in the file (for errors), `phase` where it lies in the initramfs
    that all ramdisks form together. Raises EifError for damage and when a limit is passed.
    """

    data: memoryview
    index: int = 0
    base: int | None = None
    phase: int = 0
    limits: Limits = DEFAULT_LIMITS
    archives: list[Archive] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    _entries: int = 0
    _scope: int = 0
    _text: int = 0
    _unpacked: int = 0

    def __iter__(self) -> Iterator[_Met]:
        position = skip_zeros(self.data, 0)
        while position < len(self.data):
            if len(self.archives) >= self.limits.archives:
                raise self._error(position, f"more than {self.limits.archives} archives in one ramdisk; join them")
            try:
                if self.data[position] == ord("0") and 0 in (position % 4, (position + self.phase) % 4):
                    end = yield from self._plain(position)
                else:
                    end = yield from self._compressed(position)
            except EifError as error:
                if error.offset is not None:
                    raise
                raise self._error(position, str(error)) from error
            position = skip_zeros(self.data, end)

    def _error(self, position: int, problem: str) -> EifError:
        where = f"ramdisk {self.index}, archive {len(self.archives)} at byte {position:#x} of it"
        return EifError(f"{where}: {problem}", offset=None if self.base is None else self.base + position)

    def _plain(self, start: int) -> Generator[_Met, None, int]:
        """Entries up to the trailer, or up to what is no entry; returns where that is."""
        window = Window(iter((self.data[start:],)))
        counts = _Counts()
        end = start
        while not counts.trailers and window.peek() == ord("0"):
            yield from self._entry(window, counts)
            end = start + window.position
            window.skip_zeros()
        self._finish(start, end, counts, compression=None, found={}, unpacked=end - start)
        return end

    def _compressed(self, start: int) -> Generator[_Met, None, int]:
        view = self.data[start:]
        stream = CompressedStream(view, limit=self.limits.unpacked - self._unpacked)
        window = Window(iter(stream))
        counts = _Counts()
        window.skip_zeros()
        while (first := window.peek()) is not None:
            if first != ord("0") or window.position % 4:
                raise EifError(
                    f"found {window.take(6)!r} at byte {window.position:#x} after unpacking, expected "
                    f"{MAGIC_NEWC.decode()} at a multiple of 4 (a cpio archive in newc format); build it again"
                )
            yield from self._entry(window, counts)
            window.skip_zeros()
        self._unpacked += window.position
        self._finish(
            start,
            start + stream.consumed,
            counts,
            compression=stream.format,
            found=parameters(view),
            unpacked=window.position,
        )
        return start + stream.consumed

    def _finish(
        self, start: int, end: int, counts: _Counts, *, compression: str | None, found: Parameters, unpacked: int
    ) -> None:
        self.archives.append(
            Archive(
                start, end - start, compression, found, unpacked, counts.entries, counts.trailers, counts.checksummed
            )
        )

    def _entry(self, window: Window, counts: _Counts) -> Iterator[_Met]:
        """The entry here, if it is one; leaves the window behind its padding."""
        at = window.position
        header = window.take(HEADER_SIZE)
        magic = header[:6]
        if len(header) < HEADER_SIZE:
            raise EifError(f"the archive ends inside the header at byte {at:#x} of it; it is truncated, build it again")
        if magic not in (MAGIC_NEWC, MAGIC_CRC):
            raise EifError(
                f"found {magic!r} at byte {at:#x} of the archive, expected {MAGIC_NEWC.decode()} (cpio newc)"
            )
        try:
            fields = _FIELDS.unpack(binascii.unhexlify(header[6:]))
        except (binascii.Error, ValueError) as error:
            raise EifError(f"the header at byte {at:#x} of the archive is not in hex digits; build it again") from error
        ino, mode, uid, gid, nlink, mtime, size, dev_major, dev_minor, rdev_major, rdev_minor, name_size, check = fields
        name_pad = -(HEADER_SIZE + name_size) % 4
        end = at + HEADER_SIZE + name_size + name_pad + size
        usable = 1 <= name_size <= NAME_MAX
        raw = window.take(name_size) if usable else b""
        if usable and len(raw) == name_size and raw[-1]:
            raise EifError(f"the name at byte {at + HEADER_SIZE:#x} of the archive does not end in NUL; build it again")
        name = raw.partition(b"\0")[0]
        is_link = stat.S_ISLNK(mode)
        if name == _TRAILER and not is_link:
            counts.trailers += 1
            self._scope += 1
        elif not usable:
            self._skip(f"an entry with a name of {name_size} bytes (Linux takes 1 to {NAME_MAX})")
        elif is_link and size > NAME_MAX:
            self._skip(f"{_show(name)}: a link's target of {size} bytes (Linux takes {NAME_MAX})")
        else:
            window.skip(name_pad)
            offset = window.position
            target = window.take(size).partition(b"\0")[0] if is_link else b""
            self._count(len(name) + len(target))
            counts.entries += 1
            checksummed = magic == MAGIC_CRC
            counts.checksummed |= checksummed
            entry = Entry(
                name=name.decode("utf-8", "surrogateescape"),
                mode=mode,
                uid=uid,
                gid=gid,
                mtime=mtime,
                ino=ino,
                nlink=nlink,
                size=size,
                dev=(dev_major, dev_minor),
                rdev=(rdev_major, rdev_minor),
                target=target.decode("utf-8", "surrogateescape"),
                checksum=check if checksummed else None,
                ramdisk=self.index,
                archive=len(self.archives),
                scope=self._scope,
                order=self._entries - 1,
                offset=offset,
            )
            yield entry, window.pieces(0 if is_link else size)
        window.skip(end - window.position)
        if window.position < end:
            missing = end - window.position
            raise EifError(
                f"the entry {_show(name)} at byte {at:#x} of the archive needs {missing} bytes more than there are; "
                "it is truncated, build it again"
            )
        # The last entry's own padding may be missing at the very end.
        window.skip(-end % 4)

    def _count(self, text: int) -> None:
        self._entries += 1
        self._text += text
        if self._entries > self.limits.entries:
            raise EifError(f"more than {self.limits.entries} entries in one ramdisk")
        if self._text > self.limits.text:
            raise EifError(f"more than {self.limits.text} bytes of names in one ramdisk")

    def _skip(self, what: str) -> None:
        self._count(100)
        self.skipped.append(what)


def _show(name: bytes) -> str:
    return repr(name[:60].decode("utf-8", "backslashreplace"))


@dataclass(frozen=True, slots=True)
class Ramdisk:
    """One ramdisk, listed: its `archives`, its `entries` in archive order; `data` are the section's bytes.

    `skipped` says what Linux passes over without a word; `trailers` counts closing entries.
    """

    index: int
    data: memoryview
    base: int | None
    phase: int
    limits: Limits
    archives: tuple[Archive, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[str, ...]

    @property
    def unpacked(self) -> int:
        """Bytes of all archives, unpacked."""
        return sum(archive.unpacked for archive in self.archives)

    @property
    def trailers(self) -> int:
        return sum(archive.trailers for archive in self.archives)

    def stream(self) -> Iterator[_Met]:
        """Every entry again with its contents, in one pass."""
        return iter(RamdiskReader(self.data, self.index, self.base, self.phase, self.limits))

    def contents(self, entry: Entry) -> Iterator[memoryview]:
        """A file's bytes in pieces; a compressed archive is unpacked up to there, a plain one is not even read."""
        archive = self.archives[entry.archive]
        if archive.compression is None:
            window = Window(iter((self.data[archive.offset : archive.offset + archive.size],)))
        else:
            window = Window(iter(CompressedStream(self.data[archive.offset :], limit=self.limits.unpacked)))
        window.skip(entry.offset)
        return window.pieces(entry.size)


def read_ramdisk(
    data: bytes | memoryview,
    *,
    index: int = 0,
    base: int | None = None,
    phase: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    visit: Callable[[Entry, Iterator[memoryview]], None] | None = None,
) -> Ramdisk:
    """List a ramdisk in one pass; contents are read only by `visit`, which is called for each entry.

    Memory use is that of the list and of one piece, whatever the ramdisk unpacks to. Arguments and errors are
    those of RamdiskReader.
    """
    view = memoryview(data).toreadonly().cast("B")
    reader = RamdiskReader(view, index, base, phase, limits)
    entries = []
    for entry, contents in reader:
        entries.append(entry)
        if visit is not None:
            visit(entry, contents)
    return Ramdisk(index, view, base, phase, limits, tuple(reader.archives), tuple(entries), tuple(reader.skipped))
