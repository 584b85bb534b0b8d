"""Breakpoints of the software CPU, where something else wants the vCPU out at the same place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from enclavedbg.machine.cpu.engine import BreakpointHit, Halted, Interrupted, StepDone
from enclavedbg.machine.cpu.soft import native
from tests.machine.cpu.bare import CODE, HLT, BareGuest

PORT = 0x70
KICK = b"\xe6\x70\xeb\x00"  # out 0x70, al; jmp to the next instruction, which so begins a block
INC_RBX = b"\x48\xff\xc3"
TARGET = CODE + len(KICK)


class Kicker:
    """A port whose write asks for the vCPU, as the timer's alarm does."""

    def __init__(self, guest: BareGuest) -> None:
        self._guest = guest

    def port_read(self, offset: int, size: int) -> int:
        return 0

    def port_write(self, offset: int, size: int, value: int) -> None:
        self._guest.engine.interrupt()


@pytest.fixture(params=["native", "python"])
def guest(request: pytest.FixtureRequest) -> Iterator[BareGuest]:
    if request.param == "native" and native.load() is None:
        pytest.skip("the native part is not built: no C compiler at installation")
    guest = BareGuest(native=request.param == "native")
    guest.bus.attach_ports(PORT, 1, Kicker(guest))
    guest.code(KICK, INC_RBX, INC_RBX, HLT)
    guest.start()
    yield guest
    guest.close()


def test_a_stop_just_before_a_breakpoint_does_not_hide_it(guest: BareGuest) -> None:
    guest.engine.set_breakpoints(frozenset({TARGET}))
    assert guest.engine.run() == Interrupted()
    assert guest.engine.save_state().rip == TARGET
    assert guest.engine.run() == BreakpointHit(TARGET)
    assert guest.engine.run() == Halted(interruptible=False)
    assert guest.regs()["rbx"] == 2


def test_a_stop_while_a_breakpoint_is_passed_does_not_hide_the_next(guest: BareGuest) -> None:
    following = TARGET + len(INC_RBX)
    guest.engine.set_breakpoints(frozenset({TARGET, following}))
    guest.engine.run()
    assert guest.engine.run() == BreakpointHit(TARGET)
    guest.engine.interrupt()
    assert guest.engine.run() == Interrupted()
    assert guest.engine.save_state().rip == following
    assert guest.engine.run() == BreakpointHit(following)
    assert guest.engine.run() == Halted(interruptible=False)


def test_a_breakpoint_set_where_the_machine_stands_is_passed(guest: BareGuest) -> None:
    assert guest.engine.run() == Interrupted()
    guest.engine.set_breakpoints(frozenset({TARGET}))
    assert guest.engine.run() == Halted(interruptible=False)


def test_a_breakpoint_reached_by_a_step_is_passed(guest: BareGuest) -> None:
    guest.engine.set_breakpoints(frozenset({TARGET}))
    assert guest.engine.step() == StepDone()
    assert guest.engine.step() == StepDone()
    assert guest.engine.save_state().rip == TARGET
    assert guest.engine.run() == Interrupted()  # the first step's kick is answered behind the breakpoint
    assert guest.engine.save_state().rip == TARGET + len(INC_RBX)
    assert guest.engine.run() == Halted(interruptible=False)
