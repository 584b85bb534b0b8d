"""Builds page tables in guest memory, of every shape that x86 has."""

from __future__ import annotations

from dataclasses import dataclass

from enclavedbg.machine.cpu.state import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, CpuState
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.paging import LARGE, PRESENT, USER, WRITABLE

ALL = PRESENT | WRITABLE | USER


@dataclass(frozen=True)
class Format:
    """A paging mode: entry size in bytes, and each level's lowest address bit and entry count, from the top."""

    name: str
    entry: int
    levels: tuple[tuple[int, int], ...]
    cr4: int
    efer: int = 0

    def state(self, root: int) -> CpuState:
        """A CPU that uses tables at `root`."""
        return CpuState(cr0=CR0_PG | 0x11, cr3=root, cr4=self.cr4, efer=self.efer)

    @property
    def bits(self) -> int:
        shift, count = self.levels[0]
        return shift + count.bit_length() - 1


_TOP = ((39, 512), (30, 512), (21, 512), (12, 512))
FORMATS = {
    f.name: f
    for f in (
        Format("5-level", 8, ((48, 512), *_TOP), CR4_PAE | CR4_LA57, EFER_LMA | 0x100),
        Format("4-level", 8, _TOP, CR4_PAE, EFER_LMA | 0x100),
        Format("PAE", 8, ((30, 4), (21, 512), (12, 512)), CR4_PAE),
        Format("32-bit", 4, ((22, 1024), (12, 1024)), CR4_PSE),
    )
}


class TableBuilder:
    """Maps addresses one by one; tables are taken from `first` upwards, the root is the first."""

    def __init__(self, memory: GuestMemory, form: Format, *, first: int) -> None:
        self.memory = memory
        self.format = form
        self.root = first
        self._next = first + 0x1000

    def slot(self, va: int, level: int, *, flags: int = ALL) -> int:
        """Physical address of the entry for `va` at a level (0 is the root's), with the tables above it made."""
        table = self.root
        for depth in range(level + 1):
            shift, count = self.format.levels[depth]
            at = table + self.format.entry * (va >> shift & (count - 1))
            if depth == level:
                return at
            if not self.read(at) & PRESENT:
                # PAE's top entries have no rights of their own.
                own = PRESENT if self.format.name == "PAE" and depth == 0 else flags
                self.write(at, self._next | own)
                self._next += 0x1000
            table = self.read(at) & 0x000F_FFFF_FFFF_F000
        raise AssertionError(level)

    def map(self, va: int, gpa: int, *, size: int = 0x1000, flags: int = ALL) -> None:
        """Map one page of `size` bytes."""
        shifts = [shift for shift, _ in self.format.levels]
        level = shifts.index(size.bit_length() - 1)
        entry = gpa | flags | (LARGE if level < len(shifts) - 1 else 0)
        self.write(self.slot(va, level), entry)

    def read(self, at: int) -> int:
        return self.memory.read_u64(at) if self.format.entry == 8 else self.memory.read_u32(at)

    def write(self, at: int, value: int) -> None:
        if self.format.entry == 8:
            self.memory.write_u64(at, value)
        else:
            self.memory.write_u32(at, value)
