"""The only place that reads the host's clock and randomness.

Guest time runs while the guest runs and stands still while it is stopped, so that a person may think for an
hour at a breakpoint and no watchdog in the guest fires.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

EntropySource = Callable[[int], bytes]
"""Returns the given number of random bytes."""


class Clock:
    """Guest time in nanoseconds since boot, and the wall clock that the guest is shown.

    Created stopped at 0. Without `start` the wall clock begins at the host's time of creation.
    """

    def __init__(
        self, *, monotonic_ns: Callable[[], int] = time.monotonic_ns, start: datetime | None = None
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._lock = threading.Lock()
        self._elapsed = 0
        self._running_since: int | None = None
        self._start = start
        self._created = self._start or datetime.now(UTC)

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
        """The host's time, an aware UTC datetime: what documents are dated with, however long a stop took.

        With a `start` given, the guest's wall clock instead, so that runs can be repeated.
        """
        return self.wall() if self._start is not None else datetime.now(UTC)


def entropy_source(seed: int | None = None) -> EntropySource:
    """The host's entropy, or with `seed` a repeatable stream of bytes (for tests and seeded runs only)."""
    if seed is None:
        return os.urandom
    return random.Random(seed).randbytes  # noqa: S311 - repeatable on request, never the default
