"""How a session stops and resumes a machine, on one that stops when a test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from enclavedbg.errors import MachineError
from enclavedbg.machine.events import EventStream, GuestStopped
from enclavedbg.shell.session import INTERRUPTED, Session
from enclavedbg.shell.text import plain


class Machine:
    """An enclave and its debug target in one. `at_interrupt` is what happens when it is asked to stop."""

    def __init__(self) -> None:
        self.events = EventStream(lambda: 0)
        self.verdict = None
        self.debug = self
        self.running = True
        self.resumed = 0
        self.at_interrupt: Callable[[], None] = lambda: self.stop(INTERRUPTED)

    def stop(self, reason: str) -> None:
        self.running = False
        self.events.publish(GuestStopped(reason, 0x1000))

    def interrupt(self) -> None:
        self.at_interrupt()

    def resume(self) -> None:
        if self.running:
            raise MachineError("it is running")
        self.resumed += 1
        self.running = True


def session_on_machine() -> tuple[Machine, Session, list[str]]:
    """A machine that runs, a session on it, and what the session tells."""
    machine = Machine()
    told: list[str] = []
    session = Session(cast(Any, machine))
    session.tell = lambda text: told.append(plain(text))
    return machine, session, told


def test_a_change_stops_the_machine_for_a_moment() -> None:
    async def scene() -> None:
        machine, session, told = session_on_machine()
        assert await session.while_stopped(lambda: machine.running) is False
        assert machine.running and machine.resumed == 1 and told == []

    asyncio.run(scene())


def test_a_stop_of_another_kind_meanwhile_is_told_and_stays() -> None:
    """A breakpoint is met between the look whether it runs and the request to stop."""

    async def scene() -> None:
        machine, session, told = session_on_machine()
        machine.at_interrupt = lambda: machine.stop("breakpoint at 0x1000")
        assert await session.while_stopped(lambda: 7) == 7
        assert not machine.running and not session.hushed
        assert len(told) == 1 and "breakpoint at 0x1000" in told[0]

    asyncio.run(scene())


def test_a_change_that_fails_lets_the_machine_go_on() -> None:
    async def scene() -> None:
        machine, session, _ = session_on_machine()
        with pytest.raises(ZeroDivisionError):
            await session.while_stopped(lambda: 1 // 0)
        assert machine.running

    asyncio.run(scene())


def test_given_up_while_the_stop_is_on_its_way_the_machine_goes_on() -> None:
    async def scene() -> None:
        machine, session, told = session_on_machine()
        loop = asyncio.get_running_loop()
        machine.at_interrupt = lambda: cast(None, loop.call_soon(work.cancel))
        work = asyncio.create_task(session.while_stopped(lambda: 7))
        loop.call_later(0.01, lambda: machine.stop(INTERRUPTED))
        with pytest.raises(asyncio.CancelledError):
            await work
        assert machine.running and machine.resumed == 1 and told == []

    asyncio.run(scene())


def test_an_interrupt_of_a_machine_that_stands() -> None:
    async def scene() -> None:
        machine, session, _ = session_on_machine()
        machine.running = False
        assert await session.interrupt() is None

    asyncio.run(scene())


def test_a_machine_that_cannot_be_resumed_is_not_hushed() -> None:
    _, session, _ = session_on_machine()
    session.hushed = True
    session._resume_quietly()
    assert not session.hushed
