"""Writes an image of parts that need not be in memory, and the metadata that goes with it."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from enclavedbg.eif.atomic import atomic_write
from enclavedbg.eif.build.contents import Contents, InFile, InMemory, read_input
from enclavedbg.eif.format import (
    CRC_OFFSET,
    CURRENT_VERSION,
    DEFAULT_CPUS,
    DEFAULT_MEMORY,
    HEADER_SIZE,
    MAX_SECTIONS,
    SECTION_HEADER,
    EifHeader,
    SectionType,
)
from enclavedbg.eif.measure import Measurements, measure
from enclavedbg.eif.reader import METADATA_MAX_SIZE, read_eif
from enclavedbg.eif.writer import ARCHITECTURE_FLAGS, encode_metadata
from enclavedbg.errors import EifError

CUSTOM_METADATA_LIMIT = 4096
"""Bytes of a file for --metadata, as in nitro-cli."""
JSON_DEPTH_LIMIT = 64
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MAX = (1 << 32) - 1
"""The last second that a ramdisk can name."""


def write_image(
    output: Path,
    *,
    kernel: Contents,
    cmdline: bytes,
    ramdisks: Sequence[Contents],
    metadata: Mapping[str, object],
    architecture: str = "x86_64",
) -> Measurements:
    """Write an unsigned EIF of version 4, sections in nitro-cli's order, and measure the file that was written.

    The file appears whole or not at all, and passed `read_eif` before. Parts are written as they are read, so an
    image may be larger than memory. `metadata` is what `enclavedbg.eif.build_metadata` makes. Raises EifError for
    parts that make no image, that change meanwhile, or when the file cannot be written.
    """
    if architecture not in ARCHITECTURE_FLAGS:
        raise EifError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURE_FLAGS)}")
    if b"\0" in cmdline:
        raise EifError(f"the command line has a NUL at byte {cmdline.index(0)}; the format wants it without, remove it")
    text = encode_metadata(metadata)
    if len(text) > METADATA_MAX_SIZE:
        raise EifError(f"{len(text)} bytes of metadata, at most {METADATA_MAX_SIZE} are read; build with less")
    sections: list[tuple[SectionType, Contents]] = [
        (SectionType.KERNEL, kernel),
        (SectionType.CMDLINE, InMemory(cmdline)),
        (SectionType.METADATA, InMemory(text)),
        *((SectionType.RAMDISK, ramdisk) for ramdisk in ramdisks),
    ]
    if len(sections) > MAX_SECTIONS:
        raise EifError(f"{len(sections)} sections: the format allows {MAX_SECTIONS}; join some of the ramdisks")
    with atomic_write(output) as file:
        _write_sections(file, sections, flags=ARCHITECTURE_FLAGS[architecture])
        file.flush()
        # Mapped: what is measured is the file, and an image may be larger than memory.
        image = read_eif(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    return measure(image)


def _write_sections(file: BinaryIO, sections: Sequence[tuple[SectionType, Contents]], *, flags: int) -> None:
    offsets = []
    position = HEADER_SIZE
    for _, contents in sections:
        offsets.append(position)
        position += SECTION_HEADER.size + contents.size
    sizes = tuple(contents.size for _, contents in sections)
    header = EifHeader(CURRENT_VERSION, flags, DEFAULT_MEMORY, DEFAULT_CPUS, tuple(offsets), sizes, 0).pack()
    crc = zlib.crc32(header[:CRC_OFFSET])
    file.write(header)
    for kind, contents in sections:
        start = SECTION_HEADER.pack(kind, 0, contents.size)
        crc = zlib.crc32(start, crc)
        file.write(start)
        for piece in contents.pieces():
            crc = zlib.crc32(piece, crc)
            file.write(piece)
    file.seek(CRC_OFFSET)
    file.write(crc.to_bytes(HEADER_SIZE - CRC_OFFSET, "big"))


def ramdisk_file(path: Path) -> Contents:
    """A finished ramdisk in a file, as it is. Raises EifError when it cannot be read."""
    data = read_input(path, what="the ramdisk")
    return InFile(Path(os.path.realpath(path)), len(data))


def read_custom_metadata(path: Path) -> object:
    """The JSON value of a --metadata file: at most 4096 bytes, as nitro-cli has it. Raises EifError."""
    return parse_json(read_input(path, what="the metadata file", limit=CUSTOM_METADATA_LIMIT), what=str(path))


def parse_json(data: bytes | memoryview, *, what: str) -> object:
    """A JSON value that is safe to go through: no endless numbers, nested at most 64 deep. Raises EifError."""
    try:
        value: object = json.loads(str(data, "utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise EifError(f"{what} is not JSON ({str(error)[:120]}); correct it") from error
    level = [value]
    for _ in range(JSON_DEPTH_LIMIT):
        if not level:
            return value
        level = [item for parent in level if isinstance(parent, dict | list) for item in _items(parent)]
    raise EifError(f"{what} nests JSON values more than {JSON_DEPTH_LIMIT} deep; flatten it")


def _items(parent: dict[str, object] | list[object]) -> list[object]:
    return list(parent.values()) if isinstance(parent, dict) else parent


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is not a JSON number")


def source_date_epoch(environment: Mapping[str, str]) -> int | None:
    """Seconds since 1970 from SOURCE_DATE_EPOCH, None when it is not set. Raises EifError for anything else.

    Source: reproducible-builds.org, SOURCE_DATE_EPOCH specification.
    """
    text = environment.get("SOURCE_DATE_EPOCH", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > TIME_MAX:
        raise EifError(f"SOURCE_DATE_EPOCH is {text[:40]!r}, expected seconds from 0 to {TIME_MAX}; unset it")
    return int(text)


def parse_build_time(text: str) -> datetime:
    """An aware time from RFC 3339, such as 2026-07-05T12:00:00Z. Raises EifError."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        value = None
    if value is None or value.tzinfo is None:
        raise EifError(f"{text[:60]!r} is no time with a zone; expected one such as 2026-07-05T12:00:00Z")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise EifError(f"{text[:60]!r} is out of range; expected a year from 1 to 9999") from error
