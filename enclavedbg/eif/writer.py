"""Writes an EIF file as nitro-cli's builder lays it out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence

from enclavedbg.eif.format import (
    CURRENT_VERSION,
    DEFAULT_CPUS,
    DEFAULT_MEMORY,
    HEADER_SIZE,
    MAX_SECTIONS,
    SECTION_HEADER,
    SIGNATURE_MAX_SIZE,
    EifHeader,
    HeaderFlags,
    SectionType,
)
from enclavedbg.errors import EifError

ARCHITECTURE_FLAGS = {"x86_64": HeaderFlags(0), "aarch64": HeaderFlags.AARCH64}


def write_eif(
    *,
    kernel: bytes | memoryview,
    cmdline: bytes,
    ramdisks: Sequence[bytes | memoryview],
    metadata: Mapping[str, object] | None = None,
    architecture: str = "x86_64",
    signature: bytes | None = None,
) -> bytes:
    """An EIF of version 4 with the sections in the order of nitro-cli: kernel, cmdline, metadata, ramdisks, signature.

    `metadata` is written as compact JSON in the order given (`enclavedbg.eif.build_metadata` makes nitro-cli's
    members), None as `null`; `signature` is the finished CBOR of the section. Raises EifError when the parts
    cannot form a valid file.
    """
    if architecture not in ARCHITECTURE_FLAGS:
        raise EifError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURE_FLAGS)}")
    if b"\0" in cmdline:
        raise EifError(f"the command line has a NUL at byte {cmdline.index(0)}; the format wants it without, remove it")
    sections: list[tuple[SectionType, bytes | memoryview]] = [
        (SectionType.KERNEL, kernel),
        (SectionType.CMDLINE, cmdline),
        (SectionType.METADATA, encode_metadata(metadata)),
    ]
    sections += [(SectionType.RAMDISK, ramdisk) for ramdisk in ramdisks]
    if signature is not None:
        if len(signature) > SIGNATURE_MAX_SIZE:
            raise EifError(f"a signature of {len(signature)} bytes: the format allows {SIGNATURE_MAX_SIZE}")
        sections.append((SectionType.SIGNATURE, signature))
    if len(sections) > MAX_SECTIONS:
        raise EifError(f"{len(sections)} sections: the format allows {MAX_SECTIONS}; join some of the ramdisks")
    return assemble(sections, flags=ARCHITECTURE_FLAGS[architecture])


def assemble(
    sections: Sequence[tuple[int, bytes | memoryview]], *, version: int = CURRENT_VERSION, flags: int = 0
) -> bytes:
    """Sections in the order given behind a header with the right offsets, sizes and CRC; nothing is checked."""
    chunks: list[bytes | memoryview] = []
    offsets: list[int] = []
    position = HEADER_SIZE
    for kind, data in sections:
        offsets.append(position)
        chunks += (SECTION_HEADER.pack(kind, 0, len(data)), data)
        position += SECTION_HEADER.size + len(data)
    header = EifHeader(
        version=version,
        flags=flags,
        default_memory=DEFAULT_MEMORY,
        default_cpus=DEFAULT_CPUS,
        offsets=tuple(offsets),
        sizes=tuple(len(data) for _, data in sections),
        crc32=0,
    ).pack()[:-4]
    crc = zlib.crc32(header)
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
    return b"".join((header, crc.to_bytes(4, "big"), *chunks))


def encode_metadata(metadata: Mapping[str, object] | None) -> bytes:
    """A Metadata section's JSON: compact, UTF-8, members in the order given."""
    try:
        return json.dumps(metadata, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise EifError(f"the metadata cannot be written as JSON: {error}") from error
