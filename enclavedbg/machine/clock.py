"""The only place that reads the host's clock and randomness.

Guest time runs while the guest runs and stands still while it is stopped, so that a person may think for an
hour at a breakpoint and no watchdog in the guest fires.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

EntropySource = Callable[[int], bytes]
"""Returns the given number of random bytes."""

SEEDED_START = datetime(2026, 1, 1, tzinfo=UTC)
"""When every seeded run begins, by its own wall clock."""


class Clock:
    """Guest time in nanoseconds since boot, and the wall clock that the guest is shown.

    Created stopped at 0. Without `start` the wall clock begins at the host's time of creation.
    """

    def __init__(self, *, monotonic_ns: Callable[[], int] = time.monotonic_ns, start: datetime | None = None) -> None:
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._elapsed = 0
        self._running_since: int | None = None
        self._created = start or datetime.now(UTC)

    @property
    def running(self) -> bool:
        return self._running_since is not None

    def guest_ns(self) -> int:
        """Nanoseconds of guest time since power-on."""
        with self._lock:
            if self._running_since is None:
                return self._elapsed
            return self._elapsed + self._monotonic_ns() - self._running_since

    def resume(self) -> None:
        """Let guest time run."""
        with self._lock:
            if self._running_since is None:
                self._running_since = self._monotonic_ns()

    def pause(self) -> None:
        """Make guest time stand still."""
        with self._lock:
            if self._running_since is not None:
                self._elapsed += self._monotonic_ns() - self._running_since
                self._running_since = None

    def wall(self) -> datetime:
        """The guest's wall clock: power-on time plus guest time, an aware UTC datetime."""
        return self._created + timedelta(microseconds=self.guest_ns() // 1000)

    def host_now(self) -> datetime:
        """The host's time, an aware UTC datetime: what documents are dated with, however long a stop took."""
        return datetime.now(UTC)


class SteppedTime:
    """A wall clock for runs that are to repeat: each reading is one millisecond after the one before.

    The guest's own time goes by the host's clock, so whatever is dated by it differs between runs.
    """

    STEP = timedelta(milliseconds=1)

    def __init__(self, start: datetime) -> None:
        self._lock = threading.Lock()
        self._next = start

    def __call__(self) -> datetime:
        """The time, an aware datetime; it goes on."""
        with self._lock:
            now = self._next
            self._next = now + self.STEP
        return now

    def peek(self) -> datetime:
        """The time that the next reading will give."""
        with self._lock:
            return self._next


def entropy_source(seed: int | None = None, purpose: str = "") -> EntropySource:
    """The host's entropy, or with `seed` a repeatable stream of bytes (for tests and seeded runs only).

    Streams of one seed for several purposes have nothing in common: who draws from one moves no other.
    """
    return os.urandom if seed is None else _SeededStream(seed, purpose)


class _SeededStream:
    """The n-th draw depends on seed, purpose, n and length alone."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._prefix = f"enclavedbg {seed} {purpose} ".encode()
        self._lock = threading.Lock()
        self._draws = 0

    def __call__(self, length: int) -> bytes:
        with self._lock:
            self._draws += 1
            draw = self._draws
        return hashlib.shake_256(self._prefix + str(draw).encode()).digest(length)
