"""The root file system that Linux makes of ramdisk entries: what is there when /init starts.

Follows init/initramfs.c step by step: parents are not created, a later entry replaces an earlier one of another
type and writes into one of the same type, entries with two or more links share an inode within one archive, paths
go through symbolic links that earlier entries made. What the kernel passes over in silence is noted in `problems`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from enclavedbg.eif.archives import Entry, Ramdisk
from enclavedbg.errors import EifError

COMPONENT_MAX = 255
"""Linux's NAME_MAX: a longer name in a path cannot exist."""
PATH_MAX = 4096
LINKS_MAX = 40
"""Symbolic links that Linux follows in one path."""
DEPTH_MAX = 256
"""Directories in one another; Linux has no limit, images have some 40."""
STEPS_PER_ENTRY = 200
"""Path components that may be walked per entry on average; images need some ten."""

_DIRECTORY_ENDS = ("/", "/.")
"""What a path ends in that can only be a directory's."""
_SPECIAL = (stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)


@dataclass(slots=True, eq=False)
class Node:
    """An inode. `entry` is the entry that last set owner and mode (None for the kernel's own), `content` the one whose
    contents a file holds (None: it is empty); `links` counts a file's names; `children` are a directory's.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: str = ""
    rdev: tuple[int, int] = (0, 0)
    links: int = 1
    entry: Entry | None = None
    content: Entry | None = None
    children: dict[str, Node] = field(default_factory=dict)
    parent: Node | None = None
    depth: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_executable(self) -> bool:
        """A regular file with any execute bit, which is what root needs to run it."""
        return self.is_file and bool(self.mode & 0o111)


@dataclass(frozen=True, slots=True)
class Passed:
    """An entry that the kernel does not unpack, or not as written, and why; `entry` None concerns the whole."""

    entry: Entry | None
    why: str


class Missing(EifError):
    """A path that leads nowhere in the tree."""


class Tree:
    """A root file system; `problems` says what of the ramdisks did not get into it.

    With `kernel`, it starts as the default initramfs built into every kernel leaves it: /dev, /dev/console, /root.
    With `parents`, directories that entries need are made for them, which the kernel does not.
    """

    def __init__(self, *, kernel: bool = True, parents: bool = False) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.root.parent = self.root
        self.problems: list[Passed] = []
        self._links: dict[tuple[int, int, int, int], str] = {}
        self._scope: tuple[int, int] = (0, 0)
        self._steps = 1_000_000
        self._parents = parents
        if kernel:
            # Linux usr/default_cpio_list.
            dev = _add(self.root, "dev", Node(stat.S_IFDIR | 0o755))
            _add(dev, "console", Node(stat.S_IFCHR | 0o600, rdev=(5, 1)))
            _add(self.root, "root", Node(stat.S_IFDIR | 0o700))

    def lookup(self, path: str, *, follow: bool = True, root: str = "/") -> Node:
        """The node at a path, through symbolic links; the last one is followed too unless `follow` is False.

        `root` is where `/` is for this, as after a chroot. Raises Missing, which says what was not found.
        """
        self._steps = max(self._steps, 1_000_000)
        top = self.root if root in ("", "/") else self.lookup(root)
        node, why = self._resolve(path, follow=follow, root=top)
        if node is None:
            raise Missing(f"{path}: {why}")
        return node

    def exists(self, path: str, *, root: str = "/") -> bool:
        """Whether a path leads to something, symbolic links followed."""
        try:
            self.lookup(path, root=root)
        except Missing:
            return False
        return True

    def walk(self, top: Node | None = None, prefix: str = "") -> Iterator[tuple[str, Node]]:
        """Every path below a directory (its own as `prefix` or `/`) and its node, parents first, names sorted."""
        first = self.root if top is None else top
        pending = [(prefix, first)]
        while pending:
            path, node = pending.pop()
            yield path or "/", node
            pending += [(f"{path}/{name}", node.children[name]) for name in sorted(node.children, reverse=True)]

    def add(self, entry: Entry) -> None:
        """Unpack one entry as the kernel does."""
        self._steps += STEPS_PER_ENTRY
        scope = (entry.ramdisk, entry.scope)
        if scope != self._scope:
            if entry.scope > 0 or entry.ramdisk == self._scope[0]:
                self._links.clear()
            self._scope = scope
        why = self._unpack(entry)
        if why:
            self.problems.append(Passed(entry, why))

    def end_of_ramdisk(self, ramdisk: Ramdisk) -> None:
        """A trailer at the end of a ramdisk ends the scope of hard links."""
        if ramdisk.trailers > self._scope[1]:
            self._links.clear()

    def _unpack(self, entry: Entry) -> str | None:
        kind = stat.S_IFMT(entry.mode)
        if entry.size and kind not in (stat.S_IFREG, stat.S_IFLNK):
            return "it has contents though it is no file; Linux passes over it"
        parent, name, why = self._place(entry.name)
        if parent is None:
            return f"{why}; Linux passes over it"
        old = parent.children.get(name) if name else parent
        if old is not None and old.is_symlink and entry.name.endswith("/"):
            return self._through(entry)
        if old is not None and (kind == stat.S_IFLNK or stat.S_IFMT(old.mode) != kind):
            if old.is_directory and (old.children or not name):
                return "a directory that is not empty is in its place; Linux passes over it"
            _remove(parent, name, old)
            old = None
        if kind == stat.S_IFDIR:
            return self._directory(entry, parent, name, old)
        if not name or entry.name.endswith("/"):
            return "the name is a directory's; Linux passes over it"
        if kind == stat.S_IFREG:
            return self._file(entry, parent, name, old)
        if kind == stat.S_IFLNK:
            if not entry.target:
                return "a symbolic link to nothing; Linux passes over it"
            _add(parent, name, _set(Node(entry.mode, size=len(_raw(entry.target)), target=entry.target), entry))
            return None
        if kind not in _SPECIAL:
            return f"type {kind:#o} is unknown; Linux passes over it"
        linked, refusal = self._link(entry, parent, name)
        if linked is None and refusal is None:
            if old is not None and name in parent.children:
                # mknod fails with EEXIST, but owner and mode are set.
                _set(old, entry)
                return "it is there already"
            _add(parent, name, _set(Node(entry.mode, rdev=entry.rdev), entry))
        return refusal

    def _through(self, entry: Entry) -> str | None:
        """An entry `name/` where there is a link: a slash at the end makes even lstat follow it."""
        node, _ = self._resolve(entry.name, follow=True, root=self.root)
        if node is None or not entry.is_directory:
            return "a symbolic link is in its place; Linux passes over it"
        _set(node, entry)
        return None

    def _directory(self, entry: Entry, parent: Node, name: str, old: Node | None) -> str | None:
        if old is None:
            if parent.depth >= DEPTH_MAX:
                return f"more than {DEPTH_MAX} directories in one another; passed over here, though not by Linux"
            old = _add(parent, name, Node(entry.mode, links=2, depth=parent.depth + 1))
        _set(old, entry)
        return None

    def _file(self, entry: Entry, parent: Node, name: str, old: Node | None) -> str | None:
        node, why = self._link(entry, parent, name)
        if why:
            return why
        fresh = node is None
        if node is None:
            node = parent.children.get(name) or _add(parent, name, Node(entry.mode))
        _set(node, entry)
        if fresh or entry.size:
            node.size = entry.size
            node.content = entry if entry.size else None
        return None

    def _link(self, entry: Entry, parent: Node, name: str) -> tuple[Node | None, str | None]:
        """The inode that this entry is another name of, linked in; None when it is the first, or not linked at all."""
        if entry.nlink < 2:
            return None, None
        key = (*entry.dev, entry.ino, stat.S_IFMT(entry.mode))
        first = self._links.get(key)
        if first is None:
            self._links[key] = entry.name
            return None, None
        old = parent.children.get(name)
        if old is not None and not (old.is_directory and old.children):
            _remove(parent, name, old)
        node, why = self._resolve(first, follow=False, root=self.root)
        if node is None or node.is_directory:
            return None, f"hard link to {first[:60]!r}: {why or 'a directory'}; Linux passes over it"
        if name in parent.children:
            return None, "its name is taken; Linux passes over it"
        parent.children[name] = node
        node.links += 1
        return node, None

    def _place(self, path: str) -> tuple[Node | None, str, str]:
        """The directory that holds the last name of a path, and that name; an empty one for `.`, `..` and `/`."""
        raw = path.rstrip("/")
        head, _, name = raw.rpartition("/")
        if not path:
            return None, "", "an empty name"
        if len(_raw(path)) >= PATH_MAX:
            return None, "", f"a path of {PATH_MAX} bytes or more"
        if name in ("", ".", ".."):
            node, why = self._resolve(path, follow=True, root=self.root)
            return node, "", why
        if len(_raw(name)) > COMPONENT_MAX:
            return None, "", f"a name of more than {COMPONENT_MAX} bytes"
        node, why = self._resolve(head or "/", follow=True, root=self.root, make=self._parents)
        if node is not None and not node.is_directory:
            return None, "", f"{head[:60]!r} is not a directory"
        return node, name, why

    def _resolve(self, path: str, *, follow: bool, root: Node, make: bool = False) -> tuple[Node | None, str]:
        """Walk a path from `root`; the node, or None and why not. With `make`, missing directories are made."""
        node = root
        pending = [part for part in reversed(path.split("/")) if part and part != "."]
        must_be_directory = path.endswith(_DIRECTORY_ENDS)
        followed = 0
        while pending:
            self._steps -= 1
            if self._steps < 0:
                raise EifError("the ramdisk's paths are tangled beyond reason (links in links); build it again")
            part = pending.pop()
            if not node.is_directory:
                return None, "a part of the path is not a directory"
            if part == "..":
                node = node if node is root else node.parent or root
                continue
            child = node.children.get(part)
            if child is None and make and node.depth < DEPTH_MAX and len(_raw(part)) <= COMPONENT_MAX:
                # Costs as much as many steps, so that names of many parts cannot fill the memory.
                self._steps -= STEPS_PER_ENTRY // 4
                child = _add(node, part, Node(stat.S_IFDIR | 0o755, links=2, depth=node.depth + 1))
            if child is None:
                return None, f"there is no {part[:60]!r}"
            if child.is_symlink and (pending or follow or must_be_directory):
                followed += 1
                if followed > LINKS_MAX:
                    return None, "too many levels of symbolic links"
                must_be_directory |= not pending and child.target.endswith(_DIRECTORY_ENDS)
                if child.target.startswith("/"):
                    node = root
                parts = [part for part in reversed(child.target.split("/")) if part and part != "."]
                self._steps -= len(parts)
                pending += parts
            else:
                node = child
        if must_be_directory and not node.is_directory:
            return None, "not a directory"
        return node, ""


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _set(node: Node, entry: Entry) -> Node:
    node.mode, node.uid, node.gid, node.mtime, node.entry = entry.mode, entry.uid, entry.gid, entry.mtime, entry
    return node


def _add(parent: Node, name: str, node: Node) -> Node:
    parent.children[name] = node
    if node.is_directory:
        node.parent = parent
    return node


def _remove(parent: Node, name: str, node: Node) -> None:
    del parent.children[name]
    node.links -= 1


def build_tree(ramdisks: Iterable[Ramdisk], *, kernel: bool = True) -> Tree:
    """The root file system after all `ramdisks` in order, as one initramfs. Raises EifError for hostile tangles.

    Where the kernel would stop unpacking, because a plain archive does not begin at a multiple of four bytes of the
    whole, so does this, and says so in `problems`.
    """
    tree = Tree(kernel=kernel)
    for ramdisk in ramdisks:
        entries = iter(ramdisk.entries)
        stop = next((n for n, a in enumerate(ramdisk.archives) if _misplaced(ramdisk, a.offset, a.compression)), None)
        for entry in entries:
            if entry.archive == stop:
                break
            tree.add(entry)
        if stop is not None:
            at = ramdisk.phase + ramdisk.archives[stop].offset
            why = (
                f"ramdisk {ramdisk.index}: a plain cpio archive begins at byte {at:#x} of the initramfs, no multiple "
                "of 4, and Linux stops unpacking there; pad what is before it"
            )
            tree.problems.append(Passed(None, why))
            break
        tree.end_of_ramdisk(ramdisk)
        tree.problems += [
            Passed(None, f"ramdisk {ramdisk.index}: {what}; Linux passes over it") for what in ramdisk.skipped
        ]
    return tree


def tree_of(ramdisk: Ramdisk) -> Tree:
    """The files of one ramdisk by itself: without the kernel's own, and with the directories that others bring."""
    tree = Tree(kernel=False, parents=True)
    for entry in ramdisk.entries:
        tree.add(entry)
    tree.problems += [Passed(None, f"ramdisk {ramdisk.index}: {what}") for what in ramdisk.skipped]
    return tree


def _misplaced(ramdisk: Ramdisk, offset: int, compression: str | None) -> bool:
    return compression is None and (ramdisk.phase + offset) % 4 != 0
