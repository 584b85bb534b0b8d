"""The registers that clients see: one table, from which the block of `g`, `p`, `P` and target.xml are made.

Numbers 0 to 56 are GDB's own amd64 layout, which clients that read no target.xml assume (gdb/features/i386:
64bit-core.xml, 64bit-sse.xml); everything else follows after it. Widths never change with the CPU's mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from enclavedbg.errors import ProtocolError
from enclavedbg.machine.cpu.state import (
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    GENERAL_REGISTERS,
    SEGMENT_REGISTERS,
    CpuState,
)

CORE = "org.gnu.gdb.i386.core"
SSE = "org.gnu.gdb.i386.sse"
LINUX = "org.gnu.gdb.i386.linux"
SEGMENTS = "org.gnu.gdb.i386.segments"
SYSTEM = "org.enclavedbg.x86.system"

RFLAGS_WRITABLE = 0x3F7FD5
"""CF PF AF ZF SF TF IF DF OF IOPL NT RF VM AC VIF VIP ID; bit 1 is always set (SDM volume 1, 3.4.3)."""

Read = Callable[[CpuState], int]
Write = Callable[[CpuState, int], None]


@dataclass(frozen=True, slots=True)
class Register:
    """A register of `bits` width. `type` is a target.xml type; `group` is GDB's register group, if it needs one.

    `write` raises ProtocolError when the CPU could not hold the value.
    """

    name: str
    bits: int
    feature: str
    type: str
    read: Read
    write: Write
    group: str | None = None

    @property
    def size(self) -> int:
        """Width in bytes."""
        return self.bits // 8


def read_register(state: CpuState, number: int) -> bytes:
    """The value of register `number`, little-endian."""
    register = REGISTERS[number]
    return register.read(state).to_bytes(register.size, "little")


def write_register(state: CpuState, number: int, value: bytes) -> CpuState:
    """A copy of `state` with one register changed; ProtocolError when value or resulting state is impossible."""
    register = REGISTERS[number]
    if len(value) != register.size:
        raise ProtocolError(f"{len(value)} bytes for {register.name}, expected {register.size}")
    return _written(state, [(register, int.from_bytes(value, "little"))])


def read_all(state: CpuState) -> bytes:
    """The block that `g` answers: every register in order."""
    return b"".join(read_register(state, number) for number in range(len(REGISTERS)))


def write_all(state: CpuState, data: Sequence[int | None]) -> CpuState:
    """A copy of `state` with the registers of a `G` block.

    Only registers whose value differs are written, so a block just read changes nothing whatever mode the CPU is
    in. None in `data` leaves that byte's register alone; a shorter block leaves the rest alone.
    """
    if len(data) > BLOCK_SIZE:
        raise ProtocolError(f"{len(data)} bytes of registers, expected {BLOCK_SIZE}")
    changed: list[tuple[Register, int]] = []
    for register, offset in zip(REGISTERS, OFFSETS, strict=True):
        piece = [b for b in data[offset : offset + register.size] if b is not None]
        if len(piece) != register.size:
            continue
        value = int.from_bytes(bytes(piece), "little")
        if value != register.read(state):
            changed.append((register, value))
    return _written(state, changed)


def _written(state: CpuState, changes: list[tuple[Register, int]]) -> CpuState:
    changed = copy.deepcopy(state)
    for register, value in changes:
        register.write(changed, value)
    if any(register.name in _MODE_REGISTERS for register, _ in changes):
        _check_modes(changed)
    return changed


_MODE_REGISTERS = frozenset(("cr0", "cr4", "efer"))


def _check_modes(state: CpuState) -> None:
    """Refuse combinations that no CPU can be in (SDM volume 3, 2.5 and 10.8.5.1)."""
    paging, protected = state.cr0 & CR0_PG, state.cr0 & CR0_PE
    if paging and not protected:
        raise ProtocolError("cr0 has PG without PE: paging needs protected mode")
    if state.cr0 & (1 << 29) and not state.cr0 & (1 << 30):
        raise ProtocolError("cr0 has NW without CD, which no CPU allows")
    long_active = bool(state.efer & EFER_LMA)
    if long_active != bool(paging and state.efer & EFER_LME):
        raise ProtocolError("efer.LMA must be set exactly when efer.LME and cr0.PG are")
    if long_active and not state.cr4 & CR4_PAE:
        raise ProtocolError("long mode needs cr4.PAE")


def _ignore(state: CpuState, value: int) -> None:
    """For a register that Linux's ptrace has and a machine has not."""


