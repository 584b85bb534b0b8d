"""The zero page (boot_params): what a loader tells the kernel.

Source: Linux Documentation/arch/x86/zero-page.rst and boot.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from enclavedbg.eif.bzimage import HEADER_OFFSET, SetupHeader
from enclavedbg.machine.layout import HIGH_MEMORY, LOW_RAM_END
from enclavedbg.machine.memory import RamRegion

BOOT_PARAMS_SIZE = 4096
LOADER_TYPE_UNDEFINED = 0xFF
KASLR_FLAG = 1 << 1
E820_MAX = 128

_E820_ENTRY = struct.Struct("<QQI")


class E820Type(IntEnum):
    """Kinds of memory in the map."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class E820Entry:
    """A range of guest physical memory."""

    gpa: int
    size: int
    type: E820Type


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a thing lies in guest memory: address and size in bytes."""

    gpa: int
    size: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


def memory_map(regions: Sequence[RamRegion]) -> tuple[E820Entry, ...]:
    """The e820 map for RAM that begins at 0: what is below 1 MiB as on a PC, then the regions whole."""
    low, *others = regions
    entries = [
        E820Entry(0, LOW_RAM_END, E820Type.RAM),
        E820Entry(LOW_RAM_END, HIGH_MEMORY - LOW_RAM_END, E820Type.RESERVED),
        E820Entry(HIGH_MEMORY, low.size - HIGH_MEMORY, E820Type.RAM),
    ]
    return (*entries, *(E820Entry(region.gpa, region.size, E820Type.RAM) for region in others))


def boot_params(
    header: SetupHeader,
    *,
    memory: Sequence[E820Entry],
    cmdline: int,
    initrd: Placement | None,
    rsdp: int = 0,
) -> bytes:
    """The 4096 bytes of boot_params for a kernel entered at its ELF payload.

    `cmdline` and `rsdp` are guest physical addresses, `rsdp` 0 when there are no ACPI tables. Only the setup
    header is taken from the image: a byte before it that is not zero (the sentinel at 0x1ef) would make the
    kernel distrust the whole page.
    """
    page = bytearray(BOOT_PARAMS_SIZE)
    page[HEADER_OFFSET : HEADER_OFFSET + len(header.raw)] = header.raw
    # Kernel and symbols stay where they were linked: nothing here moves them.
    page[0x211] &= ~KASLR_FLAG
    page[0x210] = LOADER_TYPE_UNDEFINED
    struct.pack_into("<I", page, 0x228, cmdline & 0xFFFF_FFFF)
    struct.pack_into("<I", page, 0x0C8, cmdline >> 32)
    if initrd is not None:
        struct.pack_into("<II", page, 0x218, initrd.gpa & 0xFFFF_FFFF, initrd.size & 0xFFFF_FFFF)
        struct.pack_into("<II", page, 0x0C0, initrd.gpa >> 32, initrd.size >> 32)
    struct.pack_into("<Q", page, 0x070, rsdp)
    page[0x1E8] = len(memory)
    for index, entry in enumerate(memory[:E820_MAX]):
        _E820_ENTRY.pack_into(page, 0x2D0 + index * _E820_ENTRY.size, entry.gpa, entry.size, entry.type)
    return bytes(page)
