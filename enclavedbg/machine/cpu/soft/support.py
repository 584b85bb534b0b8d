"""The two ways of adding what Unicorn lacks: through the native part, and in Python alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Protocol

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.cpu.engine import EngineFailure, TripleFault, WatchKind, Watchpoint
from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft import library as uc
from enclavedbg.machine.cpu.soft import native
from enclavedbg.machine.cpu.soft.containment import contain
from enclavedbg.machine.cpu.soft.core import UnicornCore
from enclavedbg.machine.cpu.soft.delivery import NO_TASK_STATE, PythonDelivery, live_translate
from enclavedbg.machine.memory import GuestMemory

_ACCESS = {
    WatchKind.WRITE: at.BP_MEM_WRITE,
    WatchKind.READ: at.BP_MEM_READ,
    WatchKind.ACCESS: at.BP_MEM_READ | at.BP_MEM_WRITE,
}


class Support(Protocol):
    """What the engine needs beside Unicorn itself."""

    def begin(self) -> None:
        """A run begins: forget the last one's outcome."""
        ...

    def debug_stopped(self) -> bool:
        """Whether a breakpoint ended the run."""
        ...

    def fatal(self) -> TripleFault | EngineFailure | None:
        """The fault that could not be delivered, when that ended the run."""
        ...

    def interrupt_held(self) -> bool:
        """Whether the pending interrupt was withdrawn, not taken, to let a stop through; asked once."""
        ...

    def watch_hit(self) -> tuple[Watchpoint, int] | None:
        """The watchpoint that ended the run, and the address touched."""
        ...

    def set_watchpoints(self, watchpoints: tuple[Watchpoint, ...]) -> None: ...

    def set_exact_stops(self, wanted: bool) -> None:
        """Whether a stop that a device asks for comes right behind the write to it."""
        ...

    def close(self) -> None: ...


