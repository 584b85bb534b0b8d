"""Exceptions and system calls in Python, for where the native part cannot be used.

Unicorn hands the guest's faults and `syscall` to callbacks and expects them to do what the processor does. Its
own delivery code is called, but a fault inside it would longjmp through Python's frames. So all that it will ask
of the guest's tables and stacks is asked here first, and the fault that it would meet is delivered in its place,
up to the double and the triple fault.
"""

from __future__ import annotations

import logging
from ctypes import c_uint64
from dataclasses import dataclass

from enclavedbg.errors import GuestFault
from enclavedbg.machine.cpu.engine import EngineFailure, TripleFault
from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft.core import SegmentCache, UnicornCore
from enclavedbg.machine.cpu.state import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.paging import Translation, translate

log = logging.getLogger(__name__)

INVALID_OPCODE = 6
DOUBLE_FAULT = 8
INVALID_TSS = 10
NOT_PRESENT = 11
PROTECTION = 13
PAGE_FAULT = 14
NO_TASK_STATE = "the task register holds nothing, so there is no stack to deliver it on"

_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
_RF = 1 << 16
_VM = 1 << 17
_AC = 1 << 18
_EFER_SCE = 1
_LAZY_FLAGS = 0xCD5
_CODE64 = 0x00AF9B00
_DATA = 0x00CF9300
_HF_CPL = 3
_HF_LMA = 1 << 14
_HF_CS64 = 1 << 15
_HF_SMAP = 1 << 23
_GATE_TYPES = (0xE, 0xF)
_MMU_KERNEL_SMAP, _MMU_KERNEL = 0, 2
_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF

# Bits of a descriptor's upper word.
_CONFORMING, _CODE, _MEMORY, _PRESENT, _LONG, _BIG = 1 << 10, 1 << 11, 1 << 12, 1 << 15, 1 << 21, 1 << 22


@dataclass(frozen=True, slots=True)
class _Fault:
    """What the processor meets while it delivers an exception: vector, error code, and a sentence."""

    vector: int
    error: int
    why: str


class _PageMissing(Exception):
    """An access of the delivery would fault; the CPU's error code and CR2 say how."""


class _Undeliverable(Exception):
    """Neither this exception nor any other can be delivered."""


