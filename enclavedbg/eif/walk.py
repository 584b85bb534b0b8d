"""How the two kinds of readers go through an EIF file, and where they or the format's rules part.

nitro-cli's reader walks: it looks at neither magic nor the header's table and takes section after section from
byte 548 to the end. Loaders (QEMU; the hypervisor as far as its documentation says) seek to the offsets of the
table. On a sound file both see the same; on any other, what one measures the other may not boot. `read_eif` is
the strict reader; this module goes through whatever is there, reads headers only, and never holds a file.

Source: aws-nitro-enclaves-image-format (EifReader, README), QEMU's hw/core/eif.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from enclavedbg.eif.format import (
    CURRENT_VERSION,
    HEADER,
    HEADER_SIZE,
    MAGIC,
    MAX_SECTIONS,
    METADATA_SINCE,
    MIN_SECTIONS,
    OFFSETS_AT,
    OLDEST_VERSION,
    SECTION_HEADER,
    SIGNATURE_MAX_SIZE,
    SIZES_AT,
    HeaderFlags,
    SectionType,
)
from enclavedbg.eif.source import EifSource
from enclavedbg.errors import EifError

WALK_LIMIT = 65536
"""Sections that the walk follows; nitro-cli's has no limit, the format allows 32."""

MEASURED = frozenset({SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK})


class Reader(Enum):
    """Who refuses a file: a tool, or the rules of the format's specification."""

    NITRO_CLI = "nitro-cli"
    QEMU = "QEMU"
    FORMAT = "the format"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a reader or the format's rules object to. `id` is stable, `message` one line without cure.

    `offset` is the byte in the file; `stops` are those that refuse the file for it, empty for what only differs
    from how such files are written.
    """

    id: str
    message: str
    offset: int
    stops: frozenset[Reader] = frozenset({Reader.FORMAT})

    def error(self) -> EifError:
        """The problem as the error to end with."""
        return EifError(self.message, offset=self.offset)


@dataclass(frozen=True, slots=True)
class RawHeader:
    """The file's header as it stands, nothing checked: all 32 entries of each table, and its 548 bytes in `raw`."""

    raw: bytes
    magic: bytes
    version: int
    flags: int
    default_memory: int
    default_cpus: int
    reserved: int
    count: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    unused: int
    crc32: int

    @property
    def architecture(self) -> str:
        """`x86_64` or `aarch64`."""
        return "aarch64" if self.flags & HeaderFlags.AARCH64 else "x86_64"


@dataclass(frozen=True, slots=True)
class WalkedSection:
    """One section as a reader meets it: `offset` is that of its 12-byte header, `size` of its data, in bytes."""

    number: int
    flags: int
    offset: int
    size: int

    @property
    def type(self) -> SectionType | None:
        """The type, None when the number has no meaning."""
        return SectionType(self.number) if 1 <= self.number <= 5 else None

    @property
    def name(self) -> str:
        """`kernel`, `ramdisk` ..., or `type 9`."""
        return f"type {self.number}" if self.type is None else self.type.name.lower()

    @property
    def data_offset(self) -> int:
        """Where the data begins in the file."""
        return self.offset + SECTION_HEADER.size

    @property
    def end(self) -> int:
        """The byte after the data."""
        return self.data_offset + self.size


@dataclass(frozen=True, slots=True)
class View:
    """The sections that one reader meets, in its order, up to what it refuses (`refusal`, None when it goes through).

    `end` is where it stops: for the walk the end of the last section, for the table the highest one.
    """

    sections: tuple[WalkedSection, ...]
    end: int
    refusal: Problem | None

    def of_type(self, kind: SectionType) -> tuple[WalkedSection, ...]:
        """The sections of one type, in order."""
        return tuple(section for section in self.sections if section.type is kind)

    @property
    def measured(self) -> tuple[WalkedSection, ...]:
        """Kernel, command line and ramdisks, in order: what PCR0 covers."""
        return tuple(section for section in self.sections if section.type in MEASURED)


