"""What a debugger may do with the machine: one object that gdb's server, the shell and scripts share."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import TypeVar

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.cpu.engine import Caught, StopReason, Watchpoint
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.paging import Translation, translate
from enclavedbg.machine.vcpu import RunState, VirtualCpu
from enclavedbg.machine.verdict import Verdict

_Key = TypeVar("_Key")

ADDRESS_MASK = 0xFFFF_FFFF_FFFF_FFFF
READ_LIMIT = 16 << 20
"""Bytes that one read may ask for."""


class DebugTarget:
    """Run control, registers, memory, breakpoints.

    Everything that looks at the guest needs it stopped, and raises MachineError while it runs. Breakpoints
    belong to an owner ("gdb", "shell"), so that one debugger's leaving takes away only its own.
    """

    def __init__(self, vcpu: VirtualCpu, memory: GuestMemory) -> None:
        self._vcpu = vcpu
        self._memory = memory
        self._lock = threading.RLock()
        self._breakpoints: dict[int, Counter[str]] = defaultdict(Counter)
        self._watchpoints: dict[Watchpoint, Counter[str]] = defaultdict(Counter)
        self._holders: set[str] = set()
        self._seen: tuple[int, CpuState] | None = None

    # ---- run control: requests, answered by events ----

    @property
    def running(self) -> bool:
        return self._vcpu.state is RunState.RUNNING

    @property
    def ended(self) -> Verdict | None:
        """The verdict once the run is over."""
        return self._vcpu.verdict

    @property
    def verdict(self) -> Verdict | None:
        """How the run ends, as soon as that is known: also while the machine is held at its end for a look."""
        return self._vcpu.ending

    @property
    def stop_reason(self) -> StopReason | None:
        return self._vcpu.stop_reason

    @property
    def caught(self) -> Caught | None:
        """What catchpoints had to do with the last stop."""
        return self._vcpu.caught

    def hold(self, owner: str) -> None:
        """While somebody holds it, the machine stops before it ends, so that the end can be looked at."""
        with self._lock:
            self._holders.add(owner)
            self._vcpu.held = True

    def interrupt(self) -> None:
        """Ask the guest to stop; a GuestStopped event follows."""
        if self.running:
            self._vcpu.request_stop()

    def resume(self) -> None:
        """Let the guest run; after a fatal stop this ends the run instead."""
        self._require_stopped()
        self._vcpu.resume()

    def step(self) -> None:
        """Execute one instruction; a GuestStopped event follows."""
        self._require_stopped()
        self._vcpu.step()

    def wait_stopped(self, timeout: float | None = None) -> bool:
        """Block until the machine stands still (or ended); False when `timeout` seconds passed."""
        return self._vcpu.wait(False, timeout)

    # ---- registers ----

    def state(self) -> CpuState:
        """A copy of the CPU's state."""
        self._require_still()
        return self._vcpu.engine.save_state()

    def set_state(self, state: CpuState) -> None:
        """Replace the CPU's state."""
        self._require_stopped()
        self._seen = None
        self._vcpu.engine.load_state(state)

    def _paging(self) -> CpuState:
        """The state for page walks, taken once a stop: a debugger reads memory in hundreds of pieces."""
        self._require_still()
        if self._seen is None or self._seen[0] != self._vcpu.runs:
            self._seen = (self._vcpu.runs, self._vcpu.engine.save_state())
        return self._seen[1]

    # ---- memory ----

    def translate(self, address: int) -> Translation:
        """Where a virtual address leads in the address space of now; raises GuestFault."""
        return self._walk(self._paging(), address)

    def read_virtual(self, address: int, length: int) -> bytes:
        """Up to `length` bytes, as many as are mapped; raises GuestFault when the first is not."""
        state = self._paging()
        data = bytearray()
        length = min(length, READ_LIMIT)
        while len(data) < length:
            try:
                page = self._walk(state, address + len(data))
                # A large page may reach beyond RAM; where there is none at all, the read says so.
                room = self._memory.room(page.gpa) or page.remaining
                data += self._memory.read(page.gpa, min(page.remaining, room, length - len(data)))
            except GuestFault:
                if not data:
                    raise
                break
        return bytes(data)

    def write_virtual(self, address: int, data: bytes) -> None:
        """Store bytes; raises GuestFault, with nothing written, when any page is not there."""
        self._require_stopped()
        state = self._paging()
        pieces: list[tuple[int, bytes]] = []
        done = 0
        while done < len(data):
            page = self._walk(state, address + done)
            piece = data[done : done + page.remaining]
            self._memory.offset(page.gpa, len(piece))
            pieces.append((page.gpa, piece))
            done += len(piece)
        for gpa, piece in pieces:
            self._memory.write(gpa, piece)
        self._vcpu.engine.forget_code()

    def read_physical(self, gpa: int, length: int) -> bytes:
        """`length` bytes of RAM; raises GuestFault outside."""
        self._require_still()
        return self._memory.read(gpa, min(length, READ_LIMIT))

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Store bytes in RAM; raises GuestFault outside."""
        self._require_stopped()
        self._memory.write(gpa, data)
        self._vcpu.engine.forget_code()

    def _walk(self, state: CpuState, address: int) -> Translation:
        return translate(state, address & ADDRESS_MASK, read_u64=self._memory.read_u64, read_u32=self._memory.read_u32)

    # ---- breakpoints ----

    @property
    def breakpoints(self) -> dict[int, tuple[str, ...]]:
        """Addresses with their owners."""
        with self._lock:
            return {address: tuple(owners) for address, owners in sorted(self._breakpoints.items())}

    @property
    def watchpoints(self) -> tuple[Watchpoint, ...]:
        with self._lock:
            return tuple(self._watchpoints)

    def add_breakpoint(self, address: int, *, owner: str) -> None:
        """Stop before the instruction at a virtual address; it need not be mapped."""
        self._require_stopped()
        with self._lock:
            self._breakpoints[address & ADDRESS_MASK][owner] += 1
            self._plant()

    def remove_breakpoint(self, address: int, *, owner: str) -> None:
        """Take one of the owner's breakpoints away; nothing happens when there is none."""
        self._require_stopped()
        with self._lock:
            self._drop(self._breakpoints, address & ADDRESS_MASK, owner)
            self._plant()

    def add_watchpoint(self, watchpoint: Watchpoint, *, owner: str) -> None:
        """Stop behind an access to a range of virtual addresses; raises MachineError when the engine cannot."""
        self._require_stopped()
        with self._lock:
            self._vcpu.engine.set_watchpoints((*self._watchpoints, watchpoint))
            self._watchpoints[watchpoint][owner] += 1

    def remove_watchpoint(self, watchpoint: Watchpoint, *, owner: str) -> None:
        """Take one of the owner's watchpoints away; nothing happens when there is none."""
        self._require_stopped()
        with self._lock:
            self._drop(self._watchpoints, watchpoint, owner)
            self._vcpu.engine.set_watchpoints(tuple(self._watchpoints))

    def clear_owner(self, owner: str) -> None:
        """A debugger leaves: take away all that it set and let go of the machine.

        The guest may be running: then it is stopped for the moment that this takes.
        """
        with self._lock:
            self._holders.discard(owner)
            self._vcpu.held = bool(self._holders)
            mine_b = [a for a, owners in self._breakpoints.items() if owner in owners]
            mine_w = [w for w, owners in self._watchpoints.items() if owner in owners]
            # Off the list at once, so that what the same owner sets next is not taken away with them.
            for address in mine_b:
                self._drop(self._breakpoints, address, owner, all_of_them=True)
            for watchpoint in mine_w:
                self._drop(self._watchpoints, watchpoint, owner, all_of_them=True)
        if not mine_b and not mine_w:
            return

        def clear() -> None:
            with self._lock:
                self._plant()
                self._vcpu.engine.set_watchpoints(tuple(self._watchpoints))

        if self.running:
            self._vcpu.post(clear)
        elif self._vcpu.verdict is None:
            clear()

    @staticmethod
    def _drop(table: dict[_Key, Counter[str]], key: _Key, owner: str, *, all_of_them: bool = False) -> None:
        owners = table.get(key)
        if owners is None:
            return
        owners[owner] -= 1
        if all_of_them or owners[owner] <= 0:
            del owners[owner]
        if not owners:
            del table[key]

    def _plant(self) -> None:
        self._vcpu.engine.set_breakpoints(frozenset(self._breakpoints))

    # ---- guards ----

    def _require_still(self) -> None:
        if self.running:
            raise MachineError("the enclave is running; stop it first")

    def _require_stopped(self) -> None:
        self._require_still()
        if self._vcpu.verdict is not None:
            raise MachineError(f"the enclave has ended ({self._vcpu.verdict.line}); start it again")
