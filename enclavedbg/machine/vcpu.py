"""The thread that runs the guest: engine, timer, work from outside, and the decision when a run is over."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from enclavedbg.machine.alarm import Alarm
from enclavedbg.machine.chipset.board import Board
from enclavedbg.machine.clock import Clock
from enclavedbg.machine.cpu.engine import (
    BreakpointHit,
    Caught,
    CpuEngine,
    CpuStop,
    EngineFailure,
    Halted,
    Interrupted,
    StepDone,
    StopReason,
    TripleFault,
    WatchpointHit,
)
from enclavedbg.machine.events import EventStream, GuestResumed, GuestStopped
from enclavedbg.machine.verdict import Outcome, Verdict, Witness

log = logging.getLogger(__name__)

DEAF_NS = 10_000_000_000
"""Guest time after which an interrupt that waits with interrupts off makes a hang."""

PANIC_SILENCE_NS = 1_000_000_000
"""Guest time after which a kernel that panicked and says no more is taken to have said all."""

LOOK_SECONDS = 1.0
"""The guest is left alone no longer than this, so that a hung one is noticed."""


class RunState(Enum):
    """What the machine does. Guest time runs in RUNNING alone."""

    STOPPED = "stopped"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, order=True)
class _Timed:
    """Work for a time in the guest's nanoseconds; of equal times the first posted comes first."""

    at_ns: int
    order: int
    work: Callable[[], None] = field(compare=False)