class PythonDelivery:
    """The callbacks `interrupt` and `syscall`.

    `fatal` is set when one cannot go on; `instruction` must be kept at the address of the instruction that caused
    the exception; `interrupt_held` tells that the pending interrupt was taken back.
    """

    def __init__(self, core: UnicornCore, memory: GuestMemory) -> None:
        self._core = core
        self._memory = memory
        self.fatal: TripleFault | EngineFailure | None = None
        self.instruction = 0
        self.interrupt_held = False

    def interrupt(self, _uc: int, vector: int, _user: int) -> None:
        """UC_HOOK_INTR: deliver a fault, trap or software interrupt."""
        try:
            self._deliver(vector)
        except Exception as error:
            # An exception that leaves a callback is lost in ctypes.
            log.exception("exception %d could not be delivered", vector)
            self._give_up(EngineFailure(f"delivering exception {vector}: {type(error).__name__}: {error}"))

    def _deliver(self, vector: int) -> None:
        core = self._core
        if core.exception_is_int.value:
            # Unicorn has gone past an INT already; should its gate refuse, the fault is the INT's.
            core.eip.value = self.instruction
        self._let_stop_through()
        if not self._long_mode:
            self._give_up(
                EngineFailure(f"exception {vector} outside long mode at {core.eip.value:#x}: needs the native part")
            )
            return
        chosen = self._deliverable(vector)
        if chosen is None:
            return
        core.exception_index.value = chosen
        core.lib.x86_cpu_do_interrupt(core.cpu)
        core.exception_index.value = -1
        if core.singlestep.value:
            # A step that faults ends at its handler's first instruction.
            core.stop()

    @property
    def _long_mode(self) -> bool:
        """Whether the CPU is in long mode in every respect; QEMU lets a guest switch PAE off below it."""
        core = self._core
        paging = core.cr[0] & CR0_PE and core.cr[0] & CR0_PG and core.cr[4] & CR4_PAE
        return bool(core.hflags.value & _HF_LMA and core.field(c_uint64, at.ENV_EFER).value & EFER_LMA and paging)

    def _let_stop_through(self) -> None:
        """An interrupt whose gate is bad may come again for ever, before Unicorn looks whether it should stop."""
        request = self._core.interrupt_request
        if self._core.exit_request.value and request.value & at.INTERRUPT_VIRQ:
            request.value &= ~at.INTERRUPT_VIRQ
            self.interrupt_held = True

    def _deliverable(self, vector: int) -> int | None:
        """The vector that can be delivered: this one, or the fault that comes of it; None after a triple fault."""
        core = self._core
        first = vector
        try:
            while (fault := self._obstacle(vector)) is not None:
                why = fault.why
                if not self._escalate(fault):
                    raise _Undeliverable(why)
                vector = core.exception_index.value
        except (_Undeliverable, GuestFault) as error:
            self._give_up(TripleFault(first, str(error)))
            return None
        return vector

    def _escalate(self, fault: _Fault) -> bool:
        """Make a fault inside a delivery the current exception, as it is or as a double fault (SDM 3, table 6-5)."""
        core = self._core
        old = core.old_exception.value
        if old == DOUBLE_FAULT:
            return False
        vector, error = fault.vector, fault.error
        contributory = old == 0 or INVALID_TSS <= old <= PROTECTION
        # All that a delivery can meet is contributory or a page fault.
        if old == PAGE_FAULT or (contributory and vector != PAGE_FAULT):
            vector, error = DOUBLE_FAULT, 0
        core.old_exception.value = vector
        core.exception_index.value = vector
        core.error_code.value = error
        core.exception_is_int.value = 0
        return True

    def _give_up(self, reason: TripleFault | EngineFailure) -> None:
        self.fatal = reason
        self._core.stop()

    def syscall(self, _uc: int, _user: int) -> None:
        """The `syscall` instruction (SDM volume 2); Unicorn adds its length, 2, to RIP afterwards."""
        core = self._core
        if not core.field(c_uint64, at.ENV_EFER).value & _EFER_SCE:
            core.exception_is_int.value = 0
            core.error_code.value = 0
            self.interrupt(_uc, INVALID_OPCODE, _user)
            core.eip.value = (core.eip.value - 2) & _ADDRESS
            return
        flags = core.lib.helper_read_eflags(core.env) & ~_RF
        masked = flags & ~core.field(c_uint64, at.ENV_FMASK).value
        code64 = core.hflags.value & _HF_CS64
        core.regs[1] = core.eip.value + 2
        core.regs[11] = flags
        selector = core.field(c_uint64, at.ENV_STAR).value >> 32 & 0xFFFC
        for index, value, attributes in ((1, selector, _CODE64), (2, selector + 8, _DATA)):
            segment = core.segments[index]
            segment.selector, segment.base, segment.limit, segment.flags = value, 0, 0xFFFF_FFFF, attributes
        core.hflags.value &= ~_HF_CPL
        core.eflags.value = (masked & ~_LAZY_FLAGS) | 2
        core.lib.helper_write_eflags(core.env, masked, 0)
        core.lib.x86_update_hflags(core.env)
        entry = core.field(c_uint64, at.ENV_LSTAR if code64 else at.ENV_CSTAR).value
        core.eip.value = (entry - 2) & _ADDRESS

    # ---- what could make the delivery itself fault? In the order of the processor (SDM volume 3, 6.14) ----

    def _obstacle(self, vector: int) -> _Fault | None:
        """The fault that delivering `vector` would meet, or None; raises _Undeliverable."""
        try:
            return self._gate(vector)
        except _PageMissing as missing:
            core = self._core
            return _Fault(core.exception_index.value, core.error_code.value, str(missing))

    def _gate(self, vector: int) -> _Fault | None:
        core = self._core
        error = vector * 16 + 2
        cpl = core.hflags.value & _HF_CPL
        software = bool(core.exception_is_int.value)
        if vector * 16 + 15 > core.idt.limit:
            return _Fault(PROTECTION, error, f"vector {vector} lies beyond the IDT's limit {core.idt.limit:#x}")
        gate = self._read(core.idt.base + vector * 16, 12, f"the IDT's gate for vector {vector}")
        words = f"the IDT's gate for vector {vector} is {gate:#x}"
        if gate >> 40 & 0x1F not in _GATE_TYPES or (software and gate >> 45 & 3 < cpl):
            return _Fault(PROTECTION, error, words)
        if not gate >> 47 & 1:
            return _Fault(NOT_PRESENT, error, words)
        return self._code_segment(vector, gate >> 16 & 0xFFFF, gate >> 32 & 7, cpl)

    def _code_segment(self, vector: int, selector: int, ist: int, cpl: int) -> _Fault | None:
        core = self._core
        error = selector & 0xFFFC
        words = f"the code segment {selector:#x} of the gate for vector {vector}"
        table: SegmentCache = core.ldt if selector & 4 else core.gdt
        if not error or (selector & ~7) + 7 > table.limit:
            return _Fault(PROTECTION, error, f"{words} is not in its table")
        upper = self._read(table.base + (selector & ~7), 8, words) >> 32
        dpl = upper >> 13 & 3
        if not upper & _MEMORY or not upper & _CODE or dpl > cpl:
            return _Fault(PROTECTION, error, f"{words} is {upper:#x}")
        if not upper & _PRESENT:
            return _Fault(NOT_PRESENT, error, f"{words} is not present")
        if not upper & _LONG or upper & _BIG:
            return _Fault(PROTECTION, error, f"{words} is not 64-bit")
        if upper & _CONFORMING:
            dpl = cpl
        if core.eflags.value & _VM and not ist and dpl == cpl:
            return _Fault(PROTECTION, error, f"{words} is not of the ring that virtual 8086 mode needs")
        return self._stack(vector, ist, dpl, cpl)

    def _stack(self, vector: int, ist: int, dpl: int, cpl: int) -> _Fault | None:
        core = self._core
        stack = int(core.regs[4])
        if ist or dpl < cpl:
            if not core.tr.flags & _PRESENT:
                raise _Undeliverable(NO_TASK_STATE)
            index = 8 * (ist + 3 if ist else dpl) + 4
            if index + 7 > core.tr.limit:
                return _Fault(INVALID_TSS, core.tr.selector & 0xFFFC, f"the TSS ends before its byte {index + 7}")
            stack = self._read(core.tr.base + index, 8, "the TSS")
        pushed = 40
        if vector in _WITH_ERROR_CODE and not core.exception_is_int.value:
            pushed += 8
        stack &= ~0xF
        for address in (stack - 8, stack - pushed):
            self._reach(address, write=True, what=f"the stack at {stack:#x}")
        return None

    def _read(self, address: int, length: int, what: str) -> int:
        """A little-endian number from the guest's tables; raises _PageMissing and _Undeliverable."""
        self._reach(address, write=False, what=what)
        page = self._page(address)
        if page.remaining >= length:
            return int.from_bytes(self._memory.read(page.gpa, length), "little")
        rest = address + page.remaining
        self._reach(rest, write=False, what=what)
        low = self._memory.read(page.gpa, page.remaining)
        return int.from_bytes(low + self._memory.read(self._page(rest).gpa, length - page.remaining), "little")

    def _reach(self, address: int, *, write: bool, what: str) -> None:
        """Have the CPU map one page as the delivery will use it; that also refreshes what its TLB held.

        With `probe` set the walk reports a fault instead of leaving through a longjmp.
        """
        core = self._core
        smap = core.hflags.value & _HF_SMAP
        explicit = core.hflags.value & _HF_CPL < 3 and core.eflags.value & _AC
        mmu = _MMU_KERNEL_SMAP if smap and not explicit else _MMU_KERNEL
        if not core.lib.x86_cpu_tlb_fill(core.cpu, address & _ADDRESS, 8, int(write), mmu, True, 0):
            raise _PageMissing(f"{what} cannot be {'written' if write else 'read'} at {address & _ADDRESS:#x}")

    def _page(self, va: int) -> Translation:
        return live_translate(self._core, self._memory, va)


class _Registers:
    """The paging registers, read from the live CPU."""

    __slots__ = ("cr0", "cr3", "cr4", "efer")

    def __init__(self, core: UnicornCore) -> None:
        self.cr0 = int(core.cr[0])
        self.cr3 = int(core.cr[3])
        self.cr4 = int(core.cr[4])
        self.efer = int(core.field(c_uint64, at.ENV_EFER).value)


def live_translate(core: UnicornCore, memory: GuestMemory, va: int) -> Translation:
    """Walk the tables that the CPU uses now; raises GuestFault."""
    va &= _ADDRESS
    return translate(_Registers(core), va, read_u64=memory.read_u64, read_u32=memory.read_u32)
