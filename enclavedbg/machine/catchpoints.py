"""Catchpoints: stop the machine where the guest asks its secure module for something, or where it was answered.

They listen to the event stream, on the vCPU thread, inside the guest's access to the device: so the guest stands right
behind the instruction that rang the doorbell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from enclavedbg.machine.events import Record
from enclavedbg.nsm.events import NsmExchange, NsmRequest
from enclavedbg.nsm.selector import Counter, Selector


@dataclass(frozen=True, slots=True)
class Catchpoint:
    """What to stop at: exchanges that `selector` names, before they are answered or `after`."""

    selector: Selector
    after: bool = False

    def __str__(self) -> str:
        return f"nsm {'after ' if self.after else ''}{self.selector.text}"


class Catchpoints:
    """The machine's catchpoints by number; an event stream subscriber. Safe for several threads.

    `stop` is called with the reason when one fits; `on_change` with whether there are any.
    """

    def __init__(self, *, stop: Callable[[str], None], on_change: Callable[[bool], None]) -> None:
        self._stop = stop
        self._on_change = on_change
        self._lock = threading.Lock()
        self._points: dict[int, tuple[Catchpoint, Counter]] = {}

    def add(self, number: int, point: Catchpoint) -> None:
        """Stop at what `point` names from now on; the number is the caller's."""
        with self._lock:
            self._points[number] = (point, Counter(point.selector))
            self._on_change(True)

    def remove(self, number: int) -> Catchpoint | None:
        """Take one away; None when there is none of that number."""
        with self._lock:
            found = self._points.pop(number, None)
            self._on_change(bool(self._points))
            return found[0] if found else None

    def listing(self) -> list[tuple[int, Catchpoint]]:
        """All of them with their numbers."""
        with self._lock:
            return [(number, point) for number, (point, _) in self._points.items()]

    def __call__(self, record: Record) -> None:
        event = record.event
        if not self._points or not isinstance(event, NsmRequest | NsmExchange):
            return
        answered = isinstance(event, NsmExchange)
        response = event.response if isinstance(event, NsmExchange) else None
        with self._lock:
            hits = [
                number
                for number, (point, counter) in self._points.items()
                if point.after == answered and counter.wants(event.request, response)
            ]
        if hits:
            when = "" if answered else ", not answered yet"
            self._stop(f"catchpoint {', '.join(map(str, hits))}: {event.summary()}{when}")
