"""Text for people out of files that are not to be trusted: nothing in a name can steer the terminal."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from datetime import UTC, datetime

from enclavedbg.eif.archives import Archive
from enclavedbg.eif.tree import Node


def shown(text: str) -> str:
    """A name as it can be printed on one line: control characters, line ends and bytes that are no UTF-8 as escapes."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        c
        if c.isprintable() and c != "\\"
        else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in text
    )


def count(number: int, what: str) -> str:
    """`1 file`, `2 files`, `2 entries`."""
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("ry") else f"{number} {what}s"


def time_of(mtime: int) -> str:
    """Seconds since 1970 as date and time in UTC."""
    return datetime.fromtimestamp(mtime, UTC).strftime("%Y-%m-%d %H:%M:%S")


def columns(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as lines with aligned columns; those in `right` are aligned to the right, the last one is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def archive_text(archive: Archive) -> str:
    """An archive in one line: how it is compressed, what is in it."""
    if archive.compression is None:
        packing = "plain cpio"
    else:
        found = ", ".join(f"{key.replace('_', ' ')} {shown(str(value))}" for key, value in archive.parameters.items())
        packing = f"{archive.compression}{f' ({found})' if found else ''}"
    sizes = "" if archive.compression is None else f", {archive.unpacked} bytes unpacked"
    ending = "" if archive.trailers else ", without a trailer"
    return f"{archive.size} bytes, {packing}{sizes}, {count(archive.entries, 'entry')}{ending}"


def node_name(name: str, node: Node) -> str:
    """A name with `/` behind a directory's, `*` behind a program's, and where a link leads."""
    if node.is_symlink:
        return f"{shown(name)} -> {shown(node.target)}"
    if node.is_directory:
        return f"{shown(name).rstrip('/')}/"
    return f"{shown(name)}*" if node.is_executable else shown(name)


def long_row(name: str, node: Node) -> list[str]:
    """What `ls -l` says of a file, in columns: mode, owner, size or device number, time, where from, name."""
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    return [
        stat.filemode(node.mode),
        f"{node.uid}:{node.gid}",
        f"{node.rdev[0]},{node.rdev[1]}" if is_device else str(node.size),
        time_of(node.mtime),
        "-" if node.entry is None else f"ramdisk{node.entry.ramdisk}",
        f"{shown(name)} -> {shown(node.target)}" if node.is_symlink else shown(name),
    ]