@dataclass(frozen=True, slots=True)
class Walk:
    """Both views of a file of `size` bytes, and all that is wrong with its structure.

    `walked` is nitro-cli's view, `table` a loader's. The CRC is not looked at here, since that takes all of the
    file (`enclavedbg.eif.measure_file` computes it on the way), and neither are sections' contents.
    """

    size: int
    header: RawHeader
    walked: View
    table: View
    problems: tuple[Problem, ...]

    @property
    def trailing(self) -> int:
        """Bytes after the last section, too few for another header, which nitro-cli's reader leaves out."""
        return self.size - self.walked.end if self.walked.refusal is None else 0

    @property
    def agree(self) -> bool:
        """Whether both views have the same sections in the same order and neither refuses."""
        return (
            self.walked.refusal is None and self.table.refusal is None and self.walked.sections == self.table.sections
        )

    @property
    def same_measured(self) -> bool:
        """Whether both measure and load the same bytes, so that the PCRs shown are those of what starts."""
        return self.walked.measured == self.table.measured


def walk_eif(source: EifSource) -> Walk:
    """Go through a file both ways. Raises EifError only when it is too short for a header.

    Reads the headers only, at most WALK_LIMIT + 33 of them. A `refusal` in `walked` is where describe-eif fails.
    """
    raw = source.read(0, HEADER_SIZE)
    if len(raw) < HEADER_SIZE:
        raise EifError(
            f"the file has {len(raw)} bytes, an EIF's header alone has {HEADER_SIZE}; give a whole .eif file",
            offset=len(raw),
        )
    header = parse_header(raw)
    walked = _walk_sequence(source)
    table = _walk_table(source, header)
    problems = (
        *_header_problems(header),
        *(view.refusal for view in (walked, table) if view.refusal is not None),
        *_table_problems(source.size, header, table),
        *_view_problems(header, walked, table),
        *_set_problems(header, walked if walked.refusal is None else table),
        *_trailing(source.size, walked),
    )
    return Walk(source.size, header, walked, table, problems)


def parse_header(raw: bytes) -> RawHeader:
    """The fields of a header's 548 bytes."""
    magic, version, flags, memory, cpus, reserved, count, *tables, unused = HEADER.unpack_from(raw)
    offsets, sizes = tuple(tables[:MAX_SECTIONS]), tuple(tables[MAX_SECTIONS:])
    crc = int.from_bytes(raw[HEADER.size :], "big")
    return RawHeader(raw, magic, version, flags, memory, cpus, reserved, count, offsets, sizes, unused, crc)


def _walk_sequence(source: EifSource) -> View:
    sections: list[WalkedSection] = []
    position = HEADER_SIZE
    while len(start := source.read(position, SECTION_HEADER.size)) == SECTION_HEADER.size:
        section = _section(start, position)
        refusal = None
        if section.type is None:
            known = ", ".join(f"{t.value} {t.name.lower()}" for t in SectionType)
            message = f"section {len(sections)} has type {section.number}, expected {known}"
            refusal = Problem("section-type", message, position, frozenset({Reader.NITRO_CLI, Reader.FORMAT}))
        elif section.end > source.size:
            refusal = Problem(
                "truncated",
                f"section {len(sections)} ({section.name}) has {section.size} bytes by its header and would end at "
                f"{section.end:#x}, the file ends at {source.size:#x}",
                position + 4,
                frozenset({Reader.NITRO_CLI, Reader.FORMAT}),
            )
        elif len(sections) == WALK_LIMIT:
            refusal = Problem("too-many", f"more than {WALK_LIMIT} sections, the format allows 32", position)
        if refusal is not None:
            return View(tuple(sections), position, refusal)
        sections.append(section)
        position = section.end
    return View(tuple(sections), position, None)


