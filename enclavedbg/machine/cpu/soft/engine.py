"""The software CPU: Unicorn made to run an operating system.

Unicorn runs the translated code; what it leaves out (delivering exceptions, system calls, interrupts, stops
that do not disturb the guest, code that changes through a second mapping) is added here, in C where the native
part is available and in Python where not. `docs/softcpu.md` tells the story of each.
"""

from __future__ import annotations

import ctypes
import logging
import time
from typing import ClassVar

from enclavedbg.errors import MachineError
from enclavedbg.machine.bus import Bus
from enclavedbg.machine.cpu.engine import (
    BreakpointHit,
    CpuStop,
    EngineFailure,
    Halted,
    InterruptController,
    Interrupted,
    StepDone,
    Watchpoint,
    WatchpointHit,
)
from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft import library as uc
from enclavedbg.machine.cpu.soft import transfer
from enclavedbg.machine.cpu.soft.calibrate import calibrate
from enclavedbg.machine.cpu.soft.core import VECTOR_PAGE, UnicornCore
from enclavedbg.machine.cpu.soft.cpuid import make_cpuid
from enclavedbg.machine.cpu.soft.support import NativeSupport, PythonSupport, Support
from enclavedbg.machine.cpu.state import RFLAGS_IF, CpuState
from enclavedbg.machine.memory import GuestMemory

log = logging.getLogger(__name__)

_CALIBRATION_NS = 20_000_000
"""The shortest time over which the host's time-stamp counter is compared with its clock."""

_CLOCK_READINGS = 5


