"""What a debugger may do with the machine: the real engine under a loop that counts."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator

import pytest

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.cpu.engine import BreakpointHit, StepDone, WatchKind, Watchpoint, WatchpointHit
from enclavedbg.machine.debug import READ_LIMIT, DebugTarget
from enclavedbg.machine.events import GuestStopped, Record
from enclavedbg.machine.verdict import Outcome, Verdict
from tests.live.hostile import HostileMachine
from tests.machine.cpu.bare import ALIAS, CODE, DATA, SIZE, TABLES

LIMIT = 10.0
# again: inc qword [rdi]; inc rax; jmp again
LOOP = b"\x48\xff\x07\x48\xff\xc0\xeb\xf8"
HOLE = TABLES + 0x4000
"""A page table for the second GiB's first 2 MiB: some pages there, some not."""


@pytest.fixture(params=[True, False], ids=["native", "python"])
def machine(request: pytest.FixtureRequest) -> Iterator[HostileMachine]:
    loop = asyncio.new_event_loop()
    with HostileMachine(native=request.param, loop=loop) as machine:
        # ALIAS: pages 0 and 1 mapped in reverse order, page 2 not, page 3 outside of RAM.
        machine.memory.write_u64(TABLES + 0x1008, TABLES + 0x3007)
        machine.memory.write_u64(TABLES + 0x3000, HOLE + 7)
        machine.memory.write(HOLE, struct.pack("<4Q", DATA + 0x1007, DATA + 7, 0, SIZE + 7))
        machine.code(LOOP)
        machine.state.regs["rdi"] = DATA
        machine.start()
        machine.vcpu.start()
        yield machine
    loop.close()


@pytest.fixture
def target(machine: HostileMachine) -> DebugTarget:
    return machine.debug


class Stops:
    """Waits for stops one after the other."""

    def __init__(self, machine: HostileMachine) -> None:
        self._count = threading.Semaphore(0)
        machine.events.subscribe(self._on_event)

    def _on_event(self, record: Record) -> None:
        if isinstance(record.event, GuestStopped | Verdict):
            self._count.release()

    def next(self) -> None:
        assert self._count.acquire(timeout=LIMIT)


@pytest.fixture
def stops(machine: HostileMachine) -> Stops:
    return Stops(machine)


# ---- run control ----


def test_a_running_guest_is_not_looked_at(target: DebugTarget) -> None:
    target.resume()
    assert target.running
    refused = (
        target.state,
        lambda: target.set_state(None),  # type: ignore[arg-type]
        lambda: target.read_virtual(DATA, 1),
        lambda: target.write_virtual(DATA, b"x"),
        lambda: target.read_physical(DATA, 1),
        lambda: target.write_physical(DATA, b"x"),
        lambda: target.translate(DATA),
        lambda: target.add_breakpoint(CODE, owner="a"),
        lambda: target.remove_breakpoint(CODE, owner="a"),
        lambda: target.add_watchpoint(Watchpoint(DATA, 1, WatchKind.WRITE), owner="a"),
        lambda: target.remove_watchpoint(Watchpoint(DATA, 1, WatchKind.WRITE), owner="a"),
        target.resume,
        target.step,
    )
    for look in refused:
        with pytest.raises(MachineError, match="the enclave is running; stop it first"):
            look()
    target.interrupt()
    assert target.wait_stopped(LIMIT)
    assert CODE <= target.state().rip < CODE + len(LOOP)


def test_interrupting_a_guest_that_stands_does_nothing(target: DebugTarget, stops: Stops) -> None:
    target.interrupt()
    target.step()
    stops.next()
    assert target.stop_reason == StepDone()
    assert target.state().rip == CODE + 3


def test_after_the_end_it_can_be_looked_at_but_not_changed(machine: HostileMachine, target: DebugTarget) -> None:
    machine.vcpu.end(Verdict(Outcome.INTERRUPTED, "enough"))
    with machine.vcpu._changed:
        assert machine.vcpu._changed.wait_for(lambda: machine.vcpu.verdict is not None, LIMIT)
    assert target.ended == target.verdict == Verdict(Outcome.INTERRUPTED, "enough")
    assert target.read_virtual(CODE, len(LOOP)) == LOOP
    assert target.state().rip == CODE
    for change in (target.resume, target.step, lambda: target.write_virtual(DATA, b"x")):
        with pytest.raises(MachineError, match=r"the enclave has ended \(enough\)"):
            change()
    target.clear_owner("nobody")


