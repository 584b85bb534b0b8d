"""The root file system that goes into an image: a tree in memory, so that no name in it can leave it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from enclavedbg.eif.build.contents import Contents, InMemory
from enclavedbg.errors import EifError

NODE_LIMIT = 1_000_000
NAME_LIMIT = 255
"""Linux's NAME_MAX, in bytes: no file system of its takes a longer one."""
LINK_LIMIT = 40
"""Symbolic links that Linux follows in one path."""

NOTHING = InMemory(b"")


@dataclass(slots=True, eq=False)
class Node:
    """A file, folder, symbolic link or FIFO; one with several names in the tree is a hard link.

    `mode` has the type bits; `contents` are a file's bytes or a link's target; `children` are a folder's, by name
    (bytes that are not UTF-8 as surrogates), None for everything else.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    contents: Contents = NOTHING
    children: dict[str, Node] | None = None


def folder(mode: int = 0o755, *, uid: int = 0, gid: int = 0) -> Node:
    """A new empty folder."""
    return Node(stat.S_IFDIR | mode, uid, gid, children={})


def file(contents: Contents, mode: int = 0o644) -> Node:
    """A regular file of root's."""
    return Node(stat.S_IFREG | mode, contents=contents)


def symlink(target: bytes, *, uid: int = 0, gid: int = 0) -> Node:
    """A symbolic link, whose target is nobody's business until a path leads through it."""
    return Node(stat.S_IFLNK | 0o777, uid, gid, InMemory(target))


@dataclass(slots=True)
class Tree:
    """A root folder and what is in it. Paths are relative to it; '..' and absolute ones raise EifError."""

    root: Node = field(default_factory=folder)
    _created: int = 0

    def add(self, path: str, node: Node) -> None:
        """Put a node at a path, in the place of what was there; folders on the way are made.

        A folder that meets a folder gives it its mode and owner and leaves its contents. Symbolic links on the way
        are followed inside the tree. Raises EifError for a path that leads out of the tree or through a file.
        """
        parts = split_path(path)
        if not parts:
            if node.children is None:
                raise EifError(f"{path!r} is the root folder, and may be nothing else; build the layer again")
            self._take_over(self.root, node)
            return
        siblings = self._folder(parts[:-1], path=path)
        old = siblings.get(parts[-1])
        if old is not None and old.children is not None and node.children is not None:
            self._take_over(old, node)
            return
        self._count()
        siblings[parts[-1]] = node

    def link(self, path: str, target: str) -> None:
        """Give what is at `target` a second name. Raises EifError when nothing is there, or a folder."""
        node = self.find(target)
        if node is None or node.children is not None:
            found = "a folder" if node else "nothing"
            raise EifError(f"{path!r} is a hard link to {target!r}, where {found} is; expected a file before it")
        self.add(path, node)

    def find(self, path: str) -> Node | None:
        """What is at a path, None if nothing; a link at its end is not followed. Raises EifError as `add` does."""
        parts = split_path(path)
        if not parts:
            return self.root
        siblings = self._existing_folder(parts[:-1], path=path)
        return None if siblings is None else siblings.get(parts[-1])

    def remove(self, path: str) -> None:
        """Remove what is at a path, if anything is. Raises EifError as `add` does."""
        parts = split_path(path)
        siblings = self._existing_folder(parts[:-1], path=path)
        if siblings is not None:
            siblings.pop(parts[-1], None)

    def clear(self, path: str) -> None:
        """Remove everything in the folder at a path, if one is there."""
        children = self._existing_folder(split_path(path), path=path)
        if children is not None:
            children.clear()

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every node but the root with its path, folders before their contents, names in byte order."""
        waiting = [("", self.root)]
        while waiting:
            path, node = waiting.pop()
            if path:
                yield path, node
            if node.children:
                waiting += [
                    (f"{path}/{name}" if path else name, node.children[name])
                    for name in sorted(node.children, key=_encoded, reverse=True)
                ]

    def _take_over(self, old: Node, new: Node) -> None:
        old.mode, old.uid, old.gid = new.mode, new.uid, new.gid

    def _count(self) -> None:
        self._created += 1
        if self._created > NODE_LIMIT:
            raise EifError(f"more than {NODE_LIMIT} files and folders; build an image of fewer")

    def _folder(self, parts: list[str], *, path: str) -> dict[str, Node]:
        children = self._descend(parts, path=path, create=True)
        assert children is not None, "created"
        return children

    def _existing_folder(self, parts: list[str], *, path: str) -> dict[str, Node] | None:
        return self._descend(parts, path=path, create=False)

    def _descend(self, parts: list[str], *, path: str, create: bool) -> dict[str, Node] | None:
        """The children of the folder at `parts`; without `create` None when it is not there or no folder."""
        trail = [self.root]
        waiting = parts[::-1]
        links = 0
        while waiting:
            name = waiting.pop()
            children = trail[-1].children
            assert children is not None, "only folders are on the trail"
            if name == "..":  # of a link: names themselves have none
                if len(trail) == 1:
                    raise EifError(f"{path!r} leads through a symbolic link out of the root folder; correct the link")
                trail.pop()
                continue
            node = children.get(name)
            if node is None and create:
                self._count()
                node = children[name] = folder()
            if node is None:
                return None
            if stat.S_ISLNK(node.mode):
                links += 1
                if links > LINK_LIMIT:
                    raise EifError(f"{path!r} leads through more than {LINK_LIMIT} symbolic links; is there a loop?")
                target = b"".join(node.contents.pieces()).decode("utf-8", "surrogateescape")
                if target.startswith("/"):
                    trail = [self.root]
                waiting += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            elif node.children is not None:
                trail.append(node)
            elif create:
                raise EifError(f"{path!r} leads through {name!r}, which is no folder; build the layer again")
            else:
                return None
        return trail[-1].children


def split_path(path: str) -> list[str]:
    """The names in a relative path. Raises EifError for one that is absolute, has '..', or cannot be in Linux."""
    if path.startswith("/"):
        raise EifError(f"the name {path[:80]!r} is absolute, expected one relative to the root folder")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise EifError(f"the name {path[:80]!r} has '..' in it, which leads out of its folder; leave it out")
        if "\0" in part or len(_encoded(part)) > NAME_LIMIT:
            raise EifError(f"the name {path[:80]!r} has a NUL, or a part of more than {NAME_LIMIT} bytes; shorten it")
    return parts


def _encoded(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise EifError(f"the name {name[:80]!r} cannot be written: {error.reason}") from error