def _refuse(name: str, reason: str) -> Write:
    def write(state: CpuState, value: int) -> None:
        raise ProtocolError(f"{name} cannot be written: {reason}")

    return write


def _canonical(name: str, state: CpuState, value: int) -> int:
    width = 57 if state.cr4 & CR4_LA57 else 48
    if value >> (width - 1) not in (0, (1 << (65 - width)) - 1):
        raise ProtocolError(f"{value:#x} for {name} is not a canonical {width}-bit address")
    return value


def _attribute(path: str, *, allowed: int = (1 << 64) - 1) -> tuple[Read, Write]:
    """Reader and writer of the dotted attribute `path`; values outside the `allowed` bits are refused."""
    *owners, last = path.split(".")

    def owner(state: CpuState) -> object:
        found: object = state
        for name in owners:
            found = getattr(found, name)
        return found

    def read(state: CpuState) -> int:
        value: int = getattr(owner(state), last)
        return value

    def write(state: CpuState, value: int) -> None:
        if value & ~allowed:
            raise ProtocolError(f"{value:#x} for {last} has reserved bits set ({value & ~allowed:#x})")
        setattr(owner(state), last, value)

    return read, write


def _address(path: str) -> tuple[Read, Write]:
    """Like `_attribute`, for a register that holds a canonical address."""
    read, store = _attribute(path)

    def write(state: CpuState, value: int) -> None:
        store(state, _canonical(path, state, value))

    return read, write


def _plain(
    name: str, bits: int, feature: str, kind: str, access: tuple[Read, Write], group: str | None = None
) -> Register:
    return Register(name, bits, feature, kind, *access, group=group)


def _general(name: str) -> Register:
    def write(state: CpuState, value: int) -> None:
        state.regs[name] = value

    kind = "data_ptr" if name in ("rbp", "rsp") else "int64"
    return Register(name, 64, CORE, kind, lambda state: state.regs[name], write)


def _write_rflags(state: CpuState, value: int) -> None:
    # Reserved bits are dropped, as POPF does; bits 32..63 are not in GDB's register and are always zero.
    state.rflags = value & RFLAGS_WRITABLE | 2


def _selector(name: str) -> Register:
    def write(state: CpuState, value: int) -> None:
        if value > 0xFFFF:
            raise ProtocolError(f"{value:#x} for {name}, expected a selector of 16 bits")
        if not state.cr0 & CR0_PE:
            state.segments[name].base = value << 4
        elif name in ("cs", "ss"):
            raise ProtocolError(f"{name} cannot be written in protected mode: its hidden part would not follow")
        state.segments[name].selector = value

    return Register(name, 32, CORE, "int32", lambda state: state.segments[name].selector, write)


def _segment_base(name: str, feature: str, kind: str) -> Register:
    def write(state: CpuState, value: int) -> None:
        state.segments[name].base = _canonical(f"{name}_base", state, value)

    return Register(f"{name}_base", 64, feature, kind, lambda state: state.segments[name].base, write)


def _x87(index: int) -> Register:
    def write(state: CpuState, value: int) -> None:
        state.fpu.st[index] = value.to_bytes(10, "little")

    return Register(
        f"st{index}", 80, CORE, "i387_ext", lambda state: int.from_bytes(state.fpu.st[index], "little"), write
    )


def _xmm(index: int) -> Register:
    def write(state: CpuState, value: int) -> None:
        state.fpu.xmm[index] = value.to_bytes(16, "little")

    return Register(
        f"xmm{index}", 128, SSE, "vec128", lambda state: int.from_bytes(state.fpu.xmm[index], "little"), write
    )


def _half(name: str, path: str, *, high: bool) -> Register:
    """One half of a 64-bit x87 pointer: what FXSAVE64 calls FIP is GDB's fioff and, above it, fiseg."""
    read, write = _attribute(path)
    shift = 32 if high else 0
    keep = 0xFFFF_FFFF << (32 - shift)

    def put(state: CpuState, value: int) -> None:
        write(state, read(state) & keep | value << shift)

    return Register(name, 32, CORE, "int", lambda state: read(state) >> shift & 0xFFFF_FFFF, put, "float")


def _debug(index: int) -> Register:
    def write(state: CpuState, value: int) -> None:
        if index >= 6 and value >> 32:
            raise ProtocolError(f"{value:#x} for dr{index}, expected 32 bits")
        state.dr[index] = value

    return Register(f"dr{index}", 64, SYSTEM, "int64", lambda state: state.dr[index], write, "system")