def test_a_held_end_can_be_looked_at(machine: HostileMachine, target: DebugTarget, stops: Stops) -> None:
    target.hold("gdb")
    target.write_virtual(CODE, b"\x0f\x0b")
    target.set_state(state := target.state())
    state.idtr.limit = 0
    target.set_state(state)
    target.resume()
    stops.next()
    assert target.ended is None
    assert target.verdict is not None
    assert target.verdict.outcome is Outcome.TRIPLE_FAULT
    assert target.state().rip == CODE
    target.resume()
    stops.next()
    assert target.ended is not None


# ---- registers and memory ----


def test_registers_are_copies_until_set(target: DebugTarget, stops: Stops) -> None:
    state = target.state()
    state.regs["rax"] = 0x1000
    assert target.state().regs["rax"] == 0
    target.set_state(state)
    state.rip = CODE + 3
    target.set_state(state)
    target.step()
    stops.next()
    assert target.state().regs["rax"] == 0x1001


def test_reads_go_on_as_far_as_there_is_something(machine: HostileMachine, target: DebugTarget) -> None:
    machine.memory.write(DATA, b"A" * 0x1000 + b"B" * 0x1000)
    assert target.read_virtual(ALIAS + 0xFFE, 4) == b"BBAA"
    assert target.read_virtual(ALIAS + 0x1FFE, 100) == b"AA"
    assert target.read_virtual(ALIAS, 1 << 60) == b"B" * 0x1000 + b"A" * 0x1000
    assert target.read_virtual(ALIAS, 0) == b""
    machine.memory.write(SIZE - 3, b"end")
    machine.memory.write_u64(TABLES + 0x1010, 0x87)  # the third GiB is one page, most of which is not RAM
    assert target.read_virtual(0x8000_0000 + SIZE - 3, 100) == b"end"
    with pytest.raises(GuestFault, match="PTE is 0x0"):
        target.read_virtual(ALIAS + 0x2000, 1)
    with pytest.raises(GuestFault, match="are not RAM"):
        target.read_virtual(ALIAS + 0x3000, 1)


def test_a_write_is_done_wholly_or_not_at_all(machine: HostileMachine, target: DebugTarget) -> None:
    target.write_virtual(ALIAS + 0xFFE, b"1234")
    assert machine.memory.read(DATA + 0x1FFE, 2) + machine.memory.read(DATA, 2) == b"1234"
    for address in (ALIAS + 0x1FFE, ALIAS + 0x2FFE):
        with pytest.raises(GuestFault):
            target.write_virtual(address, b"1234")
    assert machine.memory.read(DATA + 0xFFE, 2) == bytes(2)


def test_reads_are_bounded(target: DebugTarget) -> None:
    assert len(target.read_virtual(0, 1 << 62)) <= READ_LIMIT
    with pytest.raises(GuestFault):
        target.read_physical(0, READ_LIMIT)


def test_physical_memory_and_translation(target: DebugTarget) -> None:
    target.write_physical(DATA, b"xyz")
    assert target.read_physical(DATA, 3) == b"xyz"
    found = target.translate(ALIAS + 0x1234)
    assert (found.gpa, found.page_size, found.writable) == (DATA + 0x234, 4096, True)
    with pytest.raises(GuestFault):
        target.write_physical(SIZE, b"x")


def test_written_code_is_what_runs_next(target: DebugTarget, stops: Stops) -> None:
    target.add_breakpoint(CODE, owner="a")
    target.resume()
    stops.next()
    target.write_virtual(CODE + 3, b"\x48\xff\xc8")  # dec rax
    before = target.state().regs["rax"]
    target.resume()
    stops.next()
    assert target.state().regs["rax"] == (before - 1) % (1 << 64)


# ---- breakpoints ----


def test_breakpoints_have_owners(target: DebugTarget, stops: Stops) -> None:
    target.add_breakpoint(CODE + 3, owner="gdb")
    target.add_breakpoint(CODE + 3, owner="shell")
    target.add_breakpoint(CODE + 3, owner="shell")
    target.remove_breakpoint(CODE + 3, owner="gdb")
    target.remove_breakpoint(CODE + 3, owner="gdb")
    target.remove_breakpoint(0x1234, owner="gdb")
    assert target.breakpoints == {CODE + 3: ("shell",)}
    target.remove_breakpoint(CODE + 3, owner="shell")
    assert target.breakpoints == {CODE + 3: ("shell",)}, "it was set twice"
    target.resume()
    stops.next()
    assert target.stop_reason == BreakpointHit(CODE + 3)
    target.remove_breakpoint(CODE + 3, owner="shell")
    assert target.breakpoints == {}


