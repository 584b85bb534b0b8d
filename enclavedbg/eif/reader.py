"""Reads an EIF file and checks all of it, so that nothing later has to.

Stricter than nitro-cli's reader, which looks at neither magic nor header table: each rule of the format's
specification is checked, and so are the CRC, the metadata and the shape of the signature.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from enclavedbg.eif.format import (
    CRC_OFFSET,
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
    EifHeader,
    EifSection,
    HeaderFlags,
    SectionType,
)
from enclavedbg.errors import EifError

METADATA_MAX_SIZE = 4 << 20
"""Our limit; nitro-cli's metadata has some tens of kilobytes of `docker inspect`."""
MAPPED_FROM = 64 << 20
"""Files from this size on are mapped; smaller ones are copied, so that building anew over them does no harm."""

REBUILD = "build or fetch the image again"

_FOREIGN_MAGIC = {
    b"\x7fELF": "an ELF program",
    b"MZ": "a kernel image or EFI program",
    b"\x1f\x8b": "gzip data",
    b"0707": "a cpio archive",
    b"PK": "a zip archive",
    b"{": "JSON text",
    b"!<ar": "an ar archive",
    b"hsqs": "a squashfs",
}


@dataclass(frozen=True, slots=True)
class EifImage:
    """A checked image. `kernel` and `ramdisks` are views of `data`, the whole file; sizes in bytes.

    `metadata` is None before version 4 and when the section says `null`; `signature` is the section's CBOR and
    `certificate` the DER of its first certificate, both None in an unsigned image.
    """

    header: EifHeader
    sections: tuple[EifSection, ...]
    data: memoryview
    metadata: dict[str, object] | None
    certificate: bytes | None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    @property
    def architecture(self) -> str:
        """`x86_64` or `aarch64`."""
        return "aarch64" if self.header.flags & HeaderFlags.AARCH64 else "x86_64"

    @property
    def kernel(self) -> memoryview:
        """The Kernel section: a bzImage (x86_64) or an uncompressed `Image` (aarch64)."""
        return self._only(SectionType.KERNEL)

    @property
    def cmdline(self) -> bytes:
        """The kernel's command line, as measured: raw bytes without a terminating NUL."""
        return bytes(self._only(SectionType.CMDLINE))

    @property
    def ramdisks(self) -> tuple[memoryview, ...]:
        """The Ramdisk sections in file order."""
        return tuple(s.data for s in self.sections if s.type is SectionType.RAMDISK)

    @property
    def signature(self) -> bytes | None:
        """The Signature section's CBOR, or None."""
        return next((bytes(s.data) for s in self.sections if s.type is SectionType.SIGNATURE), None)

    def _only(self, kind: SectionType) -> memoryview:
        return next(s.data for s in self.sections if s.type is kind)


def read_eif(source: Path | bytes | memoryview) -> EifImage:
    """Read an image from a file or from memory and check it wholly.

    Raises EifError, which says what was found, what was expected and what to do, and has the offset in the file.
    """
    data = file_contents(source) if isinstance(source, Path) else memoryview(source).toreadonly().cast("B")
    header = _read_header(data)
    sections = _read_sections(data, header)
    _check_crc(data, header)
    _check_set_of_sections(header, sections)
    metadata = certificate = None
    for section in sections:
        match section.type:
            case SectionType.CMDLINE:
                _check_cmdline(section)
            case SectionType.METADATA:
                metadata = _read_metadata(section)
            case SectionType.SIGNATURE:
                # Signed images are few, and these imports cost as much as reading the image.
                from enclavedbg.eif.signature import read_signature

                certificate = read_signature(section.data, offset=section.data_offset).certificate
            case _:
                pass
    return EifImage(header, sections, data, metadata, certificate)


def file_size(data: bytes | memoryview) -> int:
    """The size that an image's header claims for the whole file; reads the header only, checks it, trusts nothing else.

    For images in a larger memory, as the firmware finds them. Raises EifError.
    """
    header = _read_header(memoryview(data).toreadonly().cast("B"))
    return header.offsets[-1] + SECTION_HEADER.size + header.sizes[-1]


def file_contents(path: Path) -> memoryview:
    """All of a file, unchecked; a large one is mapped. Raises EifError for what is no readable regular file."""
    try:
        # Not blocking, so that a FIFO given by mistake is refused and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise EifError(f"{path} is not a regular file; give the .eif file that nitro-cli build-enclave wrote")
            if status.st_size >= MAPPED_FROM:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return memoryview(file.read())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EifError(f"cannot read the image {path}: {reason}; check the path and its permissions") from error


def _read_header(data: memoryview) -> EifHeader:
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise EifError(foreign(bytes(data[:512])), offset=0)
    if len(data) < HEADER_SIZE:
        raise EifError(f"the file has {len(data)} bytes, a header alone has {HEADER_SIZE}; {REBUILD}", offset=len(data))
    _, version, flags, memory, cpus, _, count, *rest = HEADER.unpack_from(data)
    if not OLDEST_VERSION <= version <= CURRENT_VERSION:
        raise EifError(
            f"EIF version {version}, known are {OLDEST_VERSION} to {CURRENT_VERSION}; build it with nitro-cli 1.x",
            offset=4,
        )
    if flags & ~int(HeaderFlags.AARCH64):
        raise EifError(f"header flags {flags:#x}, only bit 0 (aarch64) has a meaning; {REBUILD}", offset=6)
    if not MIN_SECTIONS <= count <= MAX_SECTIONS:
        raise EifError(f"{count} sections, expected {MIN_SECTIONS} to {MAX_SECTIONS}; {REBUILD}", offset=0x1A)
    offsets, sizes = tuple(rest[:count]), tuple(rest[MAX_SECTIONS : MAX_SECTIONS + count])
    position = HEADER_SIZE
    for index, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        if offset != position:
            problem = "overlaps what is before it" if offset < position else "leaves a gap"
            raise EifError(
                f"section {index} begins at {offset:#x} and {problem}, expected {position:#x}; {REBUILD}",
                offset=OFFSETS_AT + 8 * index,
            )
        position += SECTION_HEADER.size + size
    crc = int.from_bytes(data[CRC_OFFSET:HEADER_SIZE], "big")
    return EifHeader(version, flags, memory, cpus, offsets, sizes, crc)