def _walk_table(source: EifSource, header: RawHeader) -> View:
    sections: list[WalkedSection] = []
    stops = frozenset({Reader.QEMU, Reader.FORMAT})
    refusal = None
    for index, (offset, size) in enumerate(zip(header.offsets[: header.count], header.sizes, strict=False)):
        start = source.read(offset, SECTION_HEADER.size)
        if len(start) < SECTION_HEADER.size:
            message = f"the header's table puts section {index} at {offset:#x}, the file ends at {source.size:#x}"
            refusal = Problem("table-offset", message, OFFSETS_AT + 8 * index, stops)
            break
        section = _section(start, offset)
        if section.size != size:
            message = f"section {index} ({section.name}) says {section.size} bytes, the header's table {size}"
            refusal = Problem("table-size", message, SIZES_AT + 8 * index, stops)
            break
        if section.end > source.size:
            message = f"section {index} ({section.name}) ends at {section.end:#x}, the file at {source.size:#x}"
            refusal = Problem("table-truncated", message, SIZES_AT + 8 * index, stops)
            break
        sections.append(section)
    return View(tuple(sections), max((s.end for s in sections), default=HEADER_SIZE), refusal)


def _section(start: bytes, offset: int) -> WalkedSection:
    number, flags, size = SECTION_HEADER.unpack(start)
    return WalkedSection(number, flags, offset, size)


def _header_problems(header: RawHeader) -> Iterator[Problem]:
    loader = frozenset({Reader.QEMU, Reader.FORMAT})
    if header.magic != MAGIC:
        yield Problem("magic", f"the file begins with {header.magic!r}, an EIF with {MAGIC!r}", 0, loader)
    if not OLDEST_VERSION <= header.version <= CURRENT_VERSION:
        message = f"version {header.version}, known are {OLDEST_VERSION} to {CURRENT_VERSION}"
        yield Problem("version", message, 4, loader)
    elif header.version < METADATA_SINCE:
        message = f"version {header.version}, QEMU loads {METADATA_SINCE} and later only"
        yield Problem("version-old", message, 4, frozenset({Reader.QEMU}))
    if header.flags & ~int(HeaderFlags.AARCH64):
        yield Problem("header-flags", f"header flags {header.flags:#x}, only bit 0 (aarch64) has a meaning", 6, loader)
    if header.reserved or header.unused:
        message = f"reserved fields of the header hold {header.reserved:#x} and {header.unused:#x}, expected 0"
        yield Problem("reserved", message, 0x18 if header.reserved else 0x21C, frozenset())
    if not MIN_SECTIONS <= header.count <= MAX_SECTIONS:
        message = f"the header counts {header.count} sections, expected {MIN_SECTIONS} to {MAX_SECTIONS}"
        yield Problem("section-count", message, 0x1A, loader if header.count > MAX_SECTIONS else frozenset())
    spare = (*header.offsets[header.count :], *header.sizes[header.count :])
    if any(spare):
        message = f"entries of the header's table after the {header.count} used ones are not 0"
        yield Problem("table-spare", message, OFFSETS_AT + 8 * min(header.count, MAX_SECTIONS), frozenset())


def _table_problems(size: int, header: RawHeader, table: View) -> Iterator[Problem]:
    """What the specification says of the places that the table names: in order, no overlap, no gap."""
    position = HEADER_SIZE
    for index, section in enumerate(table.sections):
        at = OFFSETS_AT + 8 * index
        if section.offset < position:
            before = "the file's header" if not index else f"section {index - 1} or what lies before it"
            message = f"section {index} ({section.name}) begins at {section.offset:#x} and overlaps {before}"
            ordered = section.offset >= HEADER_SIZE and not _overlaps(section, table.sections[:index])
            if ordered:
                message = f"section {index} ({section.name}) begins at {section.offset:#x}, before those listed first"
            yield Problem("out-of-order" if ordered else "overlap", message, at)
        elif section.offset > position:
            message = f"{section.offset - position} bytes before section {index} ({section.name}) belong to no section"
            yield Problem("gap", message, position)
        if section.flags:
            message = f"section {index} ({section.name}) has flags {section.flags:#x}, expected 0"
            yield Problem("section-flags", message, section.offset + 2, frozenset({Reader.QEMU, Reader.FORMAT}))
        position = max(position, section.end)
    if table.refusal is None and header.count and position < size:
        yield Problem("unlisted", f"{size - position} bytes after the last section that the header lists", position)