def test_negative_addresses_are_those_of_the_upper_half(target: DebugTarget) -> None:
    target.add_breakpoint(-16, owner="a")
    assert list(target.breakpoints) == [(1 << 64) - 16]
    target.remove_breakpoint((1 << 64) - 16, owner="a")
    assert target.breakpoints == {}


def test_watchpoints_have_owners(target: DebugTarget, stops: Stops) -> None:
    watch = Watchpoint(DATA + 4, 2, WatchKind.WRITE)
    target.add_watchpoint(watch, owner="gdb")
    target.add_watchpoint(watch, owner="shell")
    target.remove_watchpoint(watch, owner="gdb")
    assert target.watchpoints == (watch,)
    target.resume()
    stops.next()
    assert target.stop_reason == WatchpointHit(watch, DATA + 4)
    target.remove_watchpoint(watch, owner="shell")
    assert target.watchpoints == ()
    target.resume()
    target.interrupt()
    stops.next()
    assert not isinstance(target.stop_reason, WatchpointHit)


def test_watchpoints_hold_through_any_mapping_and_across_pages(machine: HostileMachine, target: DebugTarget) -> None:
    stops = Stops(machine)
    watch = Watchpoint(ALIAS + 0xFFC, 8, WatchKind.WRITE)
    target.add_watchpoint(watch, owner="a")
    for touched in (ALIAS + 0xFFC, ALIAS + 0x1000):
        state = target.state()
        state.rip, state.regs["rdi"] = CODE, touched
        target.set_state(state)
        target.resume()
        stops.next()
        assert target.stop_reason == WatchpointHit(watch, touched)


def test_a_watchpoint_that_cannot_be_leaves_the_others(machine: HostileMachine, target: DebugTarget) -> None:
    stops = Stops(machine)
    good = Watchpoint(DATA, 8, WatchKind.WRITE)
    target.add_watchpoint(good, owner="a")
    bad = Watchpoint(ALIAS + 0x2000, 8, WatchKind.WRITE)
    if not machine.engine.native:
        with pytest.raises(MachineError, match="watch it once it is mapped"):
            target.add_watchpoint(bad, owner="a")
        assert target.watchpoints == (good,)
    target.resume()
    stops.next()
    assert target.stop_reason == WatchpointHit(good, DATA)


def test_a_debugger_that_leaves_takes_its_own_only(target: DebugTarget, stops: Stops) -> None:
    target.hold("gdb")
    target.hold("shell")
    target.add_breakpoint(CODE, owner="gdb")
    target.add_breakpoint(CODE + 3, owner="shell")
    target.add_watchpoint(Watchpoint(DATA, 8, WatchKind.WRITE), owner="gdb")
    target.clear_owner("gdb")
    assert target.breakpoints == {CODE + 3: ("shell",)}
    assert target.watchpoints == ()
    for _ in range(2):
        target.resume()
        stops.next()
        assert target.stop_reason == BreakpointHit(CODE + 3)


def test_a_debugger_may_leave_while_the_guest_runs(machine: HostileMachine, target: DebugTarget) -> None:
    stops = Stops(machine)
    # Never reached while the loop goes on; then the guest is sent there.
    target.write_virtual(CODE + 0x100, b"\x90\xeb\xfd")
    target.add_breakpoint(CODE + 0x101, owner="gdb")
    target.add_breakpoint(CODE + 0x100, owner="shell")
    target.resume()
    target.clear_owner("gdb")
    assert target.breakpoints == {CODE + 0x100: ("shell",)}
    target.interrupt()
    stops.next()
    state = target.state()
    state.rip = CODE + 0x101
    target.set_state(state)
    for _ in range(2):
        target.resume()
        stops.next()
        assert target.stop_reason == BreakpointHit(CODE + 0x100)


def test_what_an_owner_sets_after_leaving_stays(target: DebugTarget, stops: Stops) -> None:
    target.add_breakpoint(CODE + 3, owner="gdb")
    target.clear_owner("gdb")
    target.add_breakpoint(CODE + 3, owner="gdb")
    target.resume()
    stops.next()
    assert target.stop_reason == BreakpointHit(CODE + 3)


def test_stops_from_another_thread_under_load(machine: HostileMachine, target: DebugTarget) -> None:
    """The guest's two counts stay together, wherever it is stopped, and no stop is lost."""
    stops = Stops(machine)
    for _ in range(60):
        target.resume()
        threading.Thread(target=machine.vcpu.request_stop).start()
        stops.next()
        state = target.state()
        ahead = state.rip == CODE + 3
        assert machine.memory.read_u64(DATA) == state.regs["rax"] + ahead
