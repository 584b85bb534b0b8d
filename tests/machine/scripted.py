"""A CPU engine that does what a test tells it, and the machine around it: real chipset, clock, events, vCPU thread."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

from enclavedbg.machine.bus import Bus
from enclavedbg.machine.chipset.board import Board
from enclavedbg.machine.clock import Clock
from enclavedbg.machine.console import Console
from enclavedbg.machine.cpu.engine import CpuStop, Interrupted, StepDone, Watchpoint
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.events import EventStream, GuestStopped, Record
from enclavedbg.machine.vcpu import VirtualCpu
from enclavedbg.machine.verdict import Verdict, Witness

LIMIT = 10.0
"""Seconds after which a wait has failed; all of them end at once when the machine works."""


class ScriptedEngine:
    """Its `run` lasts until `give` or `interrupt`; of interrupts the first `deaf` of each run are lost."""

    name = "scripted"

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stops: deque[CpuStop | Exception] = deque()
        self.steps: deque[CpuStop] = deque()
        self.state = CpuState(rip=0x1000)
        self.inside = False
        self.runs = 0
        self.deaf = 0
        self.interrupts = 0
        self._heard = 0
        self._interrupted = False
        self.tsc = 0
        self.thread: int | None = None

    def give(self, *stops: CpuStop | Exception) -> None:
        """End runs with these, in order."""
        with self.changed:
            self.stops.extend(stops)
            self.changed.notify_all()

    def wait_inside(self, runs: int = 1) -> None:
        """Until the guest runs, for at least the `runs`th time."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.inside and self.runs >= runs, LIMIT)

    def run(self) -> CpuStop:
        with self.changed:
            self.thread = threading.get_ident()
            self.inside = True
            self._heard = 0
            self.runs += 1
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.stops or self._interrupted, LIMIT)
            self.inside = False
            if self._interrupted:
                self._interrupted = False
                return Interrupted()
            stop = self.stops.popleft()
        if isinstance(stop, Exception):
            raise stop
        return stop

    def step(self) -> CpuStop:
        self.state.rip += 1
        return self.steps.popleft() if self.steps else StepDone()

    def interrupt(self) -> None:
        with self.changed:
            self.interrupts += 1
            self._heard += 1
            if self._heard > self.deaf:
                self._interrupted = self.inside
                self.changed.notify_all()

    def save_state(self) -> CpuState:
        return self.state

    def load_state(self, state: CpuState) -> None:
        self.state = state

    def set_breakpoints(self, addresses: frozenset[int]) -> None: ...

    def set_watchpoints(self, watchpoints: tuple[Watchpoint, ...]) -> None: ...

    def set_exact_stops(self, wanted: bool) -> None: ...

    def forget_code(self) -> None: ...

    def read_tsc(self) -> int:
        return self.tsc

    def write_tsc(self, value: int) -> None:
        self.tsc = value

    def close(self) -> None: ...


class ScriptedMachine:
    """Use as a context manager."""

    def __init__(self) -> None:
        self.now = 0
        self.clock = Clock(monotonic_ns=lambda: self.now)
        self.events = EventStream(self.clock.guest_ns)
        self.witness = Witness()
        self.events.subscribe(self.witness)
        self.console = Console(self.events.publish, file=None)
        self.bus = Bus()
        self.board = Board(
            self.bus,
            self.clock,
            self.console,
            reset=lambda: self.vcpu.guest_reset(),
            power_off=lambda: self.vcpu.guest_power_off(),
        )
        self.engine = ScriptedEngine()
        self.vcpu = VirtualCpu(self.engine, self.board, self.clock, events=self.events, witness=self.witness)
        self._verdict = threading.Event()
        self._stop = threading.Semaphore(0)
        self.stops: list[GuestStopped] = []
        self.events.subscribe(self._on_event)

    def _on_event(self, record: Record) -> None:
        if isinstance(record.event, Verdict):
            self._verdict.set()
        elif isinstance(record.event, GuestStopped):
            self.stops.append(record.event)
            self._stop.release()

    def __enter__(self) -> ScriptedMachine:
        self.vcpu.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.vcpu.close()
        self.console.close()

    def say(self, *lines: str) -> None:
        """The guest writes to its console."""
        for line in lines:
            for byte in line.encode() + b"\n":
                self.console.write(byte)

    def go(self) -> None:
        """Resume, and wait until the guest runs."""
        runs = self.engine.runs
        self.vcpu.resume()
        self.engine.wait_inside(runs + 1)

    def verdict(self) -> Verdict:
        assert self._verdict.wait(LIMIT)
        assert self.vcpu.verdict is not None
        return self.vcpu.verdict

    def stopped(self) -> GuestStopped:
        """The next stop that was not asked for yet."""
        assert self._stop.acquire(timeout=LIMIT)
        return self.stops[-1]

    def raise_timer(self) -> None:
        """The timer's interrupt is allowed at the controller and waits for the CPU."""
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
            self.bus.port_write(port, 1, value)
        self.board.pic.line(0).set(True)
