"""Gets the vCPU thread out of the guest: at a point in time, or because somebody asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_RETRY_SECONDS = 0.001


class Alarm:
    """A thread that calls `interrupt` while the vCPU is in the guest and its deadline passed or `ring` was called.

    An engine may lose an interrupt that falls between its last check and its start, so the call is repeated
    until the vCPU has come out.
    """

    def __init__(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._changed = threading.Condition()
        self._in_guest = False
        self._rung = False
        self._closed = False
        self._deadline: float | None = None
        self._sleeping_until: float | None = None
        self._thread = threading.Thread(target=self._run, name="enclavedbg-alarm", daemon=True)
        self._thread.start()

    def enter(self, seconds: float) -> bool:
        """The vCPU is about to enter the guest, for at most `seconds`. False: somebody rang, do not enter."""
        with self._changed:
            if self._rung:
                self._rung = False
                return False
            self._in_guest = True
            self._set(seconds)
            return True

    def rearm(self, seconds: float) -> None:
        """The deadline moved while the vCPU is in the guest."""
        with self._changed:
            if self._in_guest:
                self._set(seconds)

    def _set(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        sleeping = self._sleeping_until
        if sleeping is None or self._deadline < sleeping:
            self._changed.notify_all()

    def leave(self) -> None:
        """The vCPU came out."""
        with self._changed:
            self._in_guest = False
            self._rung = False
            self._deadline = None

    def ring(self) -> None:
        """Get the vCPU out now, or keep it from entering once; any thread."""
        with self._changed:
            self._rung = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                if not self._in_guest:
                    self._sleep(None)
                    continue
                wait = self._wait_seconds()
                if wait is None or wait > 0:
                    self._sleep(wait)
                    continue
                self._interrupt()
                self._sleep(_RETRY_SECONDS)

    def _wait_seconds(self) -> float | None:
        if self._rung:
            return 0.0
        return None if self._deadline is None else self._deadline - time.monotonic()

    def _sleep(self, seconds: float | None) -> None:
        self._sleeping_until = None if seconds is None else time.monotonic() + seconds
        self._changed.wait(seconds)
        self._sleeping_until = time.monotonic()
