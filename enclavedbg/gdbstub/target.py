"""What the server needs of the machine, and nothing more; `machine.debug.DebugTarget` has this shape.

All methods may be called from any thread. Reading and changing data needs a stopped machine and raises
MachineError otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from enclavedbg.machine.cpu.engine import Caught, StopReason, Watchpoint
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.events import Record
from enclavedbg.machine.paging import Translation


class Verdict(Protocol):
    """How the enclave's run ended (event kind `verdict`)."""

    @property
    def line(self) -> str:
        """One line for a person."""
        ...

    @property
    def exit_status(self) -> int:
        """What the command will exit with, 0 to 255."""
        ...


class DebugTarget(Protocol):
    """One machine with one vCPU, as a debugger handles it."""

    @property
    def running(self) -> bool:
        """True from the moment `resume` or `step` returns until just before `GuestStopped` is published."""
        ...

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the machine stands still; None while it runs, and when it has not run yet."""
        ...

    @property
    def caught(self) -> Caught | None:
        """What catchpoints had to do with the last stop, whatever else was its reason."""
        ...

    @property
    def verdict(self) -> Verdict | None:
        """How the run ended, as soon as it is known: also while the machine is held at its end for a look."""
        ...

    def hold(self, owner: str) -> None:
        """Until `clear_owner`, stop before the run ends, so that the end can be looked at."""
        ...

    def interrupt(self) -> None:
        """Ask a running machine to stop; returns at once, `GuestStopped` follows."""
        ...

    def resume(self) -> None:
        """Let the machine go on; returns at once. Ends a machine that has a verdict."""
        ...

    def step(self) -> None:
        """Execute one instruction; returns at once, `GuestStopped` follows."""
        ...

    def state(self) -> CpuState:
        """A copy of the CPU's state."""
        ...

    def set_state(self, state: CpuState) -> None:
        """Replace the CPU's state."""
        ...

    def read_virtual(self, address: int, length: int) -> bytes:
        """As many of `length` bytes as are mapped from `address` on; GuestFault when the first is not."""
        ...

    def write_virtual(self, address: int, data: bytes) -> None:
        """Write all of `data`, or nothing and GuestFault."""
        ...

    def read_physical(self, address: int, length: int) -> bytes:
        """`length` bytes of RAM; GuestFault outside it."""
        ...

    def write_physical(self, address: int, data: bytes) -> None:
        """Write to RAM; GuestFault outside it."""
        ...

    def translate(self, address: int) -> Translation:
        """Where a virtual address leads; GuestFault when nowhere."""
        ...

    def add_breakpoint(self, address: int, *, owner: str) -> None:
        """Stop before the instruction at a virtual address, mapped or not."""
        ...

    def remove_breakpoint(self, address: int, *, owner: str) -> None:
        """Undo `add_breakpoint`."""
        ...

    def add_watchpoint(self, watchpoint: Watchpoint, *, owner: str) -> None:
        """Stop after an access to a range of virtual addresses."""
        ...

    def remove_watchpoint(self, watchpoint: Watchpoint, *, owner: str) -> None:
        """Undo `add_watchpoint`."""
        ...

    def clear_owner(self, owner: str) -> None:
        """Remove all that `owner` set and let go of the machine; allowed at any time."""
        ...


class Events(Protocol):
    """Where the machine tells of its stops: an `EventStream`."""

    def subscribe(self, subscriber: Callable[[Record], None], /) -> Callable[[], None]:
        """Call `subscriber` with each later record, on any thread; returns what ends it."""
        ...
