"""The layout of an EIF file: header, section headers, and the limits of the format.

Source: README of aws-nitro-enclaves-image-format. All integers are big-endian; sections follow the header
and each other without gaps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

MAGIC = b".eif"
CURRENT_VERSION = 4
OLDEST_VERSION = 2
METADATA_SINCE = 4

MAX_SECTIONS = 32
MIN_SECTIONS = 2
SIGNATURE_MAX_SIZE = 32768

DEFAULT_MEMORY = 1 << 30
DEFAULT_CPUS = 2
"""What the reference builder writes; no loader uses either."""

HEADER = struct.Struct(">4sHHQQHH32Q32QI")
"""magic, version, flags, default_mem, default_cpus, reserved, num_sections, offsets, sizes, unused; then the CRC."""
HEADER_SIZE = HEADER.size + 4
CRC_OFFSET = HEADER.size
OFFSETS_AT = 0x1C
SIZES_AT = 0x11C

SECTION_HEADER = struct.Struct(">HHQ")
"""type, flags, size of the data."""


class SectionType(IntEnum):
    """What a section holds; 0 and everything above 5 is not allowed."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5


class HeaderFlags(IntFlag):
    """Flags of the file header."""

    AARCH64 = 1


@dataclass(frozen=True, slots=True)
class EifHeader:
    """The file header; `offsets` and `sizes` hold the used entries only, in file order.

    An offset is that of the section's header, a size that of its data, both in bytes.
    """

    version: int
    flags: int
    default_memory: int
    default_cpus: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    crc32: int

    def pack(self) -> bytes:
        """The header's 548 bytes."""
        count = len(self.offsets)
        padding = (0,) * (MAX_SECTIONS - count)
        body = HEADER.pack(
            MAGIC,
            self.version,
            self.flags,
            self.default_memory,
            self.default_cpus,
            0,
            count,
            *self.offsets,
            *padding,
            *self.sizes,
            *padding,
            0,
        )
        return body + self.crc32.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class EifSection:
    """One section: its type, where its header lies in the file, and its data."""

    type: SectionType
    offset: int
    data: memoryview

    @property
    def data_offset(self) -> int:
        """Where the data begins in the file."""
        return self.offset + SECTION_HEADER.size

    @property
    def size(self) -> int:
        """Bytes of data."""
        return len(self.data)
