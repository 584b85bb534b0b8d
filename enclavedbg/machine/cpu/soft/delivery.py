"""Exceptions and system calls in Python, for where the native part cannot be used.

Unicorn hands the guest's faults and `syscall` to callbacks and expects them to do what the processor does. Its
own delivery code is called, but not before the guest's tables and stack were found to be mapped: a fault inside
the delivery would longjmp through Python's frames.
"""

from __future__ import annotations

from ctypes import c_uint64

from enclavedbg.errors import GuestFault
from enclavedbg.machine.cpu.engine import TripleFault
from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft.core import UnicornCore
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.paging import Translation, translate

DOUBLE_FAULT = 8
INVALID_OPCODE = 6
_RF = 1 << 16
_LAZY_FLAGS = 0xCD5
_CODE64 = 0x00AF9B00
_DATA = 0x00CF9300
_HF_CPL = 3
_HF_CS64 = 1 << 15
_INTERRUPT_GATES = (0xE, 0xF)


class PythonDelivery:
    """The callbacks `interrupt`, `invalid_opcode` and `syscall`; `triple_fault` is set when one cannot go on."""

    def __init__(self, core: UnicornCore, memory: GuestMemory) -> None:
        self._core = core
        self._memory = memory
        self.triple_fault: TripleFault | None = None
        self.exceptions = 0
        self.syscalls = 0

    def interrupt(self, _uc: int, vector: int, _user: int) -> None:
        """UC_HOOK_INTR: deliver a fault, trap or software interrupt."""
        self.exceptions += 1
        core = self._core
        problem = self._obstacle(vector)
        if problem:
            # What the processor would meet here is a page or protection fault while delivering this one. After
            # a contributory fault or a page fault that makes a double fault; after any other it would be a
            # fault of its own, whose delivery needs the same stack: a double fault is where both end.
            if vector == DOUBLE_FAULT or self._obstacle(DOUBLE_FAULT):
                self.triple_fault = TripleFault(vector, problem)
                core.stop()
                return
            vector = DOUBLE_FAULT
            core.exception_is_int.value = 0
            core.error_code.value = 0
        core.exception_index.value = vector
        core.lib.x86_cpu_do_interrupt(core.cpu)
        core.exception_index.value = -1
        if core.singlestep.value:
            # A step that faults ends at its handler's first instruction.
            core.stop()

    def invalid_opcode(self, _uc: int, _user: int) -> bool:
        """UC_HOOK_INSN_INVALID: #UD, which Unicorn sends another way than every other fault."""
        self._core.exception_is_int.value = 0
        self.interrupt(_uc, INVALID_OPCODE, _user)
        return True

    def syscall(self, _uc: int, _user: int) -> None:
        """The `syscall` instruction (SDM volume 2); Unicorn adds its length, 2, to RIP afterwards."""
        self.syscalls += 1
        core = self._core
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
        core.eip.value = (entry - 2) & 0xFFFF_FFFF_FFFF_FFFF

    # What could make the delivery itself fault?

    def _obstacle(self, vector: int) -> str | None:
        """Why a vector cannot be delivered: a sentence, or None when its gate and stack are in order."""
        core = self._core
        if (vector + 1) * 16 - 1 > core.idt.limit:
            return f"vector {vector} lies beyond the IDT's limit {core.idt.limit:#x}"
        try:
            low = self._read_u64(core.idt.base + vector * 16)
            self._page(core.idt.base + vector * 16 + 8)
            if not low >> 47 & 1 or low >> 40 & 0x1F not in _INTERRUPT_GATES:
                return f"the IDT's gate for vector {vector} is {low:#x}"
            selector = low >> 16 & 0xFFFC
            if selector + 7 > core.gdt.limit:
                return f"the gate's selector {selector:#x} lies beyond the GDT's limit"
            self._page(core.gdt.base + selector)
            stack = self._stack(low >> 32 & 7, self._read_u64(core.gdt.base + selector) >> 45 & 3)
            for address in (stack - 1, stack - 48):
                if not self._page(address).writable:
                    return f"the stack at {stack:#x} is read-only"
        except GuestFault as fault:
            return str(fault)
        return None

    def _stack(self, ist: int, target_cpl: int) -> int:
        """The stack pointer that the delivery will push to (SDM volume 3, 6.14.2 and 6.14.5)."""
        core = self._core
        if ist:
            return self._read_u64(core.tr.base + 0x24 + 8 * (ist - 1)) & ~0xF
        if target_cpl != core.hflags.value & _HF_CPL:
            return self._read_u64(core.tr.base + 4 + 8 * target_cpl) & ~0xF
        return int(core.regs[4]) & ~0xF

    def _page(self, va: int) -> Translation:
        return live_translate(self._core, self._memory, va)

    def _read_u64(self, va: int) -> int:
        page = self._page(va)
        if page.remaining < 8:
            low = self._memory.read(page.gpa, page.remaining)
            rest = self._memory.read(self._page(va + page.remaining).gpa, 8 - page.remaining)
            return int.from_bytes(low + rest, "little")
        return self._memory.read_u64(page.gpa)


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
    va &= 0xFFFF_FFFF_FFFF_FFFF
    return translate(_Registers(core), va, read_u64=memory.read_u64, read_u32=memory.read_u32)
