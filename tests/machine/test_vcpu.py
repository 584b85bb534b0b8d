"""The vCPU thread with a scripted engine: run control from any thread, work of devices, and how runs end."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from enclavedbg.machine import vcpu
from enclavedbg.machine.cpu.engine import (
    BreakpointHit,
    Caught,
    EngineFailure,
    Halted,
    StepDone,
    TripleFault,
    WatchKind,
    Watchpoint,
    WatchpointHit,
)
from enclavedbg.machine.events import GuestResumed, GuestStopped
from enclavedbg.machine.vcpu import RunState
from enclavedbg.machine.verdict import Outcome, Verdict
from tests.machine.scripted import LIMIT, ScriptedMachine

IDLE = Halted(interruptible=True)


@pytest.fixture
def machine() -> Iterator[ScriptedMachine]:
    with ScriptedMachine() as machine:
        yield machine


def test_stands_still_until_resumed(machine: ScriptedMachine) -> None:
    assert machine.vcpu.state is RunState.STOPPED
    assert machine.vcpu.wait(False, LIMIT)
    machine.go()
    assert machine.vcpu.state is RunState.RUNNING
    assert isinstance(machine.events.history("resume")[0].event, GuestResumed)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (BreakpointHit(0x1000), "breakpoint"),
        (WatchpointHit(Watchpoint(0x10, 4, WatchKind.READ), 0x12), "rwatch of 0x12"),
    ],
)
def test_a_stop_of_the_engine_is_an_event(machine: ScriptedMachine, reason: BreakpointHit, words: str) -> None:
    machine.go()
    machine.engine.give(reason)
    assert machine.stopped() == GuestStopped(words, 0x1000)
    assert machine.vcpu.stop_reason == reason
    assert machine.vcpu.state is RunState.STOPPED


def test_a_stop_that_is_asked_for(machine: ScriptedMachine) -> None:
    machine.go()
    machine.vcpu.request_stop("by the test")
    assert machine.stopped().reason == "by the test"


def test_a_request_that_the_engine_loses_is_repeated(machine: ScriptedMachine) -> None:
    machine.engine.deaf = 3
    machine.go()
    machine.vcpu.request_stop()
    machine.stopped()
    assert machine.engine.interrupts >= 4


def test_a_request_before_the_run_has_begun_counts(machine: ScriptedMachine) -> None:
    machine.vcpu.resume()
    machine.vcpu.request_stop()
    assert machine.stopped().reason == "interrupted"


def test_a_request_for_a_machine_that_stands_is_forgotten(machine: ScriptedMachine) -> None:
    machine.vcpu.request_stop()
    machine.go()
    assert machine.vcpu.state is RunState.RUNNING


def test_two_debuggers_that_resume_at_once_make_one_run(machine: ScriptedMachine) -> None:
    machine.vcpu.resume()
    machine.vcpu.resume()
    machine.engine.wait_inside()
    machine.engine.give(BreakpointHit(0x1000))
    machine.stopped()
    machine.vcpu.step()
    assert machine.stopped().reason == "stepped"
    assert len(machine.events.history("resume")) == 2, "one for both, one for the step"


def test_steps(machine: ScriptedMachine) -> None:
    for rip in (0x1001, 0x1002):
        machine.vcpu.step()
        assert machine.stopped() == GuestStopped("stepped", rip)
    assert machine.engine.runs == 0
    assert machine.vcpu.stop_reason == StepDone()


def test_a_step_of_a_halted_cpu_waits_for_what_wakes_it(machine: ScriptedMachine) -> None:
    machine.engine.steps.extend([IDLE, StepDone()])
    machine.vcpu.step()
    machine.vcpu.post(machine.raise_timer)
    assert machine.stopped().reason == "stepped"


def test_posted_work_is_done_on_the_guests_thread(machine: ScriptedMachine) -> None:
    done = threading.Event()
    threads: list[int] = []
    machine.vcpu.post(lambda: (threads.append(threading.get_ident()), done.set()))
    assert not done.is_set(), "a machine that stands still does nothing"
    machine.go()
    assert done.wait(LIMIT)
    assert threads == [machine.engine.thread]
    done.clear()
    machine.vcpu.post(done.set)
    assert done.wait(LIMIT)
    machine.engine.wait_inside(2)


@pytest.mark.parametrize("what", ["post", "stop", "end", "timer"])
def test_a_halted_cpu_wakes_for(machine: ScriptedMachine, what: str) -> None:
    machine.go()
    if what == "timer":
        # Channel 0 as a rate generator; time is made to pass it before the CPU halts.
        for port, value in ((0x43, 0x34), (0x40, 0xFF), (0x40, 0xFF)):
            machine.bus.port_write(port, 1, value)
        for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
            machine.bus.port_write(port, 1, value)
        machine.now += 1_000_000_000
    machine.engine.give(IDLE)
    match what:
        case "post":
            done = threading.Event()
            machine.vcpu.post(done.set)
            assert done.wait(LIMIT)
        case "stop":
            machine.vcpu.request_stop()
            machine.stopped()
        case "end":
            machine.vcpu.end(Verdict(Outcome.INTERRUPTED, "enough"))
            assert machine.verdict().line == "enough"
        case "timer":
            machine.engine.wait_inside(2)


def test_time_stands_still_while_stopped(machine: ScriptedMachine) -> None:
    machine.go()
    machine.now += 500
    machine.engine.tsc = 77
    machine.engine.give(BreakpointHit(0x1000))
    machine.stopped()
    machine.now += 10_000
    machine.engine.tsc = 99_999
    assert machine.clock.guest_ns() == 500
    machine.go()
    assert machine.clock.guest_ns() == 500
    assert machine.engine.tsc == 77


# ---- ends ----


@pytest.mark.parametrize(
    ("reason", "outcome", "words"),
    [
        (TripleFault(13, "no gate"), Outcome.TRIPLE_FAULT, "triple fault at 0x1000: no gate; the console stayed empty"),
        (EngineFailure("broken"), Outcome.ENGINE_FAILURE, "the CPU engine failed: broken"),
        (ValueError("oh"), Outcome.ENGINE_FAILURE, "the CPU engine failed: ValueError: oh"),
        (Halted(interruptible=False), Outcome.HANG, "hang: the CPU halted with interrupts off at 0x1000"),
    ],
)
def test_fatal_stops(machine: ScriptedMachine, reason: TripleFault, outcome: Outcome, words: str) -> None:
    machine.go()
    machine.engine.give(reason)
    verdict = machine.verdict()
    assert verdict.outcome is outcome
    assert words in verdict.line
    assert machine.vcpu.state is RunState.ENDED


def test_an_end_is_held_for_a_debugger(machine: ScriptedMachine) -> None:
    machine.vcpu.held = True
    machine.go()
    machine.engine.give(TripleFault())
    assert machine.stopped().reason.startswith("triple fault at 0x1000")
    assert machine.vcpu.verdict is None
    assert machine.vcpu.ending is not None
    machine.vcpu.resume()
    assert machine.verdict().outcome is Outcome.TRIPLE_FAULT
    assert len(machine.events.history("resume")) == 1, "the guest did not run again"


@pytest.mark.parametrize("running", [False, True])
def test_an_end_from_outside_knows_where_the_guest_is(machine: ScriptedMachine, running: bool) -> None:
    if running:
        machine.go()
    machine.vcpu.end_with(lambda rip: Verdict(Outcome.TIMEOUT, f"at {rip:#x}"))
    machine.vcpu.end(Verdict(Outcome.CLEAN, "too late"))
    assert machine.verdict() == Verdict(Outcome.TIMEOUT, "at 0x1000")


def test_an_end_from_outside_is_not_held(machine: ScriptedMachine) -> None:
    machine.vcpu.held = True
    machine.go()
    machine.vcpu.end(Verdict(Outcome.INTERRUPTED, "enough"))
    assert machine.verdict().line == "enough"


def test_nothing_happens_after_the_end(machine: ScriptedMachine) -> None:
    machine.vcpu.end(Verdict(Outcome.INTERRUPTED, "enough"))
    machine.verdict()
    machine.vcpu.resume()
    machine.vcpu.step()
    machine.vcpu.request_stop()
    machine.vcpu.end(Verdict(Outcome.CLEAN, "again"))
    machine.vcpu.close()
    assert machine.vcpu.verdict == Verdict(Outcome.INTERRUPTED, "enough")
    assert machine.engine.runs == 0
    assert len(machine.events.history("verdict")) == 1


@pytest.mark.parametrize(("port", "value", "words"), [(0xCF9, 6, "reset the machine"), (0x604, 0x3400, "powered off")])
def test_the_guests_own_way_out(machine: ScriptedMachine, port: int, value: int, words: str) -> None:
    machine.go()
    machine.bus.port_write(port, 2 if port == 0x604 else 1, value)
    verdict = machine.verdict()
    assert verdict.outcome is Outcome.CLEAN
    assert words in verdict.line


def test_a_panic_that_has_said_all_is_not_waited_out(machine: ScriptedMachine) -> None:
    machine.go()
    machine.say("Kernel panic - not syncing: on purpose", "---[ end Kernel panic - not syncing: on purpose ]---")
    assert machine.verdict() == Verdict(Outcome.PANIC, "kernel panic: on purpose")


def test_a_panic_that_falls_silent_has_ended(machine: ScriptedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcpu, "LOOK_SECONDS", 0.001)
    machine.go()
    machine.say("Kernel panic - not syncing: on purpose")
    # The first look notes the line, a later one finds that guest time has passed without another.
    machine.engine.wait_inside(machine.engine.runs + 3)
    assert machine.vcpu.verdict is None
    machine.now += vcpu.PANIC_SILENCE_NS + 1
    assert machine.verdict() == Verdict(Outcome.PANIC, "kernel panic: on purpose")


def test_an_interrupt_that_waits_too_long_is_a_hang(machine: ScriptedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcpu, "LOOK_SECONDS", 0.001)
    machine.go()
    machine.raise_timer()
    machine.engine.wait_inside(machine.engine.runs + 3)
    assert machine.vcpu.verdict is None
    machine.now += vcpu.DEAF_NS + 1
    verdict = machine.verdict()
    assert verdict.outcome is Outcome.HANG
    assert verdict.line.startswith("hang: interrupts stayed off for 10 s of guest time, now at 0x1000")


def test_interrupts_that_are_taken_are_no_hang(machine: ScriptedMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vcpu, "LOOK_SECONDS", 0.001)
    machine.go()
    for _ in range(3):
        machine.board.pic.line(0).set(False)
        machine.raise_timer()
        machine.engine.wait_inside(machine.engine.runs + 2)
        # The CPU takes it, late but not too late, and the next one waits at once.
        done = threading.Event()
        machine.vcpu.post(lambda done=done: (machine.board.pic.acknowledge(), done.set()))  # type: ignore[misc]
        assert done.wait(LIMIT)
        machine.now += vcpu.DEAF_NS // 2 + 1
    assert machine.vcpu.verdict is None


# ---- threads ----


def test_close_ends_the_threads_from_any_state() -> None:
    before = threading.enumerate()
    for state in ("new", "stopped", "running", "idle", "ended"):
        machine = ScriptedMachine()
        if state != "new":
            machine.vcpu.start()
        if state in ("running", "idle"):
            machine.go()
        if state == "idle":
            machine.engine.give(IDLE)
        if state == "ended":
            machine.vcpu.end(Verdict(Outcome.CLEAN, "end"))
            machine.verdict()
        machine.vcpu.close()
        machine.console.close()
    assert set(threading.enumerate()) <= set(before)


def test_no_stop_is_lost(machine: ScriptedMachine) -> None:
    """Requests fall into every moment of a run; the machine stands still after each."""
    noise = random.Random(1)
    for _ in range(200):
        machine.engine.deaf = noise.randrange(3)
        machine.vcpu.resume()
        if noise.randrange(2):
            machine.engine.wait_inside()
        if not noise.randrange(3):
            machine.vcpu.post(lambda: None)
        if not noise.randrange(3):
            machine.engine.give(IDLE)
        threading.Thread(target=machine.vcpu.request_stop).start()
        machine.stopped()
        machine.engine.stops.clear()
    assert len(machine.stops) == 200


def test_work_in_guest_time_waits_until_it_is_due(machine: ScriptedMachine) -> None:
    done: list[int] = []
    machine.vcpu.post_in(2_000_000_000, lambda: done.append(2))
    machine.vcpu.post_in(1_000_000_000, lambda: done.append(1))
    machine.go()
    machine.vcpu.request_stop()
    machine.stopped()
    assert done == []
    machine.now += 60_000_000_000  # a minute at a breakpoint is no time to the guest
    machine.go()
    machine.vcpu.request_stop()
    machine.stopped()
    assert done == []
    machine.go()
    machine.now += 1_500_000_000
    finished = threading.Event()
    machine.vcpu.post_in(500_000_000, finished.set)
    machine.now += 500_000_000
    machine.vcpu.post(lambda: done.append(0))  # gets the vCPU out, as the alarm does when the time has come
    assert finished.wait(LIMIT)
    assert [number for number in done if number] == [1, 2]


def test_a_waiting_cpu_wakes_for_work_that_is_due(machine: ScriptedMachine) -> None:
    done = threading.Event()
    machine.vcpu.post_in(1, done.set)
    machine.engine.give(IDLE)
    machine.go()
    machine.now = 10
    assert done.wait(LIMIT)


def test_a_catchpoint_is_the_reason_of_the_stop(machine: ScriptedMachine) -> None:
    machine.go()
    machine.vcpu.post(lambda: machine.vcpu.catch("catchpoint 1: something"))
    assert machine.stopped().reason == "catchpoint 1: something"
    assert machine.vcpu.stop_reason == Caught("catchpoint 1: something")
    machine.go()
    machine.vcpu.request_stop()
    assert machine.stopped().reason == "interrupted", "it is said once"


def test_what_a_device_put_off_is_done_at_the_next_run(machine: ScriptedMachine) -> None:
    done: list[str] = []

    def ring() -> None:
        machine.vcpu.catch("catchpoint 1: something")
        assert machine.vcpu.stopping
        machine.vcpu.post(lambda: done.append("answered"))

    machine.go()
    machine.vcpu.post(ring)
    machine.stopped()
    assert done == []
    machine.vcpu.step()
    machine.stopped()
    assert done == ["answered"]


def test_a_catchpoint_in_what_was_put_off_stops_before_anything_runs(machine: ScriptedMachine) -> None:
    machine.vcpu.post(lambda: machine.vcpu.catch("catchpoint 1: something"))
    rip, runs = machine.engine.state.rip, machine.engine.runs
    machine.vcpu.step()
    assert machine.stopped().reason == "catchpoint 1: something"
    assert (machine.engine.state.rip, machine.engine.runs) == (rip, runs)
    machine.vcpu.post(lambda: machine.vcpu.catch("catchpoint 2: something"))
    machine.vcpu.resume()
    assert machine.stopped().reason == "catchpoint 2: something"
    assert machine.engine.runs == runs


def test_work_in_guest_time_can_be_taken_back(machine: ScriptedMachine) -> None:
    done: list[int] = []
    cancels = [machine.vcpu.post_in(10, lambda n=n: done.append(n)) for n in range(3)]  # type: ignore[misc]
    cancels[1]()
    cancels[1]()
    finished = threading.Event()
    machine.vcpu.post_in(10, finished.set)
    machine.go()
    machine.now += 20
    machine.vcpu.post(lambda: None)
    assert finished.wait(LIMIT)
    assert done == [0, 2]
    cancels[0]()


def test_catchpoints_together_are_one_stop_that_names_both(machine: ScriptedMachine) -> None:
    machine.go()
    machine.vcpu.post(lambda: (machine.vcpu.catch("one"), machine.vcpu.catch("two")))
    assert machine.stopped().reason == "one; two"


def test_a_breakpoint_at_the_place_of_a_catchpoint_stays_the_reason(machine: ScriptedMachine) -> None:
    machine.engine.steps.append(BreakpointHit(0x1001))
    machine.vcpu.post_in(0, lambda: None)
    machine.vcpu.step()
    machine.stopped()
    machine.engine.give(BreakpointHit(0x1001))
    machine.vcpu._caught = Caught("one")
    machine.vcpu.resume()
    assert machine.stopped().reason == "breakpoint; one"
    assert machine.vcpu.stop_reason == BreakpointHit(0x1001)
    assert machine.vcpu.caught == Caught("one")
    machine.vcpu.step()
    machine.stopped()
    assert machine.vcpu.caught is None


def test_a_catchpoint_while_a_step_waits_in_hlt(machine: ScriptedMachine) -> None:
    machine.engine.steps.extend([IDLE] * 3)
    machine.vcpu.post(lambda: machine.vcpu.post(lambda: machine.vcpu.catch("one")))
    machine.vcpu.step()
    assert machine.stopped().reason == "one"
    assert machine.vcpu.stop_reason == Caught("one")