class NativeSupport:
    """native.c does the work; this hands it the engine's addresses and reads its findings."""

    def __init__(self, dll: ctypes.CDLL, core: UnicornCore, memory: GuestMemory) -> None:
        self._dll = dll
        shared = native.NativeEngine(uc=core.uc, cpu=core.cpu, env=core.env, at=native.native_layout())
        shared.regions = len(memory.regions)
        for i, region in enumerate(memory.regions):
            shared.region[i] = native.NativeRegion(region.gpa, region.size, memory.host_address + region.offset, 0)
        self._shared = shared
        self._watchpoints: tuple[Watchpoint, ...] = ()
        if dll.enclavedbg_attach(ctypes.byref(shared)):
            raise MachineError("the native part serves as many machines as it can already")
        core.add_hook(uc.HOOK_INTR, ctypes.cast(dll.enclavedbg_deliver, c_void_p), user=ctypes.addressof(shared))
        pointer = ctypes.cast(dll.enclavedbg_stop_interrupt, c_void_p).value
        c_void_p.from_address(core.uc + at.UC_STOP_INTERRUPT).value = pointer

    def begin(self) -> None:
        self._shared.debug_stop = 0
        self._shared.triple_fault = 0
        self._shared.no_task_state = 0
        self._shared.watch_hit = 0

    def debug_stopped(self) -> bool:
        return bool(self._shared.debug_stop)

    def fatal(self) -> TripleFault | EngineFailure | None:
        if not self._shared.triple_fault:
            return None
        return TripleFault(detail=NO_TASK_STATE if self._shared.no_task_state else "")

    def interrupt_held(self) -> bool:
        held, self._shared.interrupt_held = bool(self._shared.interrupt_held), 0
        return held

    def watch_hit(self) -> tuple[Watchpoint, int] | None:
        if self._shared.watch_hit != 2:
            return None
        return self._watchpoints[self._shared.watch_index], int(self._shared.watch_address)

    def set_watchpoints(self, watchpoints: tuple[Watchpoint, ...]) -> None:
        if len(watchpoints) > native.MAX_WATCHPOINTS:
            raise MachineError(f"{len(watchpoints)} watchpoints, at most {native.MAX_WATCHPOINTS}; remove some")
        self._watchpoints = watchpoints
        for i, watch in enumerate(watchpoints):
            self._shared.watchpoint[i] = native.NativeWatchpoint(watch.address, watch.length, _ACCESS[watch.kind])
        self._shared.watchpoints = len(watchpoints)

    def set_exact_stops(self, wanted: bool) -> None:
        self._shared.exact_stops = wanted

    def close(self) -> None:
        self._dll.enclavedbg_detach(ctypes.byref(self._shared))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a watched range within one page: virtual and physical address, bytes."""

    address: int
    gpa: int
    length: int


class PythonSupport:
    """The same in Python: slower, and a watchpoint stops at the end of the block that touched it.

    It watches the physical memory where its range lay when it was set, so through every mapping of it.
    """

    def __init__(self, core: UnicornCore, memory: GuestMemory) -> None:
        self._core = core
        self._memory = memory
        self._delivery = PythonDelivery(core, memory)
        self._debug_stop = False
        self._places: dict[Watchpoint, list[_Piece]] = {}
        self._watch_hooks: list[int] = []
        self._hit: tuple[Watchpoint, int] | None = None
        contain(core.lib)
        core.add_hook(uc.HOOK_INTR, uc.InterruptHook(self._delivery.interrupt))
        core.add_hook(uc.HOOK_INSN, uc.SyscallHook(self._delivery.syscall), uc.INSN_SYSCALL)
        # Never fires: all RAM is writable. But an installed memory hook keeps every store on the path that
        # notices writes to translated code, whichever mapping they come through.
        self._guard = uc.FaultHook(lambda *_: False)
        for region in memory.regions:
            end = region.gpa + region.size - 1
            core.add_hook(uc.HOOK_MEM_WRITE_PROT, self._guard, begin=region.gpa, end=end)
        self._stop_interrupt = uc.StopInterruptHook(self._on_exception)
        pointer = ctypes.cast(self._stop_interrupt, c_void_p).value
        self._original = c_void_p.from_address(core.uc + at.UC_STOP_INTERRUPT).value
        c_void_p.from_address(core.uc + at.UC_STOP_INTERRUPT).value = pointer

    def _on_exception(self, _uc: int, vector: int) -> bool:
        """In place of uc_struct.stop_interrupt; the native part's function of that name tells the reasons."""
        core = self._core
        self._delivery.instruction = core.eip.value
        if vector == at.EXCP_DEBUG:
            self._debug_stop = True
            core.stop_request.value = 1
        elif vector == at.EXCP_HLT and not core.halted.value:
            self._delivery.fatal = TripleFault()
        return False

    def begin(self) -> None:
        self._debug_stop = False
        self._delivery.fatal = None
        self._hit = None

    def debug_stopped(self) -> bool:
        return self._debug_stop

    def fatal(self) -> TripleFault | EngineFailure | None:
        return self._delivery.fatal

    def interrupt_held(self) -> bool:
        held, self._delivery.interrupt_held = self._delivery.interrupt_held, False
        return held

    def watch_hit(self) -> tuple[Watchpoint, int] | None:
        return self._hit

    def set_watchpoints(self, watchpoints: tuple[Watchpoint, ...]) -> None:
        core = self._core
        # All are looked up before anything changes; one that stays keeps its place, mapped just now or not.
        places = {watch: self._places.get(watch) or self._pieces(watch) for watch in watchpoints}
        for handle in self._watch_hooks:
            core.lib.uc_hook_del(core.uc, handle)
        self._watch_hooks.clear()
        self._places = places
        for watch, pieces in places.items():
            kind = {at.BP_MEM_WRITE: uc.HOOK_MEM_WRITE, at.BP_MEM_READ: uc.HOOK_MEM_READ}.get(
                _ACCESS[watch.kind], uc.HOOK_MEM_READ | uc.HOOK_MEM_WRITE
            )
            for piece in pieces:
                hook = uc.MemoryHook(self._toucher(watch, piece))
                # An access that begins up to 15 bytes before may reach into the range.
                begin, end = max(0, piece.gpa - 15), piece.gpa + piece.length - 1
                self._watch_hooks.append(core.add_hook(kind, hook, begin=begin, end=end))
        core.lib.tb_flush(core.cpu)

    def _pieces(self, watch: Watchpoint) -> list[_Piece]:
        """Where a watched range lies in physical memory, page by page."""
        pieces: list[_Piece] = []
        done = 0
        while done < watch.length:
            address = watch.address + done
            try:
                page = live_translate(self._core, self._memory, address)
            except GuestFault as fault:
                raise MachineError(f"cannot watch {address:#x}: {fault}; watch it once it is mapped") from fault
            length = min(page.remaining, watch.length - done)
            pieces.append(_Piece(address, page.gpa, length))
            done += length
        return pieces

    def _toucher(self, watch: Watchpoint, piece: _Piece) -> Callable[[int, int, int, int, int, int], None]:
        def touched(_uc: int, _kind: int, gpa: int, size: int, _value: int, _user: int) -> None:
            if gpa < piece.gpa + piece.length and piece.gpa < gpa + size and self._hit is None:
                self._hit = (watch, piece.address + max(0, gpa - piece.gpa))
                self._core.stop()

        return touched

    def set_exact_stops(self, wanted: bool) -> None:
        """In Python alone a stop comes at the end of the block: nothing can be sent back from here."""

    def close(self) -> None:
        c_void_p.from_address(self._core.uc + at.UC_STOP_INTERRUPT).value = self._original
