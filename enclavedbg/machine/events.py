"""The one event stream: whatever the machine does that a person may want to see.

Devices, firmware and run loop publish; shell, `monitor`, trace files, verdict and tests subscribe. An event
is a frozen dataclass with a class attribute `kind` and a method `summary()`; the stream adds the order and
the guest's time. `nsm` and `vsock` define events of their own that fit the same protocol, so those packages
need nothing of this one.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

log = logging.getLogger(__name__)


class Event(Protocol):
    """What the stream carries: a frozen dataclass that can name and describe itself."""

    kind: ClassVar[str]
    """Dotted name, e.g. `console`, `boot`, `nsm.exchange`, `vsock.packet`, `stop`, `verdict`."""

    def summary(self) -> str:
        """One line for a person, without the time and without the kind."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """An event with its place in the stream (`seq`, from 0) and the guest's time (`guest_ns` since boot)."""

    seq: int
    guest_ns: int
    event: Event


Subscriber = Callable[[Record], None]
Unsubscribe = Callable[[], None]


class EventStream:
    """Orders events from any thread and hands them to every subscriber, on the publishing thread.

    A subscriber must not block; one that raises is logged and stays subscribed, as no listener may stop the
    machine. What a subscriber publishes itself follows once all have heard what it answers to. `history` keeps the
    last `keep` records for those who come later.
    """

    def __init__(self, guest_ns: Callable[[], int], *, keep: int = 20_000) -> None:
        self._guest_ns = guest_ns
        self._lock = threading.RLock()
        self._counter = itertools.count()
        self._history: deque[Record] = deque(maxlen=keep)
        self._subscribers: list[Subscriber] = []
        self._undelivered: deque[tuple[Record, tuple[Subscriber, ...]]] = deque()
        self._delivering = False

    def publish(self, event: Event) -> Record:
        """Put an event on the stream and return its record."""
        with self._lock:
            record = Record(next(self._counter), self._guest_ns(), event)
            self._history.append(record)
            self._undelivered.append((record, tuple(self._subscribers)))
            if not self._delivering:
                self._delivering = True
                try:
                    while self._undelivered:
                        self._deliver(*self._undelivered.popleft())
                finally:
                    self._delivering = False
        return record

    @staticmethod
    def _deliver(record: Record, subscribers: tuple[Subscriber, ...]) -> None:
        for subscriber in subscribers:
            try:
                subscriber(record)
            except Exception:
                log.exception("a subscriber failed on %s", record.event.kind)

    def subscribe(self, subscriber: Subscriber, *, replay: bool = False) -> Unsubscribe:
        """Call `subscriber` with every later record, first with those kept when `replay` is set."""
        with self._lock:
            if replay:
                for record in self._history:
                    subscriber(record)
            self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            with self._lock:
                if subscriber in self._subscribers:
                    self._subscribers.remove(subscriber)

        return unsubscribe

    def history(self, kind: str = "") -> list[Record]:
        """The kept records whose kind is `kind` or lies below it (`vsock` covers `vsock.packet`)."""
        with self._lock:
            records = list(self._history)
        if not kind:
            return records
        return [r for r in records if r.event.kind == kind or r.event.kind.startswith(kind + ".")]


@dataclass(frozen=True, slots=True)
class ConsoleLine:
    """A line that the guest wrote to its serial console, without the line end."""

    kind: ClassVar[str] = "console"
    text: str

    def summary(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class BootStage:
    """A step of power-on, e.g. `eif-read`, `measured`, `kernel-entered`, `heartbeat`."""

    kind: ClassVar[str] = "boot"
    stage: str
    detail: str = ""

    def summary(self) -> str:
        return f"{self.stage}: {self.detail}" if self.detail else self.stage


@dataclass(frozen=True, slots=True)
class GuestWarning:
    """The guest broke a rule of a device, and the device contained it."""

    kind: ClassVar[str] = "warning"
    device: str
    text: str

    def summary(self) -> str:
        return f"{self.device}: {self.text}"


@dataclass(frozen=True, slots=True)
class GuestStopped:
    """The machine stands still; `reason` is one line, `rip` the next instruction's address."""

    kind: ClassVar[str] = "stop"
    reason: str
    rip: int

    def summary(self) -> str:
        return f"{self.reason} at {self.rip:#x}"


@dataclass(frozen=True, slots=True)
class GuestResumed:
    """The machine goes on."""

    kind: ClassVar[str] = "resume"

    def summary(self) -> str:
        return "running"
