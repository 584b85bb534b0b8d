"""Reads a folder of this machine as the root file system of an image."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from enclavedbg.eif.build.contents import InFile
from enclavedbg.eif.build.tree import Node, Tree, file, folder, symlink
from enclavedbg.errors import EifError


def read_folder(path: Path, *, keep_modes: bool = False) -> tuple[Tree, list[str]]:
    """A folder's tree, and notes on what of it cannot be in an image (devices, sockets); contents are read later.

    Two check-outs of the same files give the same tree: everything is root's, hard links are files of their own,
    and permissions are 755 for folders and for what its owner may execute, 644 for the rest (set-user-ID,
    set-group-ID and sticky bits stay); `keep_modes` takes them as they are. Raises EifError for what cannot be
    read.
    """
    tree = Tree()
    notes = []
    if not os.path.isdir(path):
        raise EifError(f"the root folder {path} is not a folder; name one that holds the enclave's files")
    waiting = [(path, "")]
    while waiting:
        directory, prefix = waiting.pop()
        for entry, name in _entries(directory):
            inside = f"{prefix}{name}"
            try:
                node = _node(Path(entry.path), entry.stat(follow_symlinks=False), keep_modes=keep_modes)
            except OSError as error:
                raise _unreadable(entry.path, error) from error
            if node is None:
                notes.append(f"{inside} is a device or socket and was left out")
                continue
            tree.add(inside, node)
            if node.children is not None:
                waiting.append((Path(entry.path), f"{inside}/"))
    return tree, sorted(notes)


def _entries(directory: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                # The same string in every locale.
                yield entry, os.fsencode(entry.name).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise _unreadable(directory, error) from error


def _node(path: Path, status: os.stat_result, *, keep_modes: bool) -> Node | None:
    mode = status.st_mode
    permissions = stat.S_IMODE(mode)
    if stat.S_ISLNK(mode):
        return symlink(os.fsencode(os.readlink(path)))
    if stat.S_ISDIR(mode):
        sticky = 0o1777 if mode & stat.S_ISVTX else 0o755
        return folder(permissions if keep_modes else sticky)
    if stat.S_ISREG(mode):
        plain = 0o755 if mode & stat.S_IXUSR else 0o644
        return file(
            InFile(path, status.st_size),
            permissions if keep_modes else plain | mode & (stat.S_ISUID | stat.S_ISGID),
        )
    if stat.S_ISFIFO(mode):
        return Node(stat.S_IFIFO | (permissions if keep_modes else 0o644))
    return None


def _unreadable(path: Path | str, error: OSError) -> EifError:
    return EifError(f"cannot read {path}: {error.strerror}; check its permissions")
