"""The kernel's ELF file as the image carries it: section table and loadable bytes, by address.

The payload of a bzImage is a stripped vmlinux: no `.symtab`, but headers and section table intact.
Source: ELF-64 Object File Format 1.5.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from enclavedbg.errors import SymbolError

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")

EM_X86_64 = 62
SHT_PROGBITS = 1
SHT_NOBITS = 8
SHF_WRITE = 1
SHF_ALLOC = 2
SHF_EXECINSTR = 4

MAX_SECTIONS = 4096
"""A kernel has about 40; more than this is not one."""

KERNEL_BASE = 0xFFFF_FFFF_8000_0000
"""Start of the kernel's text mapping (Documentation/arch/x86/x86_64/mm.rst)."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section header; `offset` and `size` are in bytes of the file, checked against it unless NOBITS."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    alignment: int

    @property
    def allocated(self) -> bool:
        """Whether the section takes part in the running kernel's memory."""
        return bool(self.flags & SHF_ALLOC)

    @property
    def executable(self) -> bool:
        return bool(self.flags & SHF_EXECINSTR)


class KernelImage:
    """A checked view of a vmlinux file: sections by name and by address. Raises SymbolError when it is not one."""

    def __init__(self, elf: bytes) -> None:
        self.data = elf
        self.sections = tuple(_sections(elf))
        self._by_name = {s.name: s for s in reversed(self.sections)}
        # Percpu data lies at address 0 and is not mapped there: lookups by address leave it out.
        self._mapped = sorted((s for s in self.sections if s.address >= KERNEL_BASE), key=lambda s: s.address)
        self._starts = [s.address for s in self._mapped]

    def section(self, name: str) -> Section | None:
        """The section of that name, or None."""
        return self._by_name.get(name)

    def contents(self, name: str) -> memoryview | None:
        """The bytes of a section that the file holds, or None when it is absent, empty or NOBITS."""
        section = self._by_name.get(name)
        if section is None or section.kind == SHT_NOBITS or not section.size:
            return None
        return memoryview(self.data)[section.offset : section.offset + section.size]

    def section_at(self, address: int) -> Section | None:
        """The mapped section that holds a virtual address (as linked), or None."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            section = self._mapped[at]
            if address < section.address + section.size:
                return section
        return None

    def executable_ranges(self) -> list[tuple[int, int]]:
        """(start, end) of the sections that hold code, in order of address."""
        return [(s.address, s.address + s.size) for s in self._mapped if s.executable and s.size]

    def release(self) -> str | None:
        """The kernel's release ("6.12.95+deb12-cloud-amd64") from its banner, or None."""
        found = re.search(rb"Linux version (\d+\.\d+[\x21-\x7e]{0,80}) \(", self.data)
        return found.group(1).decode("ascii") if found else None


def _sections(elf: bytes) -> Iterator[Section]:
    if len(elf) < EHDR.size or elf[:6] != b"\x7fELF\x02\x01":
        raise SymbolError("the kernel is no 64-bit little-endian ELF file: symbols need the unpacked vmlinux")
    _, _, machine, _, _, _, shoff, _, _, _, _, shentsize, shnum, shstrndx = EHDR.unpack_from(elf)
    if machine != EM_X86_64:
        raise SymbolError(f"the kernel is for ELF machine {machine}, expected {EM_X86_64} (x86-64)")
    if shentsize != SHDR.size or not 0 < shnum <= MAX_SECTIONS or shoff + shnum * SHDR.size > len(elf):
        raise SymbolError(f"the kernel has no usable section table ({shnum} entries at {shoff:#x})")
    headers = [SHDR.unpack_from(elf, shoff + i * SHDR.size) for i in range(shnum)]
    names = _names(elf, headers, shstrndx)
    for name, kind, flags, address, offset, size, _, _, alignment, _ in headers[1:]:
        if kind != SHT_NOBITS and offset + size > len(elf):
            raise SymbolError(f"the kernel's section at {offset:#x}, {size:#x} bytes, ends after the file")
        if address + size > 1 << 64:
            raise SymbolError(f"the kernel's section at address {address:#x} wraps around")
        end = names.find(b"\0", name)
        text = names[name:end].decode("ascii", "replace") if end >= 0 else ""
        yield Section(text, kind, flags, address, offset, size, alignment)


def _names(elf: bytes, headers: list[tuple[int, ...]], index: int) -> bytes:
    if index >= len(headers):
        raise SymbolError(f"the kernel's section names are in section {index} of {len(headers)}")
    offset, size = headers[index][4], headers[index][5]
    if offset + size > len(elf) or size > 1 << 20:
        raise SymbolError(f"the kernel's section names at {offset:#x}, {size:#x} bytes, end after the file")
    return bytes(elf[offset : offset + size])
