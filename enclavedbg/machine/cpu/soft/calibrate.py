"""Checks at start-up that Unicorn's structures lie where layout.py says, by running a handful of instructions."""

from __future__ import annotations

import ctypes

from enclavedbg.errors import MachineError
from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft import library as uc
from enclavedbg.machine.cpu.soft import transfer
from enclavedbg.machine.cpu.soft.core import UnicornCore
from enclavedbg.machine.cpu.state import CpuState, Segment
from enclavedbg.machine.memory import GuestMemory

_CODE = 0x1000
_PATTERN = 0x1122_3344_5566_7788
_REG_RAX = 35
"""UC_X86_REG_RAX of unicorn/x86.h."""

_UD2_HLT = b"\x0f\x0b\xf4"


def calibrate(core: UnicornCore, memory: GuestMemory) -> None:
    """Run a guest that faults and one that halts, and see both where they are expected.

    Uses the first pages of guest memory, which are still empty, and leaves them so; the CPU is left in its reset
    state. Raises MachineError when an offset does not fit.
    """
    value = ctypes.c_uint64(_PATTERN)
    core.lib.call("uc_reg_write", core.uc, _REG_RAX, ctypes.byref(value))
    _expect(core.regs[0] == _PATTERN, "the general registers")
    core.regs[0] = 0
    reset = transfer.save(core, 0)
    transfer.load(core, _flat_protected_mode())
    memory.write(_CODE, _UD2_HLT)
    seen: list[tuple[int, int]] = []

    def on_exception(_uc: int, vector: int) -> bool:
        seen.append((vector, core.exception_index.value))
        return vector == 6

    def skip(_uc: int, _user: int) -> bool:
        core.eip.value += 2
        return True

    hook = uc.StopInterruptHook(on_exception)
    slot = ctypes.c_void_p.from_address(core.uc + at.UC_STOP_INTERRUPT)
    original = slot.value
    handle = core.add_hook(uc.HOOK_INSN_INVALID, uc.InvalidHook(skip))
    slot.value = ctypes.cast(hook, ctypes.c_void_p).value
    try:
        error = core.start()
    finally:
        slot.value = original
        core.lib.uc_hook_del(core.uc, handle)
        memory.fill_zero(_CODE, len(_UD2_HLT))
        core.lib.tb_flush(core.cpu)
    _expect(error == 0, f"a run of two instructions ({core.lib.error_text(error)})")
    _expect((6, 6) in seen, "the exception's number")
    _expect(core.halted.value == 1, "the halted flag")
    _expect(core.eip.value == _CODE + 3, "the instruction pointer")
    core.halted.value = 0
    transfer.load(core, reset)


def _flat_protected_mode() -> CpuState:
    state = CpuState(rip=_CODE, cr0=0x11)
    state.segments["cs"] = Segment(8, 0, 0xFFFF_FFFF, 0xC09B)
    for name in ("ss", "ds", "es", "fs", "gs"):
        state.segments[name] = Segment(16, 0, 0xFFFF_FFFF, 0xC093)
    return state


def _expect(held: bool, what: str) -> None:
    if not held:
        raise MachineError(
            f"the software CPU cannot be used: {what} is not where unicorn {at.UNICORN_VERSION} keeps it; "
            "reinstall that release"
        )
