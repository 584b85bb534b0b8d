"""The shared libraries of a program, looked for as its dynamic linker will look.

Sources: ld.so(8) of glibc, musl's ldso/dynlink.c. glibc knows the folders of /etc/ld.so.conf only through
/etc/ld.so.cache, so a library elsewhere is not found when the cache does not name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from enclavedbg.eif.filesystem import FileSystem
from enclavedbg.eif.lint.files import Located, contents, find
from enclavedbg.eif.program import Program, read_program
from enclavedbg.eif.tree import Node
from enclavedbg.errors import EifError

OBJECTS_MAX = 1000
LOOKUPS_MAX = 50_000
"""Paths that are tried for one program; real ones need some hundred."""
CACHE_LIMIT = 16 << 20
HINT_DEPTH = 200_000
"""Files that are gone through to say where a missing library lies instead."""

_TRIPLETS = {
    ("x86_64", 64): "x86_64-linux-gnu",
    ("aarch64", 64): "aarch64-linux-gnu",
    ("i386", 32): "i386-linux-gnu",
    ("arm", 32): "arm-linux-gnueabihf",
}
# Names that musl's linker is itself: libc.musl-x86_64.so.1, libm.so.6 ...
_MUSL_OWN = re.compile(r"lib(c|pthread|rt|m|dl|util|xnet)\.")
_CACHED = re.compile(rb"\0(/[^\0]{1,4000})(?=\0)")


@dataclass(frozen=True, slots=True)
class MissingLibrary:
    """A library that is nowhere: its name, the path of the object that needs it, and where it lies instead."""

    name: str
    needed_by: str
    elsewhere: str | None
    wrong: str | None


@dataclass
class _Object:
    """A program or library that is loaded, and the one that needed it first."""

    path: str
    folder: str
    program: Program
    loader: _Object | None = None


@dataclass
class LibrarySearch:
    """A search below `root` with the `environment` of the program; `missing` has what was not found, after `run`."""

    system: FileSystem
    root: str
    library_path: tuple[str, ...] = ()
    missing: list[MissingLibrary] = field(default_factory=list)
    gave_up: bool = False
    _programs: dict[Node, Program | None] = field(default_factory=dict)
    _cache: dict[str, list[str]] | None = None
    _lookups: int = 0

    def run(self, located: Located, program: Program) -> list[MissingLibrary]:
        """All libraries that the program and its libraries need and that are not there. Raises EifError for tangles."""
        is_musl = "ld-musl-" in (program.interpreter or "")
        loaded: set[str] = set()
        level = [_Object(located.path, located.folder, program)]
        objects = 1
        while level:
            wanted = []
            for loader in level:
                for name in loader.program.needed:
                    if name not in loaded and not (is_musl and _MUSL_OWN.match(name)):
                        loaded.add(name)
                        wanted.append((name, loader, list(self._candidates(name, loader, is_musl=is_musl))))
            self._read([found.node for _, _, candidates in wanted for found in candidates])
            level = []
            for name, loader, candidates in wanted:
                chosen = next((c for c in candidates if self._fits(c.node, program)), None)
                if chosen is None:
                    self._miss(name, loader, candidates)
                    continue
                needs = self._programs[chosen.node]
                assert needs is not None
                if needs.soname:
                    loaded.add(needs.soname)
                level.append(_Object(chosen.path, chosen.folder, needs, loader))
            objects += len(level)
            if objects > OBJECTS_MAX or self.gave_up:
                self.gave_up = True
                break
        return self.missing

    def _miss(self, name: str, loader: _Object, candidates: Sequence[Located]) -> None:
        wrong = None
        if candidates:
            found = self._programs[candidates[0].node]
            kind = "damaged or no ELF file" if found is None else f"for {found.machine}, {found.bits} bits"
            wrong = f"{candidates[0].path} is {kind}"
        elif self.gave_up:
            return
        self.missing.append(MissingLibrary(name, loader.path, None if wrong else self._elsewhere(name), wrong))

    def _fits(self, node: Node, program: Program) -> bool:
        found = self._programs.get(node)
        return found is not None and (found.machine, found.bits) == (program.machine, program.bits)

    def _read(self, nodes: Sequence[Node]) -> None:
        for node, data in contents(self.system, [node for node in nodes if node not in self._programs]):
            try:
                self._programs[node] = read_program(data)
            except EifError:
                self._programs[node] = None
        for node in nodes:
            self._programs.setdefault(node, None)

    def _candidates(self, name: str, loader: _Object, *, is_musl: bool) -> Iterator[Located]:
        """The files of that name, in the order in which the linker would meet them."""
        if "/" in name:
            paths: Iterator[str] = iter((name if name.startswith("/") else f"/{name}",))
        else:
            paths = self._paths(name, loader, is_musl=is_musl)
        seen = set()
        for path in paths:
            self._lookups += 1
            if self._lookups > LOOKUPS_MAX:
                self.gave_up = True
                return
            located = find(self.system.tree, path, root=self.root)
            if located is not None and located.node.is_file and located.node not in seen:
                seen.add(located.node)
                yield located

    def _paths(self, name: str, loader: _Object, *, is_musl: bool) -> Iterator[str]:
        own = loader.program
        if is_musl:
            folders = [*self.library_path, *_inherited(loader, with_runpath=True), *self._musl_folders(own)]
            yield from (f"{folder}/{name}" for folder in folders)
            return
        before = [] if own.runpath else list(_inherited(loader, with_runpath=False))
        folders = [*before, *self.library_path, *_expanded(own.runpath, loader)]
        yield from (f"{folder}/{name}" for folder in folders)
        yield from self._cached(name)
        triplet = _TRIPLETS.get((own.machine, own.bits))
        names = [f"lib/{triplet}", f"usr/lib/{triplet}"] if triplet else []
        names += ["lib64", "usr/lib64"] if own.bits == 64 else ["lib32", "usr/lib32"]
        yield from (f"/{folder}/{name}" for folder in [*names, "lib", "usr/lib"])

    def _cached(self, name: str) -> list[str]:
        if self._cache is None:
            self._cache = {}
            for path in self._strings("/etc/ld.so.cache"):
                self._cache.setdefault(path.rpartition("/")[2], []).append(path)
        return self._cache.get(name, [])

    def _strings(self, path: str) -> Iterator[str]:
        located = find(self.system.tree, path, root=self.root)
        if located is None:
            return
        for _, data in contents(self.system, [located.node], limit=CACHE_LIMIT):
            for match in _CACHED.finditer(bytes(data[:CACHE_LIMIT])):
                yield match[1].decode("utf-8", "surrogateescape")

    def _musl_folders(self, program: Program) -> list[str]:
        located = find(self.system.tree, f"/etc/ld-musl-{program.machine}.path", root=self.root)
        if located is not None:
            for _, data in contents(self.system, [located.node], limit=1 << 16):
                text = bytes(data[: 1 << 16]).decode("utf-8", "surrogateescape")
                return [folder for folder in re.split("[:\n]", text) if folder]
        return ["/lib", "/usr/local/lib", "/usr/lib"]

    def _elsewhere(self, name: str) -> str | None:
        """Where a file of that name lies that the linker does not find."""
        top = self.system.tree.lookup(self.root)
        for count, (path, _) in enumerate(self.system.tree.walk(top)):
            if path.endswith(f"/{name}"):
                return path
            if count > HINT_DEPTH:
                break
        return None


def _inherited(loader: _Object, *, with_runpath: bool) -> Iterator[str]:
    """DT_RPATH of an object, of the one that needed it, and so on to the program."""
    current: _Object | None = loader
    while current is not None:
        own = current.program
        if with_runpath:
            yield from _expanded(own.runpath or own.rpath, current)
        elif not own.runpath:
            yield from _expanded(own.rpath, current)
        current = current.loader


def _expanded(folders: Sequence[str], loader: _Object) -> Iterator[str]:
    """Folders with $ORIGIN, $LIB and $PLATFORM filled in; $LIB differs between distributions, so each is tried."""
    triplet = _TRIPLETS.get((loader.program.machine, loader.program.bits), "")
    for folder in folders:
        text = re.sub(r"\$(\{ORIGIN\}|ORIGIN)", lambda _: loader.folder, folder)
        text = re.sub(r"\$(\{PLATFORM\}|PLATFORM)", loader.program.machine, text)
        if re.search(r"\$(\{LIB\}|LIB)", text):
            for lib in ("lib64", f"lib/{triplet}", "lib"):
                yield _absolute(re.sub(r"\$(\{LIB\}|LIB)", lib, text))
        else:
            yield _absolute(text)


def _absolute(folder: str) -> str:
    """Relative folders are looked for where the program starts, in `/`."""
    return folder if folder.startswith("/") else f"/{folder}"
