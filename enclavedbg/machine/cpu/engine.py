"""The contract of a CPU engine, and the typed reasons why one stops.

Devices, debugger and tests use this and never ask which engine runs. All methods but `interrupt` belong to
the vCPU thread, or to any one thread while the guest is stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from enclavedbg.machine.cpu.state import CpuState


class WatchKind(Enum):
    """What a watchpoint stops on: gdb's `watch`, `rwatch`, `awatch`."""

    WRITE = "watch"
    READ = "rwatch"
    ACCESS = "awatch"


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """A watched range of guest virtual addresses."""

    address: int
    length: int
    kind: WatchKind


@dataclass(frozen=True, slots=True)
class BreakpointHit:
    """About to execute the instruction at a breakpoint's (virtual) address."""

    address: int


@dataclass(frozen=True, slots=True)
class WatchpointHit:
    """A watched range was touched at `address`; the access is done."""

    watchpoint: Watchpoint
    address: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One instruction (or one iteration of a repeated one) was executed."""


@dataclass(frozen=True, slots=True)
class Halted:
    """The CPU waits in HLT; with `interruptible` False (IF clear) nothing but a reset can wake it."""

    interruptible: bool


@dataclass(frozen=True, slots=True)
class TripleFault:
    """A fault could not be delivered; `vector` is the first one that failed, or None when not known."""

    vector: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """`interrupt()` was called, or the engine wants its devices served."""


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """The engine cannot go on; `detail` says on what."""

    detail: str


CpuStop = BreakpointHit | WatchpointHit | StepDone | Halted | TripleFault | Interrupted | EngineFailure


@dataclass(frozen=True, slots=True)
class Caught:
    """A catchpoint stopped the machine. No engine gives this: the vCPU does, where it was asked for the stop."""

    words: str


StopReason = CpuStop | Caught
"""Why the machine stands still."""


class CpuEngine(Protocol):
    """One virtual CPU."""

    name: ClassVar[str]
    """`soft` or `kvm`."""

    def save_state(self) -> CpuState:
        """A copy of the complete state."""
        ...

    def load_state(self, state: CpuState) -> None:
        """Replace the complete state."""
        ...

    def run(self) -> CpuStop:
        """Run until a stop. Wakes from HLT when an interrupt line is active."""
        ...

    def step(self) -> CpuStop:
        """Execute one instruction with interrupts held back; a fault ends at its handler's first instruction.

        From HLT it goes on when an interrupt waits, without taking it, and else reports Halted.
        """
        ...

    def interrupt(self) -> None:
        """Make `run` return soon, from any thread.

        A call that falls between run's last check and its start may be lost: repeat it until run returned.
        """
        ...

    def set_breakpoints(self, addresses: frozenset[int]) -> None:
        """Replace the set of execution breakpoints (guest virtual addresses). Guest bytes never change."""
        ...

    def set_watchpoints(self, watchpoints: tuple[Watchpoint, ...]) -> None:
        """Replace the set of watchpoints."""
        ...

    def set_exact_stops(self, wanted: bool) -> None:
        """Whether `interrupt`, called by a device in a write to it, ends `run` right behind that instruction.

        It costs a little at each access, so it is off until somebody needs it. Any thread.
        """
        ...

    def forget_code(self) -> None:
        """Drop translations: someone other than the guest wrote to its memory."""
        ...

    def read_tsc(self) -> int:
        """The guest's time-stamp counter now."""
        ...

    def write_tsc(self, value: int) -> None:
        """Set the guest's time-stamp counter; so it stands still while the guest is stopped."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


class InterruptController(Protocol):
    """What an engine asks of the interrupt controller."""

    def pending(self) -> int | None:
        """The vector to deliver now, or None."""
        ...

    def acknowledge(self) -> int:
        """The vector of `pending` was taken by the CPU."""
        ...
