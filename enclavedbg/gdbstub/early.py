"""Where the kernel's link addresses are in RAM before the kernel has mapped them.

A debugger that is asked for a breakpoint on a kernel function reads that function first. When the machine
stands before the kernel's first instruction, no page table leads there yet, but the firmware has already put
the kernel in place: its ELF program headers say which physical address each link address has.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from enclavedbg.errors import GuestFault, ProtocolError
from enclavedbg.gdbstub.target import DebugTarget

_KERNEL_HALF = 0xFFFF_8000_0000_0000
_ELF_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")  # Elf64_Ehdr after e_ident
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_PT_LOAD = 1


@dataclass(frozen=True, slots=True)
class LinkedSegment:
    """A loaded part of the kernel: link address, physical address, size in bytes."""

    virtual: int
    physical: int
    size: int


@dataclass(frozen=True, slots=True)
class LinkMap:
    """The kernel's segments, as linked; only addresses in the kernel's half count."""

    segments: tuple[LinkedSegment, ...]

    @classmethod
    def from_elf(cls, elf: bytes | memoryview) -> LinkMap:
        """Read the program headers of a kernel; raises ProtocolError if it is no x86-64 ELF file."""
        image = memoryview(elf)
        if len(image) < _ELF_HEADER.size or bytes(image[:6]) != b"\x7fELF\x02\x01":
            raise ProtocolError("the kernel is not a little-endian ELF64 file, so it has no link addresses")
        _, _, _, _, table, _, _, _, size, count, *_ = _ELF_HEADER.unpack_from(image)
        if size != _PROGRAM_HEADER.size or table + size * count > len(image):
            raise ProtocolError("the kernel's program headers are outside its file")
        segments = []
        for index in range(count):
            kind, _, _, virtual, physical, _, memory, _ = _PROGRAM_HEADER.unpack_from(image, table + index * size)
            if kind == _PT_LOAD and virtual >= _KERNEL_HALF and memory:
                segments.append(LinkedSegment(virtual, physical, memory))
        return cls(tuple(segments))

    def physical(self, target: DebugTarget, address: int) -> tuple[int, int] | None:
        """Physical address and bytes that follow in its segment, or None.

        None too once the guest maps the kernel: from then on only its page tables count, for it unmaps
        parts of itself later.
        """
        for segment in self.segments:
            if segment.virtual <= address < segment.virtual + segment.size:
                if _mapped(target, self.segments[0].virtual):
                    return None
                offset = address - segment.virtual
                return segment.physical + offset, segment.size - offset
        return None


def _mapped(target: DebugTarget, address: int) -> bool:
    try:
        target.translate(address)
    except GuestFault:
        return False
    return True
