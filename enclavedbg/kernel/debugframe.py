"""ORC as DWARF call frame information, so that a stock gdb's `bt` walks the kernel's stacks.

Source: DWARF 4, sections 6.4 and 7.23; register numbers from the System V ABI for AMD64, figure 3.36. Each run of
ORC entries of one kind becomes one frame description; within it a row is written only where the rule changes.

What ORC cannot say stays unsaid: general registers other than rsp, rbp and rip are "undefined" in a caller, which
gdb shows as <not saved>, until a saved pt_regs gives them all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from itertools import count

from enclavedbg.kernel.orc import OrcEntry, OrcRegister, OrcTable, OrcType, decode

CIE_ID = 0xFFFF_FFFF
DATA_ALIGN = -8
MAX_ROWS = 96
"""Rows in one frame description at most: gdb replays them from its start at every lookup."""

RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP = range(8)
R8, R9, R10, R11, R12, R13, R14, R15, RIP = range(8, 17)
EFLAGS, CS, SS = 49, 51, 52

PT_REGS = (
    R15, R14, R13, R12, RBP, RBX, R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI, None, RIP, CS, EFLAGS, RSP, SS,
)  # fmt: skip
"""struct pt_regs (arch/x86/include/uapi/asm/ptrace.h): eight bytes each; None is orig_rax."""
INTERRUPT_FRAME = PT_REGS[PT_REGS.index(RIP) :]
UNKNOWN_IN_CALLER = (RAX, RDX, RCX, RBX, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15)

BASE_REGISTER = {
    OrcRegister.DX: RDX, OrcRegister.DI: RDI, OrcRegister.BP: RBP, OrcRegister.SP: RSP,
    OrcRegister.R10: R10, OrcRegister.R13: R13,
}  # fmt: skip

DW_CFA_ADVANCE_LOC, DW_CFA_OFFSET = 0x40, 0x80
DW_CFA_ADVANCE_LOC1, DW_CFA_ADVANCE_LOC2, DW_CFA_ADVANCE_LOC4 = 2, 3, 4
DW_CFA_UNDEFINED, DW_CFA_SAME_VALUE, DW_CFA_DEF_CFA = 7, 8, 0xC
DW_CFA_DEF_CFA_EXPRESSION, DW_CFA_EXPRESSION = 0xF, 0x10
DW_CFA_OFFSET_EXTENDED_SF, DW_CFA_DEF_CFA_SF, DW_CFA_VAL_EXPRESSION = 0x11, 0x12, 0x16
DW_OP_DEREF, DW_OP_CONSTS, DW_OP_PLUS, DW_OP_BREG0 = 6, 0x11, 0x22, 0x70


class FrameKind(IntEnum):
    """One common information entry each."""

    NONE = 0
    CALL = 1
    SWITCH = 2
    """A call made after changing to another stack, which holds the old stack pointer at its top."""
    REGS = 3
    INTERRUPTED = 4
    PARTIAL = 5
    END = 6


def uleb(value: int) -> bytes:
    """Unsigned LEB128 (DWARF 4, 7.6)."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sleb(value: int) -> bytes:
    """Signed LEB128 (DWARF 4, 7.6)."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def debug_frame(table: OrcTable, *, callers: Iterable[tuple[int, int]] = ()) -> bytes:
    """The `.debug_frame` section for a whole kernel, addresses as linked.

    `callers` are (start, end) of code that saves registers on being called, not interrupted, whatever ORC says:
    system call entries. There the saved rip follows a complete instruction, and gdb can show the entry's name.
    """
    return _Writer(table, sorted(callers)).section()


class _Writer:
    def __init__(self, table: OrcTable, callers: list[tuple[int, int]]) -> None:
        self._table = table
        self._callers = callers
        self._out: list[bytes] = []
        self._size = 0
        self._cie = {kind: self._add_cie(kind) for kind in FrameKind if kind}
        # Distinct entries are few: each gets a number, each pair of them the bytes that lead from one to the other.
        numbers: dict[tuple[int, int, int], int] = {}
        counter = count(1)
        self._numbers = [
            numbers[record] if record in numbers else numbers.setdefault(record, next(counter))
            for record in table.records
        ]
        self._entries = [None, *(decode(record, table.layout) for record in numbers)]
        self._kinds = [FrameKind.NONE if entry is None else _kind(entry) for entry in self._entries]
        self._steps: dict[int, bytes] = {}

    def section(self) -> bytes:
        addresses, numbers, kinds, steps = self._table.addresses, self._numbers, self._kinds, self._steps
        width = len(self._entries)
        kind, start, at, previous, rows = FrameKind.NONE, 0, 0, 0, 0
        code: list[bytes] = []
        last = len(numbers) - 1
        for index, number in enumerate(numbers):
            address = addresses[index]
            if index < last and addresses[index + 1] == address:
                continue  # of several entries for one address the last counts
            if number == previous and rows < MAX_ROWS:
                continue
            if kinds[number] is not kind or rows >= MAX_ROWS:
                if kind:
                    self._add_fde(kind, start, address, code)
                kind, start, at, previous, rows, code = kinds[number], address, address, 0, 0, []
            if not kind:
                previous = number
                continue
            pair = previous * width + number
            step = steps.get(pair)
            if step is None:
                step = steps[pair] = self._step(previous, number)
            if step:
                distance = address - at
                if distance:
                    code.append(_advance(distance))
                code.append(step)
                at = address
                rows += 1
            previous = number
        # The last entry is the end mark of the last section; one that is not describes nothing known.
        return b"".join(self._out)

    def _step(self, previous: int, number: int) -> bytes:
        """What changes from one rule to the next; from the common entry's own rules when there is no previous one."""
        old, new = self._entries[previous], self._entries[number]
        assert new is not None
        if new.type is OrcType.END_OF_STACK:
            return b""
        before = (_CFA_AT_CALL, b"", b"", _rbp_at_start(new)) if old is None else _rules(old)
        return b"".join(now for now, then in zip(_rules(new), before, strict=True) if now != then)

    def _add_cie(self, kind: FrameKind) -> int:
        body = struct.pack("<IB", CIE_ID, 1)
        # "S" tells a debugger that the caller was interrupted at its rip, and did not call.
        body += (
            (b"zS\0" if kind in (FrameKind.INTERRUPTED, FrameKind.PARTIAL) else b"z\0")
            + uleb(1)
            + sleb(DATA_ALIGN)
            + bytes([RIP])
            + uleb(0)
        )
        body += _common_rules(kind)
        place = self._size
        self._add(body)
        return place

    def _add_fde(self, kind: FrameKind, start: int, end: int, code: list[bytes]) -> None:
        if kind is FrameKind.INTERRUPTED and any(low <= start < high for low, high in self._callers):
            kind = FrameKind.REGS
        if start < end:
            head = struct.pack("<IQQB", self._cie[kind], start, end - start, 0)
            self._add(head + b"".join(code))

    def _add(self, body: bytes) -> None:
        # With its length the entry must fill whole words; DW_CFA_nop is 0.
        body += bytes(-(len(body) + 4) % 8)
        self._out.append(struct.pack("<I", len(body)) + body)
        self._size += 4 + len(body)


