"""Paths inside the ramdisks, made canonical, and the contents of several files in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from enclavedbg.eif.filesystem import FileSystem
from enclavedbg.eif.tree import LINKS_MAX, Missing, Node, Tree
from enclavedbg.errors import EifError

READ_LIMIT = 256 << 20
"""Bytes of one compressed file that are unpacked to look into it; what a plain archive holds is not copied."""


@dataclass(frozen=True, slots=True)
class Located:
    """A file and its path without symbolic links, below the root that it was looked for in."""

    path: str
    node: Node

    @property
    def folder(self) -> str:
        """The folder that it lies in."""
        return self.path.rpartition("/")[0] or "/"


def locate(tree: Tree, path: str, *, root: str = "/") -> Located:
    """Follow a path through symbolic links, `root` as for Tree.lookup. Raises Missing, or EifError for tangles."""
    top = tree.lookup(root)
    given = path
    for _ in range(LINKS_MAX + 1):
        head, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            node = tree.lookup(path, root=root)
            return Located(_path_of(node, top), node)
        folder = tree.lookup(f"{head}/", root=root)
        child = folder.children.get(name)
        if child is None:
            raise Missing(f"{given}: there is no {name[:60]!r} in {head[:200] or '/'}")
        inside = _path_of(folder, top).rstrip("/")
        if not child.is_symlink:
            return Located(f"{inside}/{name}", child)
        path = child.target if child.target.startswith("/") else f"{inside}/{child.target}"
    raise Missing(f"{given}: too many levels of symbolic links")


def find(tree: Tree, path: str, *, root: str = "/") -> Located | None:
    """As `locate`, None when the path leads nowhere."""
    try:
        return locate(tree, path, root=root)
    except EifError:
        return None


def _path_of(node: Node, top: Node) -> str:
    """The path of a folder below `top`."""
    names = []
    while node is not top and node.parent is not None and node.parent is not node:
        parent = node.parent
        names.append(next((name for name, child in parent.children.items() if child is node), "?"))
        node = parent
    return "/" + "/".join(reversed(names))


def contents(
    system: FileSystem, nodes: Iterable[Node], *, limit: int = READ_LIMIT
) -> Iterator[tuple[Node, memoryview]]:
    """Each regular file's contents, up to `limit` bytes where they are compressed; one at a time in memory."""
    packed: dict[tuple[int, int], list[Node]] = {}
    for node in dict.fromkeys(nodes):
        entry = node.content
        if not node.is_file:
            continue
        if entry is None:
            yield node, memoryview(b"")
            continue
        ramdisk = system.ramdisks[entry.ramdisk]
        archive = ramdisk.archives[entry.archive]
        if archive.compression is None:
            start = archive.offset + entry.offset
            yield node, ramdisk.data[start : start + entry.size]
        else:
            packed.setdefault(entry.key, []).append(node)
    for ramdisk in system.ramdisks:
        last = max((order for index, order in packed if index == ramdisk.index), default=-1)
        if last < 0:
            continue
        for entry, pieces in ramdisk.stream():
            if entry.key in packed:
                data = _joined(pieces, limit)
                for node in packed[entry.key]:
                    yield node, data
            if entry.order >= last:
                break


def _joined(pieces: Iterator[memoryview], limit: int) -> memoryview:
    data = bytearray()
    for piece in pieces:
        data += piece[: limit - len(data)]
        if len(data) >= limit:
            break
    return memoryview(bytes(data))
