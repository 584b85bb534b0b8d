"""A guest without a kernel: long mode, one identity map, an IDT, and machine code written in the tests."""

from __future__ import annotations

import struct

from enclavedbg.machine.bus import Bus
from enclavedbg.machine.cpu.soft.engine import SoftEngine
from enclavedbg.machine.cpu.state import CpuState, DescriptorTable, Segment
from enclavedbg.machine.memory import GuestMemory

SIZE = 8 << 20
TABLES = 0x9000
GDT = 0x500
TSS = 0x600
IDT = 0x3000
CODE = 0x10000
HANDLERS = 0x20000
USER_CODE = 0x30000
DATA = 0x40000
STACK = 0x58000
IST_STACK = 0x68000
RING0_STACK = 0x78000
ALIAS = 0x4000_0000
"""Virtual address of a second mapping of the first 2 MiB."""

KERNEL_CS, KERNEL_DS, USER_DS, USER_CS = 0x10, 0x18, 0x23, 0x2B
HLT = b"\xf4"


class NoInterrupts:
    """An interrupt controller with a vector to give, or none."""

    def __init__(self) -> None:
        self.vector: int | None = None
        self.acknowledged = 0

    def pending(self) -> int | None:
        return self.vector

    def acknowledge(self) -> int:
        assert self.vector is not None
        vector, self.vector = self.vector, None
        self.acknowledged += 1
        return vector


class BareGuest:
    """The machine under an engine test: memory, bus, controller, engine, and a state that is ready to run."""

    def __init__(self, *, native: bool) -> None:
        self.memory = GuestMemory(SIZE)
        self.bus = Bus()
        self.controller = NoInterrupts()
        self.engine = SoftEngine(self.memory, self.bus, interrupts=self.controller, use_native=native)
        self._tables()
        self._descriptors()
        self.state = self._state()

    def close(self) -> None:
        self.engine.close()
        self.memory.close()

    def code(self, *pieces: bytes, at: int = CODE) -> None:
        """Put machine code somewhere."""
        self.memory.write(at, b"".join(pieces))

    def gate(self, vector: int, code: bytes, *, ist: int = 0) -> int:
        """Install a handler and return its address."""
        address = HANDLERS + vector * 64
        assert len(code) <= 64
        self.memory.write(address, code)
        low = (address & 0xFFFF) | KERNEL_CS << 16 | ist << 32 | 0x8E << 40 | (address >> 16 & 0xFFFF) << 48
        self.memory.write(IDT + vector * 16, struct.pack("<QQ", low, address >> 32))
        return address

    def start(self) -> None:
        """Load the state into the engine."""
        self.engine.load_state(self.state)

    def regs(self) -> dict[str, int]:
        return self.engine.save_state().regs

    def _tables(self) -> None:
        self.memory.write_u64(TABLES, TABLES + 0x1007)
        self.memory.write_u64(TABLES + 0x1000, TABLES + 0x2007)
        self.memory.write_u64(TABLES + 0x1008, TABLES + 0x3007)
        for i in range(SIZE >> 21):
            self.memory.write_u64(TABLES + 0x2000 + 8 * i, i << 21 | 0x87)
        self.memory.write_u64(TABLES + 0x3000, 0x87)

    def _descriptors(self) -> None:
        tss = 0x0000_8900_0000_0067 | (TSS & 0xFFFFFF) << 16
        words = [0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF, tss, 0]
        self.memory.write(GDT, struct.pack("<8Q", *words))
        self.memory.write_u64(TSS + 4, RING0_STACK)
        self.memory.write_u64(TSS + 0x24, IST_STACK)

    def _state(self) -> CpuState:
        state = CpuState(rip=CODE, cr0=0x8001_0013, cr3=TABLES, cr4=0x620, efer=0xD01)
        state.regs["rsp"] = STACK
        state.gdtr = DescriptorTable(GDT, 63)
        state.idtr = DescriptorTable(IDT, 0xFFF)
        state.segments["cs"] = Segment(KERNEL_CS, 0, 0xFFFF_FFFF, 0xA09B)
        for name in ("ss", "ds", "es", "fs", "gs"):
            state.segments[name] = Segment(KERNEL_DS, 0, 0xFFFF_FFFF, 0xC093)
        state.tr = Segment(0x30, TSS, 0x67, 0x8B)
        return state

    def to_user(self, rip: int, *, interrupts: bool = False) -> None:
        """Let the state begin in ring 3."""
        self.state.rip = rip
        self.state.segments["cs"] = Segment(USER_CS, 0, 0xFFFF_FFFF, 0xA0FB)
        self.state.segments["ss"] = Segment(USER_DS, 0, 0xFFFF_FFFF, 0xC0F3)
        self.state.rflags = 0x202 if interrupts else 2
