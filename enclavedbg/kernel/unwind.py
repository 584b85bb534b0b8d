"""Backtraces of the guest's stacks, through interrupts, exceptions and system calls, by the kernel's own ORC tables.

Source: arch/x86/kernel/unwind_orc.c of Linux 6.12. Where ORC knows nothing (user space, modules, BPF) a frame pointer
is tried, and kept only while it leads upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from enclavedbg.errors import GuestFault
from enclavedbg.kernel.image import KERNEL_BASE
from enclavedbg.kernel.orc import FRAME_POINTER, NULL_CALL, OrcEntry, OrcRegister, OrcTable, OrcType
from enclavedbg.kernel.symbols import KernelSymbols

PT_REGS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "rflags", "rsp", "ss",
)  # fmt: skip
"""struct pt_regs (arch/x86/include/uapi/asm/ptrace.h), eight bytes each."""
INTERRUPT_FRAME = PT_REGS[PT_REGS.index("rip") :]
USER_TOP = 1 << 47
"""First address above user space with four-level page tables."""
MAX_GUESSED_FRAME = 1 << 20
"""A frame larger than this is none: the frame pointer held something else."""
MASK = (1 << 64) - 1

Read = Callable[[int, int], bytes]
"""(virtual address, length) -> as many bytes as are mapped; raises GuestFault when the first is not."""


class Registers(Protocol):
    """What a backtrace starts from: `CpuState` has it."""

    @property
    def regs(self) -> Mapping[str, int]: ...
    @property
    def rip(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, innermost first.

    `ip` is where it executes, or will go on; `symbol` and `offset` say where that is, None and 0 outside the kernel;
    `cfa` is the stack pointer of its caller before the call (0: not known); `registers` are those known there, by
    name. `interrupted`: the frame did not call the one before, an interrupt, exception or system call came.
    """

    ip: int
    symbol: str | None
    offset: int
    cfa: int
    interrupted: bool = False
    registers: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def user(self) -> bool:
        """Whether it is user space's."""
        return self.ip < USER_TOP


@dataclass(frozen=True, slots=True)
class Backtrace:
    """Frames, innermost first, and the reason for which there is no further one: one line, for people."""

    frames: tuple[Frame, ...]
    end: str


def backtrace(
    read: Read, state: Registers, symbols: KernelSymbols, orc: OrcTable | None, *, limit: int = 64
) -> Backtrace:
    """Walk a stack from a CPU's registers. Never raises for what the guest's memory holds: that ends the walk.

    `symbols` and `orc` must be moved by the running kernel's slide; without `orc` frame pointers are followed.
    """
    registers = {**state.regs, "rip": state.rip}
    walk = _Walk(read, symbols, orc)
    frames: list[Frame] = []
    interrupted = True  # nothing was called yet: the address itself counts, not the byte before
    while len(frames) < limit:
        frame, caller, how = walk.step(registers, interrupted)
        frames.append(frame)
        if caller is None:
            return Backtrace(tuple(frames), how)
        interrupted = how == _INTERRUPTED
        registers = caller
    return Backtrace(tuple(frames), f"stopped after {limit} frames")


_INTERRUPTED = "interrupted"
_CALLED = "called"
_NO_FRAME_POINTER = "no unwind information here, and no frame pointer"


