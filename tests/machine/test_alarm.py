"""The alarm gets the vCPU out of the guest: at a deadline or when rung, and as often as it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from enclavedbg.machine.alarm import Alarm

LIMIT = 10.0
LONG = 3600.0


class Bell:
    """Counts interrupts, and lets a test wait for them."""

    def __init__(self) -> None:
        self.alarm = Alarm(self.strike)
        self._struck = threading.Semaphore(0)

    def strike(self) -> None:
        self._struck.release()

    def heard(self, seconds: float = LIMIT) -> bool:
        return self._struck.acquire(timeout=seconds)

    def silent(self) -> bool:
        """Nothing is struck; what may yet come is given the time that a deadline of 10 ms needs."""
        return not self.heard(0.02)


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    yield bell
    bell.alarm.close()


def test_a_deadline_interrupts(bell: Bell) -> None:
    assert bell.alarm.enter(0.001)
    assert bell.heard()


def test_interrupts_come_until_the_cpu_is_out(bell: Bell) -> None:
    assert bell.alarm.enter(0.0)
    assert all(bell.heard() for _ in range(5))
    bell.alarm.leave()
    while bell.heard(0):
        pass
    assert bell.silent()


def test_ringing_interrupts_at_once(bell: Bell) -> None:
    assert bell.alarm.enter(LONG)
    bell.alarm.ring()
    assert bell.heard()


def test_ringing_outside_of_the_guest_keeps_it_out_once(bell: Bell) -> None:
    bell.alarm.ring()
    assert not bell.alarm.enter(LONG)
    assert bell.alarm.enter(LONG)
    assert bell.silent()


def test_a_ring_is_used_up_by_leaving(bell: Bell) -> None:
    assert bell.alarm.enter(LONG)
    bell.alarm.ring()
    assert bell.heard()
    bell.alarm.leave()
    assert bell.alarm.enter(LONG)


def test_a_deadline_can_come_nearer(bell: Bell) -> None:
    assert bell.alarm.enter(LONG)
    bell.alarm.rearm(0.001)
    assert bell.heard()


def test_a_deadline_can_go_away(bell: Bell) -> None:
    assert bell.alarm.enter(0.01)
    bell.alarm.rearm(LONG)
    while bell.heard(0):
        pass  # it was late, and rang before the deadline went away
    assert bell.silent()


def test_rearming_outside_of_the_guest_does_nothing(bell: Bell) -> None:
    bell.alarm.rearm(0.0)
    assert bell.silent()
    assert bell.alarm.enter(LONG)
    assert bell.silent()


def test_closing_ends_the_thread() -> None:
    before = threading.enumerate()
    bell = Bell()
    bell.alarm.enter(0.0)
    assert bell.heard()
    bell.alarm.close()
    assert set(threading.enumerate()) <= set(before)
