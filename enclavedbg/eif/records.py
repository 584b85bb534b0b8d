"""Entries, archives and inodes as plain values for JSON, and the words for their types."""

from __future__ import annotations

import stat
from collections.abc import Callable

from enclavedbg.eif.archives import Archive, Entry
from enclavedbg.eif.tree import Node

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISLNK, "symlink"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
)


def kind_of(mode: int) -> str:
    """The type that a mode's upper bits say, in words."""
    return next((name for test, name in _KINDS if test(mode)), "unknown type")


def permissions(mode: int) -> str:
    """A mode's lower twelve bits in octal, four digits: `0755`."""
    return f"{stat.S_IMODE(mode):04o}"


def archive_record(archive: Archive) -> dict[str, object]:
    """`compression` is null for plain cpio; sizes in bytes."""
    return {
        "offset": archive.offset,
        "size": archive.size,
        "compression": archive.compression,
        "parameters": archive.parameters,
        "unpacked": archive.unpacked,
        "entries": archive.entries,
        "trailers": archive.trailers,
    }


def entry_record(entry: Entry) -> dict[str, object]:
    """Everything of an entry's header that means something; `mtime` in seconds since 1970, `mode` octal digits."""
    record: dict[str, object] = {
        "name": entry.name,
        "type": kind_of(entry.mode),
        "mode": permissions(entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime,
        "ino": entry.ino,
        "nlink": entry.nlink,
        "size": entry.size,
        "archive": entry.archive,
    }
    if entry.is_symlink:
        record["target"] = entry.target
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        record["rdev"] = list(entry.rdev)
    return record


def node_record(path: str, node: Node) -> dict[str, object]:
    """An inode at a path of a tree; `ramdisk` is the one whose entry last set it, null for the kernel's own."""
    record: dict[str, object] = {
        "path": path,
        "type": kind_of(node.mode),
        "mode": permissions(node.mode),
        "uid": node.uid,
        "gid": node.gid,
        "mtime": node.mtime,
        "size": node.size,
        "ramdisk": None if node.entry is None else node.entry.ramdisk,
    }
    if node.is_symlink:
        record["target"] = node.target
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        record["rdev"] = list(node.rdev)
    return record