def _system(name: str, path: str, *, bits: int = 64, kind: str = "int64", allowed: int | None = None) -> Register:
    access = _attribute(path, allowed=(1 << bits) - 1 if allowed is None else allowed)
    return _plain(name, bits, SYSTEM, kind, access, "system")


def _build() -> Iterator[Register]:
    yield from (_general(name) for name in GENERAL_REGISTERS)
    yield _plain("rip", 64, CORE, "code_ptr", _address("rip"))
    yield Register("eflags", 32, CORE, "x86_eflags", lambda state: state.rflags & 0xFFFF_FFFF, _write_rflags)
    yield from (_selector(name) for name in SEGMENT_REGISTERS)
    yield from (_x87(index) for index in range(8))
    yield _plain("fctrl", 32, CORE, "int", _attribute("fpu.fcw", allowed=0xFFFF), "float")
    yield _plain("fstat", 32, CORE, "int", _attribute("fpu.fsw", allowed=0xFFFF), "float")
    yield _plain("ftag", 32, CORE, "int", _attribute("fpu.ftw", allowed=0xFFFF), "float")
    yield _half("fiseg", "fpu.fip", high=True)
    yield _half("fioff", "fpu.fip", high=False)
    yield _half("foseg", "fpu.fdp", high=True)
    yield _half("fooff", "fpu.fdp", high=False)
    yield _plain("fop", 32, CORE, "int", _attribute("fpu.fop", allowed=0x7FF), "float")
    yield from (_xmm(index) for index in range(16))
    yield _plain("mxcsr", 32, SSE, "i386_mxcsr", _attribute("fpu.mxcsr", allowed=0xFFFF), "vector")
    # -1 is Linux's "not in a system call". GDB takes its full Linux ABI from this register's presence, and
    # writes -1 to it whenever it changes rip.
    yield Register("orig_rax", 64, LINUX, "int", lambda state: (1 << 64) - 1, _ignore, "system")
    yield _segment_base("fs", SEGMENTS, "int")
    yield _segment_base("gs", SEGMENTS, "int")
    yield _plain("k_gs_base", 64, SYSTEM, "int64", _address("msrs.kernel_gs_base"), "system")
    yield _system("cr0", "cr0", kind="x86_cr0", allowed=0xFFFF_FFFF)
    yield _plain("cr2", 64, SYSTEM, "int64", _address("cr2"), "system")
    yield _system("cr3", "cr3", kind="x86_cr3", allowed=(1 << 52) - 1)
    yield _system("cr4", "cr4", kind="x86_cr4", allowed=0xFFFF_FFFF)
    yield _system("cr8", "cr8", allowed=0xF)
    yield _system("efer", "efer", kind="x86_efer", allowed=0xFFFF)
    for name in ("cs", "ss", "ds", "es"):
        yield _segment_base(name, SYSTEM, "int64")
    for name in ("gdtr", "idtr"):
        yield _plain(f"{name}_base", 64, SYSTEM, "data_ptr", _address(f"{name}.base"), "system")
        yield _system(f"{name}_limit", f"{name}.limit", bits=32, kind="int32", allowed=0xFFFF)
    for name in ("tr", "ldtr"):
        yield _system(name, f"{name}.selector", bits=32, kind="int32", allowed=0xFFFF)
        yield _plain(f"{name}_base", 64, SYSTEM, "data_ptr", _address(f"{name}.base"), "system")
        yield _system(f"{name}_limit", f"{name}.limit", bits=32, kind="int32")
    yield from (_debug(index) for index in (0, 1, 2, 3, 6, 7))
    yield _plain("lstar", 64, SYSTEM, "code_ptr", _address("msrs.lstar"), "system")
    yield _system("star", "msrs.star")
    yield _system("sfmask", "msrs.sfmask")
    yield _system("apic_base", "msrs.apic_base")
    read_tsc, _ = _attribute("msrs.tsc")
    yield Register("tsc", 64, SYSTEM, "int64", read_tsc, _refuse("tsc", "it follows the guest's clock"), "system")


REGISTERS: tuple[Register, ...] = tuple(_build())
"""By number."""

NUMBERS: dict[str, int] = {register.name: number for number, register in enumerate(REGISTERS)}

OFFSETS: tuple[int, ...] = tuple(sum(r.size for r in REGISTERS[:n]) for n in range(len(REGISTERS)))
"""Where each register begins in the `g` block, in bytes."""

BLOCK_SIZE = sum(register.size for register in REGISTERS)

EXPEDITED = tuple(NUMBERS[name] for name in ("rbp", "rsp", "rip"))
"""Sent along with each stop, so that a client needs no `g` to show where the guest is."""