def _kind(entry: OrcEntry) -> FrameKind:
    match entry.type:
        case OrcType.CALL:
            return FrameKind.SWITCH if entry.sp_register is OrcRegister.SP_INDIRECT else FrameKind.CALL
        case OrcType.REGS:
            return FrameKind.INTERRUPTED if entry.signal else FrameKind.REGS
        case OrcType.REGS_PARTIAL:
            return FrameKind.PARTIAL
        case OrcType.END_OF_STACK:
            return FrameKind.END
        case _:
            return FrameKind.NONE


def _common_rules(kind: FrameKind) -> bytes:
    rules = _CFA_AT_CALL
    match kind:
        case FrameKind.CALL | FrameKind.SWITCH:
            # The return address lies in the word below the frame's address, rsp is that address by default.
            rules += bytes([DW_CFA_OFFSET | RIP, 1])
            rules += b"".join(bytes([DW_CFA_UNDEFINED, register]) for register in UNKNOWN_IN_CALLER)
        case FrameKind.REGS | FrameKind.INTERRUPTED:
            rules += _saved(PT_REGS)
        case FrameKind.PARTIAL:
            rules += _saved(INTERRUPT_FRAME)
        case FrameKind.END:
            rules += bytes([DW_CFA_UNDEFINED, RIP])
    return rules


def _saved(registers: tuple[int | None, ...]) -> bytes:
    return b"".join(
        bytes([DW_CFA_OFFSET_EXTENDED_SF, register]) + sleb(-place)
        for place, register in enumerate(registers)
        if register is not None
    )


