"""Time-outs that count the guest's time: at a breakpoint nobody is late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_SLACK_NS = 1_000_000
_RECHECK = 0.5
"""Seconds between looks at a guest clock that stood still."""


class GuestTimer:
    """Calls `callback` on the loop once `seconds` of guest time have passed; `cancel` takes it back."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        *,
        seconds: float,
        callback: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._now_ns = now_ns
        self._callback = callback
        self._deadline = now_ns() + int(seconds * 1e9)
        self._handle = loop.call_later(seconds, self._fire)

    def cancel(self) -> None:
        """Do not call back."""
        self._handle.cancel()

    def _fire(self) -> None:
        remaining = self._deadline - self._now_ns()
        if remaining > _SLACK_NS:
            self._handle = self._loop.call_later(max(remaining / 1e9, _RECHECK), self._fire)
        else:
            self._callback()
