"""Applies a container image's layers to a tree, whiteouts and all.

Source: OCI image-spec, layer.md. What it leaves open is done as containerd does it.
"""

from __future__ import annotations

import stat

from enclavedbg.eif.build.contents import InMemory
from enclavedbg.eif.build.tarball import Member, read_members
from enclavedbg.eif.build.tree import Node, Tree, folder, symlink
from enclavedbg.errors import EifError

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
NOTE_LIMIT = 20


def apply_layer(tree: Tree, data: memoryview, *, what: str, notes: list[str]) -> None:
    """Change the tree as a layer, a plain tar archive, says; `what` names it in errors, `notes` get what is lost.

    Whiteouts hide what the layers below have, wherever in the archive they come. Devices are left out: devtmpfs has
    them. Owners and permissions stay. Raises EifError for a damaged archive and for names that lead out of the tree.
    """
    members = []
    for member in read_members(data, what=what):
        path, name = _split(member.name)
        try:
            if name == OPAQUE:
                tree.clear(path)
            elif name.startswith(WHITEOUT + WHITEOUT):
                continue  # aufs' own notes
            elif name.startswith(WHITEOUT):
                hidden = name.removeprefix(WHITEOUT)
                if hidden in ("", ".", ".."):
                    raise EifError(f"{member.name[:80]!r} hides no file; build it again")
                tree.remove(f"{path}/{hidden}" if path else hidden)
            else:
                members.append(member)
        except EifError as error:
            raise EifError(f"{what}: {error}") from error
    for member in members:
        try:
            _add(tree, member, notes)
        except EifError as error:
            raise EifError(f"{what}: {error}") from error


def _add(tree: Tree, member: Member, notes: list[str]) -> None:
    if member.capabilities:
        _note(notes, f"{member.name} loses its capabilities, which a ramdisk cannot hold")
    match member.kind:
        case "file":
            contents = InMemory(member.data)
            tree.add(member.name, Node(stat.S_IFREG | member.mode, member.uid, member.gid, contents))
        case "folder":
            tree.add(member.name, folder(member.mode, uid=member.uid, gid=member.gid))
        case "symlink":
            target = member.target.encode("utf-8", "surrogateescape")
            tree.add(member.name, symlink(target, uid=member.uid, gid=member.gid))
        case "link":
            tree.link(member.name, member.target)
        case "fifo":
            tree.add(member.name, Node(stat.S_IFIFO | member.mode, member.uid, member.gid))
        case _:
            _note(notes, f"{member.name} is a device and was left out")


def _note(notes: list[str], text: str) -> None:
    if len(notes) < NOTE_LIMIT:
        notes.append(text)
    elif len(notes) == NOTE_LIMIT:
        notes.append("and more of these")


def _split(path: str) -> tuple[str, str]:
    folder_path, _, name = path.rstrip("/").rpartition("/")
    return folder_path, name
