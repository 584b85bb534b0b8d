"""The two ramdisks of an image as nitro-cli lays them out, written piece by piece.

The first boots: dev, init, nsm.ko. The second has the application: its file system below rootfs/, and the files
cmd and env. Both are plain cpio archives. Source: aws-nitro-enclaves-sdk-bootstrap and nitro-cli's use of linuxkit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enclavedbg.eif.build.contents import PIECE, Contents, InMemory
from enclavedbg.eif.build.tree import Tree, file, folder
from enclavedbg.eif.cpio import TRAILER, CpioEntry, encode_head
from enclavedbg.errors import EifError

APPLICATION_FOLDERS = ("dev", "proc", "run", "sys", "tmp", "var")
"""Where init mounts: made where the application's file system lacks them."""
HEADS_LIMIT = 512 << 20
"""Bytes of all headers and names, which are in memory at once: a million files with paths of 400 bytes."""
FILE_SIZE_MAX = (1 << 32) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """A cpio archive that is put together while it is read; `size` in bytes."""

    parts: Sequence[tuple[bytes, Contents]]
    trailer: bytes
    size: int

    def pieces(self) -> Iterator[bytes | memoryview]:
        # Small pieces are joined: an archive has many, and each write, CRC and digest costs.
        small = bytearray()
        for head, contents in self.parts:
            small += head
            for piece in contents.pieces():
                if len(piece) < PIECE // 16:
                    small += piece
                else:
                    yield bytes(small)
                    small.clear()
                    yield piece
            small += bytes(-contents.size % 4)
            if len(small) >= PIECE:
                yield bytes(small)
                small.clear()
        yield bytes(small) + self.trailer


def archive(tree: Tree, *, mtime: int = 0) -> Archive:
    """A tree as a cpio archive (newc): equal trees give equal bytes, whatever they were read from.

    Names are in byte order, folders first; every `mtime` is the one given (seconds since 1970); inode numbers
    count from 1, hard links share theirs and the last name carries the data, as in the archives of the kernel's
    build. Raises EifError for what the format cannot hold.
    """
    names = Counter(id(node) for _, node in tree.walk())
    left = Counter(names)
    numbers: dict[int, int] = {}
    parts: list[tuple[bytes, Contents]] = []
    size = heads = 0
    for path, node in tree.walk():
        key = id(node)
        ino = numbers.setdefault(key, len(numbers) + 1)
        left[key] -= 1
        contents = node.contents if not left[key] else InMemory(b"")
        if contents.size > FILE_SIZE_MAX:
            raise EifError(f"{path} has {contents.size} bytes, a ramdisk takes files of at most {FILE_SIZE_MAX}")
        nlink = 2 if node.children is not None else names[key]
        entry = CpioEntry(path, node.mode, uid=node.uid, gid=node.gid, mtime=mtime, nlink=nlink)
        head = encode_head(entry, ino=ino, size=contents.size)
        heads += len(head)
        if heads > HEADS_LIMIT:
            raise EifError(f"the names of all files take more than {HEADS_LIMIT} bytes; build of fewer or shorter ones")
        parts.append((head, contents))
        size += len(head) + contents.size + -contents.size % 4
    trailer = encode_head(CpioEntry(TRAILER, 0), ino=0, size=0)
    return Archive(parts, trailer, size + len(trailer))


def bootstrap_ramdisk(init: Contents, *, nsm: Contents | None = None, mtime: int = 0) -> Archive:
    """The first ramdisk: the program that boots the enclave, and the NSM driver where the kernel has it not."""
    tree = Tree()
    tree.add("dev", folder())
    tree.add("init", file(init, 0o755))
    if nsm is not None:
        tree.add("nsm.ko", file(nsm, 0o755))
    return archive(tree, mtime=mtime)


def application_ramdisk(root: Tree, *, command: bytes, environment: bytes, mtime: int = 0) -> Archive:
    """The second ramdisk: the application's file system, and its /cmd and /env (`enclavedbg.eif.build.command`).

    The folders that init needs are added to `root` where they are missing.
    """
    assert root.root.children is not None
    for name in APPLICATION_FOLDERS:
        if name not in root.root.children:
            root.add(name, folder())
    tree = Tree()
    tree.add("cmd", file(InMemory(command)))
    tree.add("env", file(InMemory(environment)))
    assert tree.root.children is not None
    tree.root.children["rootfs"] = root.root
    return archive(tree, mtime=mtime)
