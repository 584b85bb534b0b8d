"""An image opened to look inside: its sections by name, and the files of its ramdisks.

More lenient than `read_eif`: whatever nitro-cli's reader goes through is opened, and else what a loader would, so
that a faulty image can be looked at too. Nothing is checked here beyond that (the CRC, for one, is not).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from enclavedbg.eif.archives import DEFAULT_LIMITS, Limits
from enclavedbg.eif.filesystem import FileSystem, read_filesystem
from enclavedbg.eif.format import MAGIC, SectionType
from enclavedbg.eif.reader import file_contents, read_eif
from enclavedbg.eif.source import open_source
from enclavedbg.eif.tree import Tree, tree_of
from enclavedbg.eif.walk import MEASURED, Walk, walk_eif
from enclavedbg.errors import EifError


@dataclass(frozen=True, slots=True)
class Section:
    """A section with its name: `kernel`, `cmdline`, `metadata`, `signature`, `ramdisk0`, `ramdisk1` ...

    A second one of a kind that there should be one of is `kernel.1` and so on. `offset` is that of the section's
    header in the file; `pcrs` are the registers that the data goes into (for a signature: its certificate).
    """

    name: str
    type: SectionType
    offset: int
    data: memoryview
    pcrs: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return len(self.data)

    @property
    def is_measured(self) -> bool:
        """Whether the data itself is in PCR0."""
        return self.type in MEASURED


@dataclass(frozen=True, slots=True)
class Contents:
    """An image's sections in the order in which they are measured; `notes` say what a reader should know of them.

    `origin` is the file, or the same as `data`.
    """

    origin: Path | memoryview
    data: memoryview
    walk: Walk
    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    def section(self, name: str) -> Section:
        """The section of that name. Raises EifError, which lists those that there are."""
        for section in self.sections:
            if section.name == name:
                return section
        names = ", ".join(section.name for section in self.sections)
        raise EifError(f"there is no section {name!r}; this image has {names}")

    @property
    def ramdisks(self) -> tuple[Section, ...]:
        """The Ramdisk sections in order."""
        return tuple(section for section in self.sections if section.type is SectionType.RAMDISK)

    def filesystem(self, *, limits: Limits = DEFAULT_LIMITS) -> FileSystem:
        """List the files of all ramdisks. Raises EifError for damage and passed limits."""
        bases = [section.offset + 12 for section in self.ramdisks]
        return read_filesystem([section.data for section in self.ramdisks], bases=bases, limits=limits)


def open_contents(source: Path | bytes | memoryview) -> Contents:
    """Open an image file, or one in memory; a large file is mapped, not read. Raises EifError."""
    data = file_contents(source) if isinstance(source, Path) else memoryview(source).toreadonly().cast("B")
    if bytes(data[: len(MAGIC)]) != MAGIC:
        # It knows what else a file may be, and says so.
        read_eif(data)
    walk = walk_eif(open_source(data))
    view = walk.walked if walk.walked.refusal is None else walk.table
    if view.refusal is not None:
        assert walk.walked.refusal is not None
        raise walk.walked.refusal.error()
    notes = []
    if view is walk.table:
        notes.append("nitro-cli cannot read this image; shown is what a loader finds through the header's table")
    elif not walk.agree:
        notes.append("the header's table leads elsewhere than nitro-cli reads; shown is what nitro-cli reads")
    seen: Counter[SectionType] = Counter()
    sections = []
    for found in view.sections:
        if found.type is None:
            continue
        count = seen[found.type]
        seen[found.type] += 1
        body = data[found.data_offset : found.end]
        sections.append(Section(_name(found.type, count), found.type, found.offset, body, _pcrs(found.type, count)))
    return Contents(source if isinstance(source, Path) else data, data, walk, tuple(sections), tuple(notes))


def _name(kind: SectionType, count: int) -> str:
    name = kind.name.lower()
    if kind is SectionType.RAMDISK:
        return f"{name}{count}"
    return f"{name}.{count}" if count else name


def _pcrs(kind: SectionType, count: int) -> tuple[int, ...]:
    if kind is SectionType.SIGNATURE:
        return (8,)
    if kind not in MEASURED:
        return ()
    return (0, 2) if kind is SectionType.RAMDISK and count else (0, 1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path of the command line leads: a section, or a path in the merged tree or in one ramdisk's."""

    section: str | None
    ramdisk: int | None
    path: str


def parse_place(text: str) -> Place:
    """`section:NAME`, `ramdisk0:/path`, or `/path` in what all ramdisks make together. Raises EifError."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "section":
        return Place(rest, None, "")
    number = kind.removeprefix("ramdisk")
    if colon and kind != number and number.isascii() and number.isdecimal() and len(number) < 6:
        return Place(None, int(number), rest if rest.startswith("/") else f"/{rest}")
    if not text.startswith("/"):
        raise EifError(f"{text!r} is no path; expected /path, ramdisk0:/path or section:NAME")
    return Place(None, None, text)


def tree_at(system: FileSystem, place: Place) -> Tree:
    """The tree that a place is in: the merged one, or that of its ramdisk. Raises EifError when there is none such."""
    if place.ramdisk is None:
        return system.tree
    if place.ramdisk >= len(system.ramdisks):
        raise EifError(f"there is no ramdisk{place.ramdisk}; this image has {len(system.ramdisks)}, counted from 0")
    return tree_of(system.ramdisks[place.ramdisk])