class _Walk:
    def __init__(self, read: Read, symbols: KernelSymbols, orc: OrcTable | None) -> None:
        self._read = read
        self._symbols = symbols
        self._orc = orc

    def step(self, registers: dict[str, int], interrupted: bool) -> tuple[Frame, dict[str, int] | None, str]:
        """The frame of these registers, the caller's registers or None, and how it was left or why it ends."""
        ip = registers["rip"]
        found = self._symbols.lookup(ip if interrupted else ip - 1)
        name, offset = (found[0], found[1] + (not interrupted)) if found else (None, 0)
        cfa = 0
        caller: dict[str, int] | None = None
        entry = self._entry(ip if interrupted else ip - 1)
        if entry.type is OrcType.END_OF_STACK:
            how = "end of stack"
        elif entry.type is OrcType.UNDEFINED:
            how = f"no unwind information at {ip:#x}"
        elif entry is FRAME_POINTER and not 0 <= registers.get("rbp", 0) - registers["rsp"] < MAX_GUESSED_FRAME:
            how = _NO_FRAME_POINTER
        else:
            try:
                cfa, caller, how = self._caller(entry, registers)
            except GuestFault as fault:
                how = f"cannot read the stack: {fault}"
            except KeyError as missing:
                how = f"register {missing.args[0]} is not known here"
        return Frame(ip, name, offset, cfa, interrupted, registers), caller, how

    def _entry(self, ip: int) -> OrcEntry:
        if ip <= 0:
            return NULL_CALL
        entry = self._orc.lookup(ip) if self._orc and ip >= KERNEL_BASE else None
        return entry or FRAME_POINTER

    def _caller(self, entry: OrcEntry, registers: dict[str, int]) -> tuple[int, dict[str, int] | None, str]:
        sp = self._stack_pointer(entry, registers)
        match entry.type:
            case OrcType.CALL:
                caller = {"rip": self._word(sp - 8), "rsp": sp}
                # A callee may use any other register; whoever needs one must have saved it, and ORC knows rbp only.
                if "rbp" in registers:
                    caller["rbp"] = registers["rbp"]
            case OrcType.REGS:
                caller = self._saved(sp, PT_REGS)
            case _:
                caller = {k: v for k, v in registers.items() if k not in INTERRUPT_FRAME}
                caller |= self._saved(sp, INTERRUPT_FRAME)
        match entry.bp_register:
            case OrcRegister.PREV_SP:
                caller["rbp"] = self._word(sp + entry.bp_offset)
            case OrcRegister.BP:
                caller["rbp"] = self._word(registers["rbp"] + entry.bp_offset)
        if entry.type is not OrcType.CALL:
            return sp, caller, _INTERRUPTED
        return sp, *self._checked(entry, registers, caller)

    def _checked(
        self, entry: OrcEntry, registers: dict[str, int], caller: dict[str, int]
    ) -> tuple[dict[str, int] | None, str]:
        """Stop where a call leads nowhere or down the same stack, as a guess by frame pointer soon does."""
        if caller["rip"] == 0:
            return None, "end of stack"
        switched = entry.sp_register is OrcRegister.SP_INDIRECT
        if caller["rsp"] <= registers["rsp"] and not switched:
            return None, "the stack leads downwards: it is damaged, or the code keeps no frame pointer"
        if entry is FRAME_POINTER and (caller["rip"] < USER_TOP) != (registers["rip"] < USER_TOP):
            return None, _NO_FRAME_POINTER
        return caller, _CALLED

    def _stack_pointer(self, entry: OrcEntry, registers: dict[str, int]) -> int:
        match entry.sp_register:
            case OrcRegister.SP_INDIRECT:
                return self._word(registers["rsp"]) + entry.sp_offset & MASK
            case OrcRegister.BP_INDIRECT:
                return self._word(registers["rbp"] + entry.sp_offset)
            case OrcRegister.SP:
                return registers["rsp"] + entry.sp_offset & MASK
            case OrcRegister.BP:
                return registers["rbp"] + entry.sp_offset & MASK
            case register:
                return registers[_NAMES[register]]

    def _word(self, address: int) -> int:
        return int.from_bytes(self._bytes(address & MASK, 8), "little")

    def _saved(self, address: int, names: tuple[str, ...]) -> dict[str, int]:
        data = self._bytes(address, 8 * len(names))
        return {name: int.from_bytes(data[8 * i : 8 * i + 8], "little") for i, name in enumerate(names)}

    def _bytes(self, address: int, length: int) -> bytes:
        data = self._read(address, length)
        if len(data) < length:
            raise GuestFault(f"{address + len(data):#x} is not mapped", address=address + len(data))
        return data


_NAMES = {OrcRegister.DX: "rdx", OrcRegister.DI: "rdi", OrcRegister.R10: "r10", OrcRegister.R13: "r13"}
