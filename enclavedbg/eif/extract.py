"""Takes an image apart into a new folder, as any user, and never writes outside of it.

The files of a ramdisk are first put together in memory as a tree (`enclavedbg.eif.tree`), where `..`, absolute
names and links all end within it; then only that tree's directories and files are made, each at a new name, and
symbolic links last of all, so that nothing is ever written through one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from enclavedbg.eif.archives import DEFAULT_LIMITS, Entry, Limits, Ramdisk
from enclavedbg.eif.contents import Contents, Section
from enclavedbg.eif.filesystem import FileSystem
from enclavedbg.eif.format import SectionType
from enclavedbg.eif.records import archive_record, entry_record, kind_of
from enclavedbg.eif.tree import Node, tree_of
from enclavedbg.errors import EifError

FILE_NAMES = {SectionType.METADATA: ".json", SectionType.SIGNATURE: ".cbor"}
"""What is appended to a section's name for its file."""
MANIFEST = "manifest.json"
LONGEST_PATH = 4000
"""Bytes of a path that this system's calls take, with some room."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """What was made: `files` counts regular files of ramdisks; `skipped` has a line for each entry not made.

    `outside` counts symbolic links that lead out of their ramdisk's folder; they are made as they are.
    """

    folder: Path
    sections: tuple[str, ...]
    files: int
    skipped: tuple[str, ...]
    outside: int


def extract(
    contents: Contents, folder: Path, *, only: Collection[str] = (), limits: Limits = DEFAULT_LIMITS
) -> Extracted:
    """Write sections as files and ramdisks as trees to `folder`, which must be new or empty; `only` names sections.

    Permission bits and times are set (the owner can always read and enter, set-id bits are left out); owners,
    device nodes and all else that a user cannot make are in the file `manifest.json` alone. It all happens in a
    folder beside, which then gets the name: on an error nothing is left. Raises EifError.
    """
    for name in only:
        contents.section(name)
    chosen = [section for section in contents.sections if not only or section.name in only]
    target = _checked(folder)
    needs_files = any(section.type is SectionType.RAMDISK for section in chosen)
    system = contents.filesystem(limits=limits) if needs_files else None
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        result = _Extraction(os.fsencode(temporary)).run(chosen, system)
        temporary.rename(target)
    except OSError as error:
        raise EifError(
            f"cannot extract to {folder}: {error.strerror or error}; check the folder, its permissions and free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return Extracted(
        folder, tuple(s.name for s in chosen), files=result.files, skipped=tuple(result.skipped), outside=result.outside
    )


def _checked(folder: Path) -> Path:
    """Where the folder really is, if it is new or empty."""
    try:
        target = Path(os.path.realpath(folder))
        if target.is_dir():
            if next(target.iterdir(), None) is not None:
                raise EifError(f"{folder} is not empty; name a new or an empty folder")
            if target == Path.cwd():
                raise EifError("this is the current folder, which cannot be replaced; name a new folder")
        elif os.path.lexists(target):
            raise EifError(f"{folder} is not a folder; name a new or an empty folder")
        elif not target.parent.is_dir():
            raise EifError(f"there is no folder {target.parent}; make it first")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EifError(f"cannot extract to {folder}: {reason}; name a new folder") from error
    return target


class _Extraction:
    """Writes below `top`, a new folder of our own; counts what it does."""

    def __init__(self, top: bytes) -> None:
        self.top = top
        self.files = 0
        self.outside = 0
        self.skipped: list[str] = []
        self._reasons: dict[tuple[int, int], str] = {}

    def run(self, sections: list[Section], system: FileSystem | None) -> _Extraction:
        # Entry by entry, because there may be very many.
        with open(os.path.join(self.top, os.fsencode(MANIFEST)), "x", encoding="ascii") as manifest:
            separator = '{"sections": [\n'
            for section in sections:
                manifest.write(separator)
                separator = ",\n"
                row: dict[str, object] = {"name": section.name, "offset": section.offset, "size": section.size}
                if section.type is SectionType.RAMDISK and system is not None:
                    ramdisk = system.ramdisks[int(section.name.removeprefix("ramdisk"))]
                    self._ramdisk(ramdisk)
                    row |= {"folder": section.name, "archives": [archive_record(a) for a in ramdisk.archives]}
                    manifest.write(json.dumps(row)[:-1] + ', "entries": [\n')
                    manifest.writelines(
                        f"{json.dumps(self._record(entry))}{',' if number < len(ramdisk.entries) else ''}\n"
                        for number, entry in enumerate(ramdisk.entries, start=1)
                    )
                    manifest.write("]}")
                else:
                    row["file"] = name = section.name + FILE_NAMES.get(section.type, "")
                    _write(os.path.join(self.top, os.fsencode(name)), iter((section.data,)))
                    manifest.write(json.dumps(row))
            manifest.write("\n]}\n")
        return self

    def _ramdisk(self, ramdisk: Ramdisk) -> None:
        tree = tree_of(ramdisk)
        top = os.path.join(self.top, b"ramdisk%d" % ramdisk.index)
        os.mkdir(top)
        for passed in tree.problems:
            self._skip(ramdisk, passed.entry, "" if passed.entry is None else passed.entry.name, passed.why)
        # Each inode's paths below `top`; a path that this system cannot take is left out with all below it.
        names: dict[Node, list[bytes]] = {}
        paths: list[tuple[bytes, Node]] = []
        for text, node in tree.walk():
            path = top + (b"" if text == "/" else text.encode("utf-8", "surrogateescape"))
            if len(path) > LONGEST_PATH:
                self._skip(ramdisk, node.entry, text, "its path is too long here")
                continue
            paths.append((path, node))
            names.setdefault(node, []).append(path)
            if node.is_directory and node is not tree.root:
                os.mkdir(path)
        self._files(ramdisk, names)
        for path, node in paths:
            if node.is_symlink:
                os.symlink(node.target.encode("utf-8", "surrogateescape"), path)
                self.outside += _leads_outside(node.target, depth=path.count(b"/") - top.count(b"/") - 1)
            elif not node.is_directory and not node.is_file:
                self._skip(ramdisk, node.entry, _text(path[len(top) :]), f"{kind_of(node.mode)}; only in the manifest")
        # Deepest first, because making a file in a directory changes its time.
        for path, node in reversed(paths):
            if node.is_file or node.is_directory or node.is_symlink:
                _dress(path, node)

    def _files(self, ramdisk: Ramdisk, names: dict[Node, list[bytes]]) -> None:
        """Make every regular file: in one pass over the ramdisk those that have contents."""
        waiting = {}
        for node, paths in names.items():
            if node.is_file:
                self.files += 1
                if node.content is None:
                    _write(paths[0], iter(()))
                else:
                    waiting[node.content.key] = paths[0]
        if waiting:
            for entry, contents in ramdisk.stream():
                if entry.key in waiting:
                    _write(waiting.pop(entry.key), contents)
        for node, paths in names.items():
            if node.is_file:
                for path in paths[1:]:
                    os.link(paths[0], path, follow_symlinks=False)

    def _skip(self, ramdisk: Ramdisk, entry: Entry | None, name: str, why: str) -> None:
        self.skipped.append(f"ramdisk{ramdisk.index}:{name}: {why}" if name else why)
        if entry is not None:
            self._reasons[entry.key] = why

    def _record(self, entry: Entry) -> dict[str, object]:
        row = entry_record(entry)
        if entry.key in self._reasons:
            row["not_made"] = self._reasons[entry.key]
        return row


def _write(path: bytes, pieces: Iterator[memoryview]) -> None:
    """A new file; whatever is there already is an error, and so is a symbolic link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with open(descriptor, "wb") as file:
        for piece in pieces:
            file.write(piece)


def _dress(path: bytes, node: Node) -> None:
    """Set what a user can: permission bits without set-id, and the time. What no entry spoke of stays as it is."""
    if node.entry is None:
        return
    if not node.is_symlink:
        # Whoever extracts must be able to look at it and to remove it.
        os.chmod(path, node.mode & 0o777 | (0o700 if node.is_directory else 0o600))
    os.utime(path, (node.mtime, node.mtime), follow_symlinks=False)


def _leads_outside(target: str, *, depth: int) -> bool:
    """Whether a link in a directory `depth` below its ramdisk's folder leads out of it, as written."""
    if target.startswith("/"):
        return True
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
