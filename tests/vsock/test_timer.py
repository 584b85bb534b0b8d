from __future__ import annotations

from collections.abc import Callable

from enclavedbg.vsock.timer import GuestTimer


class Handle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class LoopByHand:
    """Only call_later: the test says when time has passed."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None], Handle]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Handle:
        handle = Handle()
        self.calls.append((seconds, callback, handle))
        return handle

    def fire(self) -> float:
        seconds, callback, handle = self.calls.pop()
        assert not handle.cancelled
        callback()
        return seconds


def start(now: list[int]) -> tuple[LoopByHand, list[str], GuestTimer]:
    loop = LoopByHand()
    fired: list[str] = []
    timer = GuestTimer(loop, lambda: now[0], seconds=2.0, callback=lambda: fired.append("late"))  # type: ignore[arg-type]
    return loop, fired, timer


def test_it_fires_when_the_guest_ran_all_the_time() -> None:
    now = [5_000_000_000]
    loop, fired, _ = start(now)
    now[0] += 2_000_000_000
    assert loop.fire() == 2.0
    assert fired == ["late"]
    assert not loop.calls


def test_a_guest_that_stood_still_is_not_late() -> None:
    now = [0]
    loop, fired, _ = start(now)
    now[0] = 1_999_000_000 - 1
    loop.fire()
    assert fired == []
    assert loop.fire() >= 0.5, "a stopped guest must not make the loop spin"
    now[0] += 2_000_000_000
    loop.fire()
    assert fired == ["late"]


def test_cancelled_also_after_it_waited_anew() -> None:
    now = [0]
    loop, fired, timer = start(now)
    loop.fire()
    timer.cancel()
    assert loop.calls[0][2].cancelled
    assert fired == []