def _rules(entry: OrcEntry) -> tuple[bytes, bytes, bytes, bytes]:
    """The rules for the frame address, rip, rsp and rbp; empty where the common entry has them already.

    The frame address is ORC's "previous sp", except after a change of stacks: gdb takes a caller at a lower address
    for a corrupt stack, so there it stays on the new stack, and the old one appears in the registers only.
    """
    if entry.sp_register is not OrcRegister.SP_INDIRECT:
        return _cfa(entry), b"", b"", _rbp(entry)
    rbp = bytes([DW_CFA_SAME_VALUE, RBP])
    if entry.bp_register is OrcRegister.PREV_SP:
        rbp = _expression([DW_CFA_EXPRESSION, RBP], RSP, 0, then=_deref_plus(entry.sp_offset + entry.bp_offset))
    elif entry.bp_register is OrcRegister.BP:
        rbp = _rbp(entry)
    return (
        _CFA_AT_CALL,
        _expression([DW_CFA_EXPRESSION, RIP], RSP, 0, then=_deref_plus(entry.sp_offset - 8)),
        _expression([DW_CFA_VAL_EXPRESSION, RSP], RSP, 0, then=_deref_plus(entry.sp_offset)),
        rbp,
    )


def _cfa(entry: OrcEntry) -> bytes:
    """The rule for the canonical frame address, which is ORC's "previous sp"."""
    match entry.sp_register:
        case OrcRegister.BP_INDIRECT:
            return _expression([DW_CFA_DEF_CFA_EXPRESSION], RBP, entry.sp_offset, then=bytes([DW_OP_DEREF]))
        case OrcRegister.SP | OrcRegister.BP:
            register, offset = BASE_REGISTER[entry.sp_register], entry.sp_offset
        case _:
            register, offset = BASE_REGISTER[entry.sp_register], 0  # the kernel ignores the offset here too
    if offset >= 0:
        return bytes([DW_CFA_DEF_CFA, register]) + uleb(offset)
    if offset % DATA_ALIGN:
        return _expression([DW_CFA_DEF_CFA_EXPRESSION], register, offset)
    return bytes([DW_CFA_DEF_CFA_SF, register]) + sleb(offset // DATA_ALIGN)


def _rbp(entry: OrcEntry) -> bytes:
    match entry.bp_register:
        case OrcRegister.PREV_SP if entry.bp_offset % DATA_ALIGN:
            return _expression([DW_CFA_EXPRESSION, RBP], None, entry.bp_offset)
        case OrcRegister.PREV_SP if entry.bp_offset <= 0:
            return bytes([DW_CFA_OFFSET | RBP]) + uleb(entry.bp_offset // DATA_ALIGN)
        case OrcRegister.PREV_SP:
            return bytes([DW_CFA_OFFSET_EXTENDED_SF, RBP]) + sleb(entry.bp_offset // DATA_ALIGN)
        case OrcRegister.BP:
            return _expression([DW_CFA_EXPRESSION, RBP], RBP, entry.bp_offset)
        case _:
            return _rbp_at_start(entry)


def _rbp_at_start(entry: OrcEntry) -> bytes:
    """The rule for an rbp that the entry leaves alone: as saved in pt_regs, or unchanged."""
    if entry.type is OrcType.REGS:
        return bytes([DW_CFA_OFFSET_EXTENDED_SF, RBP]) + sleb(-PT_REGS.index(RBP))
    return bytes([DW_CFA_SAME_VALUE, RBP])


def _expression(rule: list[int], register: int | None, offset: int, *, then: bytes = b"") -> bytes:
    """A rule by expression: register + offset, or offset from the frame address, then more."""
    code = bytes([DW_OP_BREG0 + register]) + sleb(offset) if register is not None else _plus(offset)
    code += then
    return bytes(rule) + uleb(len(code)) + code


def _deref_plus(offset: int) -> bytes:
    return bytes([DW_OP_DEREF]) + _plus(offset)


def _plus(offset: int) -> bytes:
    return bytes([DW_OP_CONSTS]) + sleb(offset) + bytes([DW_OP_PLUS]) if offset else b""


def _advance(distance: int) -> bytes:
    if distance < 0x40:
        return _SHORT_ADVANCE[distance]
    if distance < 0x100:
        return bytes([DW_CFA_ADVANCE_LOC1, distance])
    if distance < 0x10000:
        return struct.pack("<BH", DW_CFA_ADVANCE_LOC2, distance)
    return struct.pack("<BI", DW_CFA_ADVANCE_LOC4, distance)


_CFA_AT_CALL = bytes([DW_CFA_DEF_CFA, RSP, 8])
_SHORT_ADVANCE = [bytes([DW_CFA_ADVANCE_LOC | distance]) for distance in range(0x40)]
