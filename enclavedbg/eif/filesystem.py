"""The files inside an image's ramdisks: listed in one pass, read where they lie, nothing unpacked to disk.

    system = read_filesystem(image.ramdisks)
    system.tree.lookup("/init").mode
    system.read("/cmd")

`system.ramdisks` has every entry in archive order, `system.tree` the root file system as the kernel would make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from enclavedbg.eif.archives import (
    DEFAULT_LIMITS,
    Archive,
    Entry,
    Limits,
    Ramdisk,
    RamdiskReader,
    read_ramdisk,
)
from enclavedbg.eif.tree import Missing, Node, Passed, Tree, build_tree
from enclavedbg.errors import EifError

__all__ = [
    "DEFAULT_LIMITS",
    "Archive",
    "Entry",
    "FileSystem",
    "Limits",
    "Missing",
    "Node",
    "Passed",
    "Ramdisk",
    "RamdiskReader",
    "Tree",
    "build_tree",
    "read_filesystem",
    "read_ramdisk",
]

READ_LIMIT = 64 << 20
"""Bytes that `read` gives at most unless told otherwise."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """All ramdisks of an image, and `tree`, what they make together."""

    ramdisks: tuple[Ramdisk, ...]
    tree: Tree

    @property
    def unpacked(self) -> int:
        """Bytes of all archives, unpacked: somewhat more than the files, which lie in the enclave's memory."""
        return sum(ramdisk.unpacked for ramdisk in self.ramdisks)

    def pieces(self, node: Node) -> Iterator[memoryview]:
        """A regular file's contents in pieces. Raises EifError when the node is none."""
        if not node.is_file:
            kind = "a directory" if node.is_directory else "a symbolic link" if node.is_symlink else "a special file"
            raise EifError(f"this is {kind}, expected a regular file; name a file")
        return iter(()) if node.content is None else self.ramdisks[node.content.ramdisk].contents(node.content)

    def read(self, path: str | Node, *, root: str = "/", limit: int = READ_LIMIT) -> bytes:
        """A regular file's contents, symbolic links followed, `root` as for Tree.lookup.

        Raises Missing, and EifError when it is no regular file or has more than `limit` bytes.
        """
        node = self.tree.lookup(path, root=root) if isinstance(path, str) else path
        if node.is_file and node.size > limit:
            raise EifError(f"the file has {node.size} bytes, at most {limit} are read here")
        return b"".join(self.pieces(node))

    def read_many(self, nodes: Iterable[Node], *, head: int) -> dict[Node, bytes]:
        """The first `head` bytes of each of several files, each archive gone through once, however many files."""
        found = {node: b"" for node in nodes if node.is_file}
        wanted: dict[tuple[int, int], list[Node]] = {}
        for node in found:
            if node.content is not None:
                wanted.setdefault(node.content.key, []).append(node)
        for ramdisk in self.ramdisks:
            last = max((order for index, order in wanted if index == ramdisk.index), default=-1)
            if last < 0:
                continue
            for entry, contents in ramdisk.stream():
                for node in wanted.get(entry.key, ()):
                    found[node] = _head(contents, head)
                if entry.order >= last:
                    break
        return found


def _head(contents: Iterator[memoryview], size: int) -> bytes:
    data = bytearray()
    for piece in contents:
        data += piece[: size - len(data)]
        if len(data) >= size:
            break
    return bytes(data)


def read_filesystem(
    ramdisks: Sequence[bytes | memoryview], *, bases: Sequence[int] | None = None, limits: Limits = DEFAULT_LIMITS
) -> FileSystem:
    """List the ramdisks of an image, in one pass over each, and build the tree they make.

    `bases` says where each one's data lies in the file, for the offsets of errors. Raises EifError when a ramdisk is
    damaged, is no cpio archive, or passes one of `limits`.
    """
    listed = []
    phase = 0
    for index, data in enumerate(ramdisks):
        base = None if bases is None else bases[index]
        listed.append(read_ramdisk(data, index=index, base=base, phase=phase, limits=limits))
        phase += len(data)
    return FileSystem(tuple(listed), build_tree(listed))
