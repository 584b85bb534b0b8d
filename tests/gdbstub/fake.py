"""A machine of a hundred lines: real bytes in memory, four instructions of x86, and a thread that runs them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.cpu.engine import (
    BreakpointHit,
    Caught,
    CpuStop,
    Halted,
    Interrupted,
    StepDone,
    StopReason,
    TripleFault,
    Watchpoint,
    WatchpointHit,
)
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.events import EventStream, GuestResumed, GuestStopped
from enclavedbg.machine.paging import Translation

TEXT = 0xFFFF_FFFF_8100_0000
DATA = 0xFFFF_FFFF_8200_0000
KERNEL_BASE = 0xFFFF_FFFF_8000_0000
PAGE = 4096

CODE = bytes.fromhex("90 90 88 07 90 eb fa")
"""nop, nop, mov %al,(%rdi), nop, jmp back to the second nop."""


@dataclass(frozen=True)
class FakeVerdict:
    """An end like the machine's own."""

    kind: ClassVar[str] = "verdict"
    line: str
    exit_status: int

    def summary(self) -> str:
        return self.line


def long_mode_state(rip: int = TEXT) -> CpuState:
    """A CPU in 64-bit kernel mode, with something in most registers."""
    state = CpuState(rip=rip, rflags=0x246, cr0=0x8005_0033, cr3=0x1234000, cr4=0x3606F0, efer=0xD01)
    for index, name in enumerate(state.regs):
        state.regs[name] = 0x1111_1111_1111_1111 * index & (1 << 64) - 1
    state.regs["rdi"] = DATA
    state.regs["rsp"] = DATA + 0x800
    state.segments["cs"].selector, state.segments["cs"].attributes = 0x10, 0xA09B
    state.segments["gs"].base = 0xFFFF_8880_0700_0000
    state.fpu.st = [bytes(range(i, i + 10)) for i in range(8)]
    state.fpu.xmm = [bytes([i]) * 16 for i in range(16)]
    state.fpu.fip, state.fpu.fdp, state.fpu.fop, state.fpu.ftw = 0x1234_5678_9ABC, 0x11_2233_4455, 0x7FF, 0x00FF
    state.msrs.lstar, state.msrs.tsc = 0xFFFF_FFFF_8180_0000, 12345
    return state