def _overlaps(section: WalkedSection, others: Iterable[WalkedSection]) -> bool:
    return any(section.offset < other.end and other.offset < section.end for other in others)


def _view_problems(header: RawHeader, walked: View, table: View) -> Iterator[Problem]:
    """The first place where the two readers part."""
    for index in range(min(len(walked.sections), len(table.sections))):
        one, other = walked.sections[index], table.sections[index]
        if one != other:
            message = (
                f"nitro-cli takes section {index} to be {one.name} at {one.offset:#x} with {one.size} bytes, a loader "
                f"{other.name} at {other.offset:#x} with {other.size}"
            )
            yield Problem("views-differ", message, OFFSETS_AT + 8 * index)
            return
    if len(walked.sections) != len(table.sections) and walked.refusal is None and table.refusal is None:
        message = f"nitro-cli finds {len(walked.sections)} sections, the header lists {header.count} for loaders"
        yield Problem("views-differ", message, 0x1A)


def _set_problems(header: RawHeader, view: View) -> Iterator[Problem]:
    """Which sections there must be, how many, and in which order."""
    loader = frozenset({Reader.QEMU, Reader.FORMAT})
    kernel = next(iter(view.of_type(SectionType.KERNEL)), None)
    for kind, stops in ((SectionType.KERNEL, loader), (SectionType.CMDLINE, loader)):
        yield from _count_problems(view, kind, stops, needed=True)
    metadata_needed = header.version >= METADATA_SINCE
    yield from _count_problems(view, SectionType.METADATA, frozenset({Reader.FORMAT}), needed=metadata_needed)
    yield from _count_problems(view, SectionType.SIGNATURE, frozenset({Reader.FORMAT}), needed=False)
    ramdisks = view.of_type(SectionType.RAMDISK)
    if not ramdisks:
        yield Problem("no-ramdisk", "there is no ramdisk section, loaders want one", 0x1A, frozenset({Reader.QEMU}))
    for section in ramdisks:
        if kernel is None or section.offset < kernel.offset:
            yield Problem("ramdisk-early", "a ramdisk lies before the kernel, expected after it", section.offset)
            break
    for section in view.of_type(SectionType.METADATA):
        if not metadata_needed:
            message = f"a metadata section in version {header.version}, they exist from version {METADATA_SINCE} on"
            yield Problem("metadata-early", message, section.offset)
    for section in view.of_type(SectionType.SIGNATURE):
        if section.size > SIGNATURE_MAX_SIZE:
            message = f"a signature section of {section.size} bytes, expected at most {SIGNATURE_MAX_SIZE}"
            yield Problem("signature-size", message, section.offset + 4)


def _count_problems(view: View, kind: SectionType, stops: frozenset[Reader], *, needed: bool) -> Iterator[Problem]:
    found = view.of_type(kind)
    name = kind.name.lower()
    if needed and not found:
        yield Problem(f"no-{name}", f"there is no {name} section, expected one", 0x1A, stops)
    elif len(found) > 1:
        yield Problem(f"second-{name}", f"{len(found)} {name} sections, expected one", found[1].offset, stops)


def _trailing(size: int, walked: View) -> Iterator[Problem]:
    if walked.refusal is None and walked.end < size:
        message = f"{size - walked.end} bytes after the last section, which nitro-cli leaves out of the CRC"
        yield Problem("trailing", message, walked.end)
