"""Page walks in Python: from a guest virtual address to a guest physical one, with the reason when there is none.

Done here rather than by an engine: it works for any CR3, on either engine and on a saved snapshot, has no side
effects, and can say which table entry ended the walk (SDM volume 3, chapter 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from enclavedbg.errors import GuestFault
from enclavedbg.machine.cpu.state import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA

PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
LARGE = 1 << 7
NO_EXECUTE = 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000
_LEVELS = ("PTE", "PDE", "PDPTE", "PML4E", "PML5E")

ReadWord = Callable[[int], int]
"""Reads 8 (or for 32-bit tables 4) bytes of guest physical memory; raises GuestFault outside RAM."""


class PagingRegisters(Protocol):
    """The registers that a walk depends on: a CpuState will do."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


@dataclass(frozen=True, slots=True)
class Translation:
    """Where a virtual address leads: physical address, the page's size in bytes, and what it allows."""

    gpa: int
    page_size: int
    writable: bool
    user: bool
    executable: bool

    @property
    def remaining(self) -> int:
        """Bytes from this address to the end of its page."""
        return self.page_size - (self.gpa & (self.page_size - 1))


def translate(registers: PagingRegisters, va: int, *, read_u64: ReadWord, read_u32: ReadWord) -> Translation:
    """Walk the tables that `registers` select; raises GuestFault with level and entry when nothing is mapped."""
    if not registers.cr0 & CR0_PG:
        return Translation(va & 0xFFFF_FFFF, 4096, True, True, True)
    if registers.efer & EFER_LMA:
        levels = 5 if registers.cr4 & CR4_LA57 else 4
        canonical_bits = 12 + 9 * levels
        top = va >> (canonical_bits - 1)
        if top not in (0, (1 << (65 - canonical_bits)) - 1):
            raise GuestFault(f"{va:#x} is not a canonical address", address=va, level="canonical")
        return _walk(registers.cr3 & _ADDRESS, va, levels, read_u64)
    if registers.cr4 & CR4_PAE:
        return _walk_pae(registers.cr3 & 0xFFFF_FFE0, va & 0xFFFF_FFFF, read_u64)
    large = bool(registers.cr4 & CR4_PSE)
    return _walk_32(registers.cr3 & 0xFFFF_F000, va & 0xFFFF_FFFF, read_u32, large=large)


def _missing(va: int, level: str, entry: int) -> GuestFault:
    return GuestFault(f"{va:#x} is not mapped: {level} is {entry:#x}", address=va, level=level, entry=entry)


def _walk(table: int, va: int, levels: int, read_u64: ReadWord, allowed: int = WRITABLE | USER) -> Translation:
    executable = True
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        entry = read_u64(table + 8 * (va >> shift & 511))
        if not entry & PRESENT:
            raise _missing(va, _LEVELS[level], entry)
        allowed &= entry
        executable = executable and not entry & NO_EXECUTE
        if level == 0 or (level <= 2 and entry & LARGE):
            size = 1 << shift
            base = entry & _ADDRESS & ~(size - 1)
            return Translation(
                base | (va & (size - 1)), size, bool(allowed & WRITABLE), bool(allowed & USER), executable
            )
        table = entry & _ADDRESS
    raise _missing(va, _LEVELS[0], 0)  # a walk of no levels: not reachable with levels >= 1


def _walk_pae(table: int, va: int, read_u64: ReadWord) -> Translation:
    entry = read_u64(table + 8 * (va >> 30))
    if not entry & PRESENT:
        raise _missing(va, "PDPTE", entry)
    return _walk(entry & _ADDRESS, va, 2, read_u64)


def _walk_32(table: int, va: int, read_u32: ReadWord, *, large: bool) -> Translation:
    entry = read_u32(table + 4 * (va >> 22))
    if not entry & PRESENT:
        raise _missing(va, "PDE", entry)
    if large and entry & LARGE:
        base = (entry & 0xFFC0_0000) | (entry >> 13 & 0xFF) << 32
        return Translation(base | (va & 0x3F_FFFF), 1 << 22, bool(entry & WRITABLE), bool(entry & USER), True)
    leaf = read_u32((entry & 0xFFFF_F000) + 4 * (va >> 12 & 1023))
    if not leaf & PRESENT:
        raise _missing(va, "PTE", leaf)
    allowed = entry & leaf
    return Translation((leaf & 0xFFFF_F000) | (va & 0xFFF), 4096, bool(allowed & WRITABLE), bool(allowed & USER), True)