class FakeMachine:
    """Has the shape of `gdbstub.target.DebugTarget`. With `threaded`, resume and step happen on a thread;
    without, they wait until a test calls `advance`.
    """

    def __init__(self, *, threaded: bool = False) -> None:
        self.events = EventStream(lambda: 0)
        text, data = TEXT - KERNEL_BASE, DATA - KERNEL_BASE
        self.pages = {text: bytearray(CODE.ljust(PAGE, b"\x90")), data: bytearray(PAGE), data + PAGE: bytearray(PAGE)}
        """RAM by physical address; all of it is mapped at KERNEL_BASE, unless `kernel_mapped` is cleared."""
        self.kernel_mapped = True
        self.cpu = long_mode_state()
        self.running = False
        self.stop_reason: StopReason | None = None
        self.caught: Caught | None = None
        self.verdict: FakeVerdict | None = None
        self.ended = False
        self.breakpoints: set[tuple[int, str]] = set()
        self.watchpoints: set[tuple[Watchpoint, str]] = set()
        self.holders: set[str] = set()
        self._threaded = threaded
        self._interrupt = threading.Event()
        self._stepping = False

    # ---- run control

    def interrupt(self) -> None:
        self._interrupt.set()

    def resume(self) -> None:
        self._go(stepping=False)

    def step(self) -> None:
        self._go(stepping=True)

    def _go(self, *, stepping: bool) -> None:
        if self.running or self.ended:
            raise MachineError("the enclave has ended" if self.ended else "the enclave is running")
        self._interrupt.clear()
        self.running, self._stepping = True, stepping
        self.events.publish(GuestResumed())
        if self._threaded:
            threading.Thread(target=self.advance, daemon=True).start()

    def advance(self) -> None:
        """Do what the last resume or step asked for, and publish how it ended."""
        reason: CpuStop | None = None
        while self.verdict is None:
            reason = self._execute()
            if reason is not None or self._stepping:
                reason = reason or StepDone()
                break
            if self._interrupt.is_set():
                reason = Interrupted()
            elif self.cpu.rip in {address for address, _ in self.breakpoints}:
                reason = BreakpointHit(self.cpu.rip)
            if reason is not None:
                break
        self.stop_with(reason)

    def stop_with(self, reason: StopReason | None, verdict: FakeVerdict | None = None) -> None:
        """Stop; with a verdict the machine is held at its end, and the next resume publishes it."""
        if self.verdict is not None:
            self.running, self.ended = False, True
            self.events.publish(self.verdict)
            return
        self.stop_reason, self.verdict = reason, verdict
        if isinstance(reason, Halted):
            self.verdict = FakeVerdict("hang: the CPU halted with interrupts off", 12)
        elif isinstance(reason, TripleFault) and verdict is None:
            self.verdict = FakeVerdict("triple fault", 11)
        self.running = False
        self.events.publish(GuestStopped(type(reason).__name__, self.cpu.rip))

    def _execute(self) -> CpuStop | None:
        cpu = self.cpu
        match list(self._fetch(cpu.rip)):
            case [0x88, 0x07]:
                address = cpu.regs["rdi"]
                try:
                    self.write_physical(self.translate(address).gpa, bytes((cpu.regs["rax"] & 0xFF,)))
                except GuestFault:
                    return TripleFault(14)
                cpu.rip += 2
                for watch, _ in self.watchpoints:
                    if watch.address <= address < watch.address + watch.length:
                        return WatchpointHit(watch, address)
            case [0xEB, distance]:
                cpu.rip += 2 + (distance ^ 0x80) - 0x80
            case [0xF4, _]:
                return Halted(interruptible=False)
            case _:
                cpu.rip += 1
        return None

    def _fetch(self, rip: int) -> bytes:
        return self.read_physical(rip - KERNEL_BASE, 2)

    # ---- data

    def _still(self) -> None:
        if self.running:
            raise MachineError("the enclave is running; stop it first")

    def state(self) -> CpuState:
        self._still()
        return self.cpu

    def set_state(self, state: CpuState) -> None:
        self._still()
        self.cpu = state

    def translate(self, address: int) -> Translation:
        gpa = address - KERNEL_BASE
        if gpa & -PAGE not in self.pages or not self.kernel_mapped:
            raise GuestFault(f"{address:#x} is not mapped: PTE is 0x0", address=address, level="PTE", entry=0)
        return Translation(gpa, PAGE, address >= DATA, False, address < DATA)

    def read_virtual(self, address: int, length: int) -> bytes:
        self._still()
        return self.read_physical(self.translate(address).gpa, length)

    def write_virtual(self, address: int, data: bytes) -> None:
        self._still()
        self.translate(address + len(data) - 1)
        self.write_physical(self.translate(address).gpa, data)

    def read_physical(self, gpa: int, length: int) -> bytes:
        data = bytearray()
        while len(data) < length and (page := self.pages.get(gpa + len(data) & -PAGE)) is not None:
            start = gpa + len(data) & PAGE - 1
            data += page[start : start + length - len(data)]
        return bytes(data)

    def write_physical(self, gpa: int, data: bytes) -> None:
        for at, byte in enumerate(data, gpa):
            self.pages[at & -PAGE][at & PAGE - 1] = byte

    # ---- breakpoints

    def hold(self, owner: str) -> None:
        self.holders.add(owner)

    def add_breakpoint(self, address: int, *, owner: str) -> None:
        self.breakpoints.add((address, owner))

    def remove_breakpoint(self, address: int, *, owner: str) -> None:
        self.breakpoints.remove((address, owner))

    def add_watchpoint(self, watchpoint: Watchpoint, *, owner: str) -> None:
        self.watchpoints.add((watchpoint, owner))

    def remove_watchpoint(self, watchpoint: Watchpoint, *, owner: str) -> None:
        self.watchpoints.remove((watchpoint, owner))

    def clear_owner(self, owner: str) -> None:
        self.holders.discard(owner)
        self.breakpoints = {point for point in self.breakpoints if point[1] != owner}
        self.watchpoints = {point for point in self.watchpoints if point[1] != owner}