class VirtualCpu:
    """Runs one engine on a thread of its own.

    `post` and `post_in` hand work of devices to that thread, to be done while the guest runs; `resume`, `step` and
    `request_stop` may come from any thread. Each stop is published as GuestStopped, the end as a Verdict. While
    `held` (a debugger is there), an end first stops the machine for a look; the next resume then ends it.
    """

    def __init__(
        self,
        engine: CpuEngine,
        board: Board,
        clock: Clock,
        *,
        events: EventStream,
        witness: Witness,
    ) -> None:
        self.engine = engine
        self._board = board
        self._clock = clock
        self._events = events
        self._witness = witness
        self._alarm = Alarm(engine.interrupt)
        witness.on_panic_over = engine.interrupt
        board.pit.on_change = lambda: self._alarm.rearm(self._seconds_to_look())
        self._changed = threading.Condition()
        self._commands: deque[str] = deque()
        self._work: deque[Callable[[], None]] = deque()
        self._timed: list[_Timed] = []
        self._order = itertools.count()
        self._stop_wanted = False
        self._stop_words = "interrupted"
        self._caught: Caught | None = None
        self._closing = False
        self._ending: Verdict | None = None
        self._decision: Callable[[int], Verdict] | None = None
        self._deaf_since: int | None = None
        self._deaf_at_taken = -1
        self._lines_seen = -1
        self._lines_since = 0
        self._tsc: int | None = None
        self.held = False
        self.runs = 0
        """How often the guest was let go: what was read of it in an earlier run is out of date."""
        self.state = RunState.STOPPED
        self.stop_reason: StopReason | None = None
        self.caught: Caught | None = None
        """What catchpoints had to do with the last stop, whatever else was its reason."""
        self.verdict: Verdict | None = None
        self._thread = threading.Thread(target=self._main, name="enclavedbg-vcpu", daemon=True)

    # ---- any thread ----

    @property
    def ending(self) -> Verdict | None:
        """How the run ends, once that is decided: before `verdict` when the machine is held at its end."""
        return self.verdict or self._ending

    def start(self) -> None:
        """Start the thread; the machine stands still until `resume`."""
        self._thread.start()

    def resume(self) -> None:
        """Let the guest run."""
        self._command("resume")

    def step(self) -> None:
        """Execute one instruction and stop again."""
        self._command("step")

    def request_stop(self, words: str = "interrupted") -> None:
        """Stop the guest soon; returns at once."""
        with self._changed:
            self._stop_wanted = True
            self._stop_words = words
            self._changed.notify_all()
        self._alarm.ring()

    def post(self, work: Callable[[], None]) -> None:
        """Do `work` on the vCPU thread, between two instructions, once the guest runs."""
        with self._changed:
            self._work.append(work)
            self._changed.notify_all()
        self._alarm.ring()

    def post_in(self, delay_ns: int, work: Callable[[], None]) -> Callable[[], None]:
        """Do `work` on the vCPU thread once so much guest time has passed; returns what takes that back."""
        with self._changed:
            entry = _Timed(self._clock.guest_ns() + delay_ns, next(self._order), work)
            heapq.heappush(self._timed, entry)
            self._changed.notify_all()
        self._alarm.rearm(self._seconds_to_look())

        def cancel() -> None:
            with self._changed:
                if entry in self._timed:
                    self._timed.remove(entry)
                    heapq.heapify(self._timed)

        return cancel

    def end(self, verdict: Verdict) -> None:
        """End the run from outside (time is up, the user leaves), whatever the guest does."""
        self.end_with(lambda _rip: verdict)

    def end_with(self, verdict: Callable[[int], Verdict]) -> None:
        """End the run from outside with a verdict that is told the instruction pointer."""
        with self._changed:
            if self._decision is None:
                self._decision = verdict
            self._commands.append("end")
            self._changed.notify_all()
        self._alarm.ring()

    def wait(self, running: bool, timeout: float | None) -> bool:
        """Wait until the machine does (`running`) or does not run; False when `timeout` seconds passed."""
        with self._changed:
            return self._changed.wait_for(lambda: (self.state is RunState.RUNNING) == running, timeout)

    def close(self) -> None:
        """Stop the guest and end both threads."""
        with self._changed:
            self._closing = True
            self._stop_wanted = True
            self._changed.notify_all()
        self._alarm.ring()
        if self._thread.is_alive():
            self._thread.join()
        self._alarm.close()

    def _command(self, command: str) -> None:
        with self._changed:
            if self.state is not RunState.STOPPED:
                # Somebody else was quicker: one stop must not be answered by two runs.
                return
            # A stop asked for before this command concerned the run before it.
            self._stop_wanted = self._closing
            self._commands.append(command)
            self.state = RunState.RUNNING
            self._changed.notify_all()

    # ---- the guest's way out: called on the vCPU thread, inside an access ----

    def guest_reset(self) -> None:
        """The guest asked for a reset."""
        self._guest_end(self._witness.reset())

    def guest_power_off(self) -> None:
        """The guest switched itself off."""
        self._guest_end(self._witness.power_off())

    @property
    def stopping(self) -> bool:
        """Whether the guest is about to be stopped: a device may leave what it was to do until it goes on."""
        return self._stop_wanted

    def catch(self, words: str) -> None:
        """A catchpoint fits what a device does now: stop the guest here, and say so."""
        with self._changed:
            self._stop_wanted = True
            self._caught = Caught(words if self._caught is None else f"{self._caught.words}; {words}")
        self.engine.interrupt()

    def _guest_end(self, verdict: Verdict) -> None:
        if self._ending is None:
            self._ending = verdict
        self.engine.interrupt()

    # ---- the thread ----

    def _main(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._commands or self._closing)
                if self._closing:
                    return
                command = self._commands.popleft()
            if self.state is RunState.ENDED:
                continue
            if command == "end" or self._ending is not None:
                self._decide()
                self._finish(self._ending)
                continue
            try:
                reason = self._run(stepping=command == "step")
            except Exception as error:
                log.exception("the machine failed")
                reason = EngineFailure(f"{type(error).__name__}: {error}")
            self._settle(reason)

    def _run(self, *, stepping: bool) -> CpuStop:
        self.runs += 1
        self._events.publish(GuestResumed())
        if self._tsc is not None:
            self.engine.write_tsc(self._tsc)
        self._clock.resume()
        try:
            return self._step() if stepping else self._run_until_stop()
        finally:
            self._tsc = self.engine.read_tsc()
            self._clock.pause()

    def _run_until_stop(self) -> CpuStop:
        while not self._stop_wanted:
            self._do_work()
            if self._decide() or self._stop_wanted:
                return Interrupted()
            self._board.pit.tick()
            if not self._alarm.enter(self._seconds_to_look()):
                continue
            try:
                stop = self.engine.run()
            finally:
                self._alarm.leave()
            match stop:
                case Interrupted():
                    self._look_for_life()
                case Halted(interruptible=True):
                    self._idle()
                case _:
                    return stop
        return Interrupted()

    def _step(self) -> CpuStop:
        """One instruction; a CPU in HLT is first left to wait for what wakes it."""
        self._do_work()
        if self._stop_wanted:
            return Interrupted()
        stop = self.engine.step()
        while stop == Halted(interruptible=True) and not self._stop_wanted and not self._decide():
            self._do_work()
            if self._stop_wanted:
                return Interrupted()
            self._board.pit.tick()
            self._idle()
            stop = self.engine.step()
        return stop

    def _decide(self) -> bool:
        """Whether it is decided how the run ends; the word of one outside counts when the guest has not ended it."""
        if self._ending is None and self._decision is not None:
            self._ending = self._decision(self.engine.save_state().rip)
        return self._ending is not None

    def _do_work(self) -> None:
        # Work may ask for a stop, and put off what follows until the guest goes on.
        while self._work and not self._stop_wanted:
            self._work.popleft()()
        while not self._stop_wanted and (work := self._due()) is not None:
            work()

    def _due(self) -> Callable[[], None] | None:
        """Take the first piece of work whose time has come."""
        with self._changed:
            if not self._timed or self._timed[0].at_ns > self._clock.guest_ns():
                return None
            return heapq.heappop(self._timed).work

    def _seconds_to_event(self) -> float | None:
        with self._changed:
            events = [self._timed[0].at_ns] if self._timed else []
        if (tick := self._board.pit.next_event_ns()) is not None:
            events.append(tick)
        return max(0, min(events) - self._clock.guest_ns()) / 1e9 if events else None

    def _seconds_to_look(self) -> float:
        seconds = self._seconds_to_event()
        return LOOK_SECONDS if seconds is None else min(seconds, LOOK_SECONDS)

    def _idle(self) -> None:
        """The CPU waits in HLT: sleep until the timer, a device or a person wants something."""
        with self._changed:
            called = self._work or self._stop_wanted or self._decision is not None
            if not called and self._board.pic.pending() is None:
                self._changed.wait(self._seconds_to_event())

    def _look_for_life(self) -> None:
        """A guest that leaves an interrupt waiting for seconds is hung; a panic that is over need not be waited out."""
        if self._ending is not None:
            return
        if self._witness.panic_over or (self._witness.panic is not None and self._silent()):
            self._ending = self._witness.panicked()
            return
        if self._board.pic.pending() is None or self._deaf_at_taken != self._board.pic.acknowledged:
            self._deaf_since, self._deaf_at_taken = None, self._board.pic.acknowledged
            return
        now = self._clock.guest_ns()
        if self._deaf_since is None:
            self._deaf_since = now
        elif now - self._deaf_since > DEAF_NS:
            self._ending = self._witness.deaf(self.engine.save_state().rip, DEAF_NS // 1_000_000_000)

    def _silent(self) -> bool:
        """Whether the console has stood still for PANIC_SILENCE_NS."""
        now = self._clock.guest_ns()
        if self._lines_seen != self._witness.lines:
            self._lines_seen, self._lines_since = self._witness.lines, now
        return now - self._lines_since > PANIC_SILENCE_NS

    # ---- after a run ----

    def _settle(self, reason: CpuStop) -> None:
        rip = self.engine.save_state().rip
        if self._ending is None:
            self._ending = self._fatal(reason, rip)
        caught, self._caught = self._caught, None
        if self._ending is not None and not self.held:
            self._finish(self._ending)
            return
        stop: StopReason = reason
        words = self._ending.line if self._ending else self._words(reason)
        if caught is not None and self._ending is None:
            # A breakpoint may lie just there: then the stop is for both.
            asked_for = isinstance(reason, Interrupted | StepDone | Halted)
            stop, words = (caught, caught.words) if asked_for else (reason, f"{words}; {caught.words}")
        self.caught = caught
        self._publish_stop(stop, words, rip)

    def _fatal(self, reason: CpuStop, rip: int) -> Verdict | None:
        match reason:
            case TripleFault(detail=detail):
                return self._witness.triple_fault(rip, detail)
            case EngineFailure(detail=detail):
                return Verdict(Outcome.ENGINE_FAILURE, f"the CPU engine failed: {detail}")
            case Halted(interruptible=False):
                return self._witness.dead_halt(rip)
        return None

    def _words(self, reason: CpuStop) -> str:
        match reason:
            case BreakpointHit():
                return "breakpoint"
            case WatchpointHit(watchpoint=watch, address=address):
                return f"{watch.kind.value} of {address:#x}"
            case StepDone():
                return "stepped"
            case Halted():
                return "halted"
        return self._stop_words

    def _publish_stop(self, reason: StopReason, words: str, rip: int) -> None:
        self.stop_reason = reason
        with self._changed:
            self.state = RunState.STOPPED
            self._stop_wanted = self._closing
            self._changed.notify_all()
        self._events.publish(GuestStopped(words, rip))

    def _finish(self, verdict: Verdict | None) -> None:
        assert verdict is not None
        self.verdict = verdict
        with self._changed:
            self.state = RunState.ENDED
            self._changed.notify_all()
        self._events.publish(verdict)