class SoftEngine:
    """A CpuEngine on Unicorn. `use_native=False` keeps to the pure-Python path even where the native part is there."""

    name: ClassVar[str] = "soft"

    def __init__(
        self, memory: GuestMemory, bus: Bus, *, interrupts: InterruptController, use_native: bool = True
    ) -> None:
        library, dll = uc.load()
        self._core = UnicornCore(library)
        self._bus = bus
        self._interrupts = interrupts
        self._interrupted = False
        self._failure: BaseException | None = None
        self._virq = False
        self._halted = False
        self._breakpoints: frozenset[int] = frozenset()
        self._planted: frozenset[int] = frozenset()
        self._unreported: int | None = None
        self._tsc_origin = self._tsc_and_clock()
        self._tsc_hz = 0
        for region in memory.regions:
            self._core.map_ram(region.gpa, region.size, memory.host_address + region.offset)
        self._map_holes(memory)
        calibrate(self._core, memory)
        self.support: Support = self._choose_support(dll if use_native else None, memory)
        self._install_hooks()

    @property
    def native(self) -> bool:
        """Whether the native part is at work."""
        return isinstance(self.support, NativeSupport)

    # ---- the contract ----

    def save_state(self) -> CpuState:
        state = transfer.save(self._core, self.read_tsc())
        state.halted = self._halted
        return state

    def load_state(self, state: CpuState) -> None:
        transfer.load(self._core, state)
        self._core.old_exception.value = -1
        self._halted = state.halted
        self.write_tsc(state.msrs.tsc)

    def run(self) -> CpuStop:
        """Run until a stop; interrupts are offered to the guest as the controller has them."""
        self._plant()
        # Continuing from a breakpoint means going past it, but not when a stop came just before it was hit.
        reported, self._unreported = self._core.eip.value != self._unreported, None
        if reported and self._core.eip.value in self._planted and not self._halted:
            stop = self.step()
            if not isinstance(stop, StepDone) or self._halted:
                return stop if not self._halted else Halted(self._interruptible)
        if self._interrupted:
            return self._leave()
        self._offer_interrupt()
        if self._halted:
            if not (self._virq and self._interruptible):
                return Halted(self._interruptible)
            self._halted = False
        return self._execute(stepping=False)

    def step(self) -> CpuStop:
        """Execute one instruction with interrupts held back."""
        core = self._core
        if self._halted:
            if not self._interruptible or self._interrupts.pending() is None:
                return Halted(self._interruptible)
            self._halted = False
        self._settle_interrupt()
        self._withdraw_interrupt()
        core.singlestep.value = at.SSTEP_ENABLE | at.SSTEP_NOIRQ
        # A block of one instruction, kept apart from the blocks of a normal run, so nothing need be flushed.
        core.cflags_next_tb.value = 1
        try:
            return self._execute(stepping=True)
        finally:
            core.singlestep.value = 0
            core.cflags_next_tb.value = -1

    def interrupt(self) -> None:
        """Ask `run` to return. Lost when it falls between run's check and its start: repeat until it returned."""
        self._interrupted = True
        self._core.stop()

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        """Takes effect at the next run, so that a debugger may lift and replant its breakpoints at each stop."""
        self._breakpoints = addresses

    def set_watchpoints(self, watchpoints: tuple[Watchpoint, ...]) -> None:
        self.support.set_watchpoints(watchpoints)
        self._core.lib.tlb_flush(self._core.cpu)

    def set_exact_stops(self, wanted: bool) -> None:
        self.support.set_exact_stops(wanted)

    def forget_code(self) -> None:
        self._core.lib.tb_flush(self._core.cpu)

    def read_tsc(self) -> int:
        """The guest's time-stamp counter now."""
        return (self._host_tsc() + self._core.tsc_offset.value) & 0xFFFF_FFFF_FFFF_FFFF

    def write_tsc(self, value: int) -> None:
        """Set the guest's time-stamp counter; it runs on from there at the host's rate."""
        self._core.tsc_offset.value = (value - self._host_tsc()) & 0xFFFF_FFFF_FFFF_FFFF

    def close(self) -> None:
        self.support.close()
        self._core.close()

    # ---- running ----

    def _execute(self, *, stepping: bool) -> CpuStop:
        core = self._core
        self.support.begin()
        error = core.start()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        fatal = self.support.fatal()
        if fatal is not None:
            return fatal
        if error:
            return EngineFailure(f"{core.lib.error_text(error)} at rip {core.eip.value:#x}")
        self._settle_interrupt()
        self._halted = bool(core.halted.value)
        watched = self.support.watch_hit()
        if watched is not None:
            return WatchpointHit(*watched)
        if stepping:
            return StepDone()
        if self._halted:
            return Halted(self._interruptible)
        if self.support.debug_stopped() and core.eip.value in self._planted:
            return BreakpointHit(core.eip.value)
        return self._leave()

    def _leave(self) -> Interrupted:
        """Somebody wants the vCPU out. It may stand on a breakpoint by chance, which the next run must then report."""
        self._interrupted = False
        if self._core.eip.value in self._planted:
            self._unreported = self._core.eip.value
        return Interrupted()

    @property
    def _interruptible(self) -> bool:
        return bool(self._core.eflags.value & RFLAGS_IF)

    def _plant(self) -> None:
        if self._breakpoints == self._planted:
            return
        core = self._core
        core.lib.cpu_breakpoint_remove_all(core.cpu, at.BP_GDB)
        for address in self._breakpoints:
            core.lib.cpu_breakpoint_insert(core.cpu, address, at.BP_GDB, None)
        # Blocks of other address spaces, and of pages not mapped now, are only found by dropping all.
        core.lib.tb_flush(core.cpu)
        self._planted = self._breakpoints

    # ---- interrupts: QEMU's virtual interrupt takes its vector from our page, at the right moment, in C ----

    def _settle_interrupt(self) -> None:
        """Acknowledge the interrupt at the controller once the CPU has taken it."""
        if self._virq and not self._core.interrupt_request.value & at.INTERRUPT_VIRQ:
            self._virq = False
            if not self.support.interrupt_held():
                self._interrupts.acknowledge()

    def _offer_interrupt(self) -> None:
        self._settle_interrupt()
        vector = self._interrupts.pending()
        if vector is None:
            self._withdraw_interrupt()
            return
        core = self._core
        core.vector.value = vector
        if not self._virq:
            self._virq = True
            core.interrupt_request.value |= at.INTERRUPT_VIRQ
        core.icount_high.value = 0xFFFF

    def _offer_after_access(self) -> None:
        """A device may have raised or lowered its line. With a stop on its way, the next run offers the interrupt."""
        if self._core.exit_request.value:
            # The guest's stack may be a device: offered within a delivery that fails, it would come again for ever.
            self._withdraw_interrupt()
        else:
            self._offer_interrupt()

    def _withdraw_interrupt(self) -> None:
        if self._virq:
            self._virq = False
            self._core.interrupt_request.value &= ~at.INTERRUPT_VIRQ

    # ---- hooks ----

    def _install_hooks(self) -> None:
        core = self._core
        self._cpuid = make_cpuid(self.tsc_hz)
        core.add_hook(uc.HOOK_INSN, uc.PortReadHook(self._port_read), uc.INSN_IN)
        core.add_hook(uc.HOOK_INSN, uc.PortWriteHook(self._port_write), uc.INSN_OUT)
        core.add_hook(uc.HOOK_INSN, uc.CpuidHook(self._answer_cpuid), uc.INSN_CPUID)

    def _fail(self, error: BaseException) -> None:
        """Keep a device's error for the thread that called run: ctypes would print and swallow it."""
        if self._failure is None:
            self._failure = error
        self._core.stop()

    def _port_read(self, _uc: int, port: int, size: int, _user: int) -> int:
        try:
            self._settle_interrupt()
            value = self._bus.port_read(port, size)
            self._offer_after_access()
        except BaseException as error:
            self._fail(error)
            return 0
        return value

    def _port_write(self, _uc: int, port: int, size: int, value: int, _user: int) -> None:
        try:
            self._settle_interrupt()
            self._bus.port_write(port, size, value)
            self._offer_after_access()
        except BaseException as error:
            self._fail(error)

    def _mmio_read(self, gpa: int, size: int) -> int:
        try:
            self._settle_interrupt()
            value = self._bus.mmio_read(gpa, size)
            self._offer_after_access()
        except BaseException as error:
            self._fail(error)
            return 0
        return value

    def _mmio_write(self, gpa: int, size: int, value: int) -> None:
        try:
            self._settle_interrupt()
            self._bus.mmio_write(gpa, size, value)
            self._offer_after_access()
        except BaseException as error:
            self._fail(error)

    def _answer_cpuid(self, _uc: int, _user: int) -> int:
        regs = self._core.regs
        a, b, c, d = self._cpuid(regs[0] & 0xFFFF_FFFF, regs[1] & 0xFFFF_FFFF)
        regs[0], regs[3], regs[1], regs[2] = a, b, c, d
        return 1

    # ---- construction ----

    def _map_holes(self, memory: GuestMemory) -> None:
        """All that is not RAM goes to the bus: a stray access reads ones, as on a PC, and stops nothing."""
        at_gpa = 0
        for region in sorted(memory.regions, key=lambda r: r.gpa):
            if region.gpa > at_gpa:
                self._core.map_mmio(at_gpa, region.gpa - at_gpa, self._mmio_read, self._mmio_write)
            at_gpa = region.gpa + region.size
        self._core.map_mmio(at_gpa, VECTOR_PAGE - at_gpa, self._mmio_read, self._mmio_write)

    def _choose_support(self, dll: ctypes.CDLL | None, memory: GuestMemory) -> Support:
        if dll is not None:
            try:
                return NativeSupport(dll, self._core, memory)
            except MachineError as error:
                log.warning("%s; the software CPU runs in Python only", error)
        return PythonSupport(self._core, memory)

    # ---- time ----

    def _host_tsc(self) -> int:
        value: int = self._core.lib.cpu_get_tsc(self._core.env)
        return value

    def tsc_hz(self) -> int:
        """Rate of the time-stamp counter, compared with the host's clock since the engine was made."""
        if not self._tsc_hz:
            ticks, began = self._tsc_origin
            while time.monotonic_ns() - began < _CALIBRATION_NS:
                pass
            later, now = self._tsc_and_clock()
            self._tsc_hz = max(1, (later - ticks) * 1_000_000_000 // (now - began))
        return self._tsc_hz

    def _tsc_and_clock(self) -> tuple[int, int]:
        """Both at one moment: of some tries, the one between whose ends the host did the least else."""
        tries = []
        for _ in range(_CLOCK_READINGS):
            before, ticks, after = time.monotonic_ns(), self._host_tsc(), time.monotonic_ns()
            tries.append((after - before, ticks, (before + after) // 2))
        _, ticks, clock = min(tries)
        return ticks, clock