def foreign(start: bytes) -> str:
    """Says what a file is that is no EIF, from its first 512 bytes."""
    what = next((name for magic, name in _FOREIGN_MAGIC.items() if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        what = "a tar archive (a saved docker image?)"
    if start[0x1FE:0x200] == b"\x55\xaa" and not what:
        what = "a kernel or a disk image"
    found = f"this is {what}, not an EIF" if what else f"not an EIF: it begins with {start[:4]!r}, expected {MAGIC!r}"
    if not start:
        found = "not an EIF: there is nothing in it"
    return f"{found}; give the .eif file that nitro-cli build-enclave wrote"


def _read_sections(data: memoryview, header: EifHeader) -> tuple[EifSection, ...]:
    sections = []
    end = HEADER_SIZE
    for index, (offset, size) in enumerate(zip(header.offsets, header.sizes, strict=True)):
        start = offset + SECTION_HEADER.size
        end = start + size
        if end > len(data):
            raise EifError(
                f"the file is truncated: section {index} ends at {end:#x}, the file at {len(data):#x}; {REBUILD}",
                offset=SIZES_AT + 8 * index,
            )
        number, flags, stated = SECTION_HEADER.unpack_from(data, offset)
        try:
            kind = SectionType(number)
        except ValueError:
            known = ", ".join(f"{t.value} {t.name.lower()}" for t in SectionType)
            raise EifError(f"section {index} has type {number}, expected {known}; {REBUILD}", offset=offset) from None
        if flags:
            raise EifError(f"section {index} has flags {flags:#x}, expected 0; {REBUILD}", offset=offset + 2)
        if stated != size:
            raise EifError(
                f"section {index} ({kind.name.lower()}) says {stated} bytes, the file's header {size}; {REBUILD}",
                offset=offset + 4,
            )
        sections.append(EifSection(kind, offset, data[start:end]))
    if end != len(data):
        raise EifError(f"{len(data) - end} bytes after the last section, expected none; {REBUILD}", offset=end)
    return tuple(sections)


def _check_crc(data: memoryview, header: EifHeader) -> None:
    computed = zlib.crc32(data[HEADER_SIZE:], zlib.crc32(data[:CRC_OFFSET]))
    if computed != header.crc32:
        raise EifError(
            f"the CRC-32 of the contents is {computed:08x}, the header says {header.crc32:08x}: the file was damaged "
            f"or changed after it was built; {REBUILD}",
            offset=CRC_OFFSET,
        )


def _check_set_of_sections(header: EifHeader, sections: tuple[EifSection, ...]) -> None:
    exactly_one = {SectionType.KERNEL, SectionType.CMDLINE}
    if header.version >= METADATA_SINCE:
        exactly_one.add(SectionType.METADATA)
    seen: dict[SectionType, EifSection] = {}
    for section in sections:
        name = section.type.name.lower()
        if section.type in seen and section.type is not SectionType.RAMDISK:
            raise EifError(f"a second {name} section, expected one; {REBUILD}", offset=section.offset)
        if section.type is SectionType.RAMDISK and SectionType.KERNEL not in seen:
            raise EifError(f"a ramdisk before the kernel, expected after it; {REBUILD}", offset=section.offset)
        if section.type is SectionType.METADATA and section.type not in exactly_one:
            raise EifError(
                f"a metadata section in version {header.version}, expected from version {METADATA_SINCE} on; {REBUILD}",
                offset=section.offset,
            )
        if section.type is SectionType.SIGNATURE and section.size > SIGNATURE_MAX_SIZE:
            raise EifError(
                f"a signature of {section.size} bytes, expected at most {SIGNATURE_MAX_SIZE}; sign the image again",
                offset=section.offset + 4,
            )
        seen.setdefault(section.type, section)
    for kind in sorted(exactly_one - seen.keys()):
        raise EifError(f"the image has no {kind.name.lower()} section, expected one; {REBUILD}")


def _check_cmdline(section: EifSection) -> None:
    at = bytes(section.data).find(0)
    if at >= 0:
        raise EifError(f"the command line has a NUL, expected none; {REBUILD}", offset=section.data_offset + at)


def _read_metadata(section: EifSection) -> dict[str, object] | None:
    if section.size > METADATA_MAX_SIZE:
        raise EifError(
            f"{section.size} bytes of metadata, at most {METADATA_MAX_SIZE} are read; build the image with less",
            offset=section.offset + 4,
        )
    try:
        value = json.loads(str(section.data, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise EifError(f"the metadata is not JSON ({error}); {REBUILD}", offset=section.data_offset) from error
    if value is not None and not isinstance(value, dict):
        raise EifError(
            f"the metadata is a JSON {type(value).__name__}, expected an object or null; {REBUILD}",
            offset=section.data_offset,
        )
    return value
