"""Catchpoints listen to the secure module's events, and say what they stopped at."""

from __future__ import annotations

from enclavedbg.machine.catchpoints import Catchpoint, Catchpoints
from enclavedbg.machine.events import ConsoleLine, EventStream
from enclavedbg.nsm.selector import parse_selector
from enclavedbg.nsm.wire import DescribePCR, LockPCR, Request, encode_request
from tests.nsm.support import make_module


class Watched:
    """A module whose events go to catchpoints."""

    def __init__(self) -> None:
        self.stops: list[str] = []
        self.exact: list[bool] = []
        self.events = EventStream(lambda: 0)
        self.points = Catchpoints(stop=self.stops.append, on_change=self.exact.append)
        self.events.subscribe(self.points)
        self.module = make_module(emit=self.events.publish)

    def catch(self, number: int, text: str, *, after: bool = False) -> None:
        self.points.add(number, Catchpoint(parse_selector(text.split(), answered=after)[0], after))

    def ask(self, request: Request) -> list[str]:
        """The stops that a request brings."""
        self.stops.clear()
        self.module.handle(encode_request(request), 0x3000)
        return list(self.stops)


def test_before_and_after() -> None:
    watched = Watched()
    watched.catch(1, "LockPCR")
    watched.catch(2, "LockPCR if error == ReadOnlyIndex", after=True)
    assert watched.ask(LockPCR(20)) == ["catchpoint 1: LockPCR index=20, not answered yet"]
    first, second = watched.ask(LockPCR(20))
    assert first.startswith("catchpoint 1: ")
    assert second.startswith("catchpoint 2: LockPCR index=20 -> ReadOnlyIndex (PCR20 is locked), ")
    assert watched.ask(DescribePCR(20)) == []


def test_several_at_once_are_one_stop() -> None:
    watched = Watched()
    watched.catch(1, "any")
    watched.catch(7, "LockPCR#1")
    assert watched.ask(LockPCR(20)) == ["catchpoint 1, 7: LockPCR index=20, not answered yet"]
    assert watched.ask(LockPCR(20)) == ["catchpoint 1: LockPCR index=20, not answered yet"]


def test_other_events_and_removed_points_stop_nothing() -> None:
    watched = Watched()
    watched.catch(1, "any")
    watched.events.publish(ConsoleLine("any"))
    assert watched.stops == []
    assert [(number, str(point)) for number, point in watched.points.listing()] == [(1, "nsm any")]
    assert watched.points.remove(1) is not None
    assert watched.points.remove(1) is None
    assert watched.ask(LockPCR(20)) == []
    assert watched.exact == [True, False, False]
