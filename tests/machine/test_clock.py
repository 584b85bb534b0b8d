"""Guest time runs while the guest runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.machine.clock import Clock, SteppedTime, entropy_source


class Host:
    """A host clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


def test_stands_still_until_resumed_and_while_paused() -> None:
    host = Host()
    clock = Clock(monotonic_ns=host)
    host.now += 50
    assert (clock.guest_ns(), clock.running) == (0, False)
    clock.resume()
    host.now += 7
    assert (clock.guest_ns(), clock.running) == (7, True)
    clock.resume()
    host.now += 1
    clock.pause()
    host.now += 1000
    clock.pause()
    assert clock.guest_ns() == 8


def test_the_wall_clock_follows_guest_time() -> None:
    host, start = Host(), datetime(2026, 1, 1, tzinfo=UTC)
    clock = Clock(monotonic_ns=host, start=start)
    clock.resume()
    host.now += 1_500_000_000
    assert clock.wall() == start + timedelta(seconds=1.5)


def test_documents_are_dated_by_the_host() -> None:
    host = Host()
    clock = Clock(monotonic_ns=host)
    clock.resume()
    host.now += 3600 * 10**9
    assert clock.host_now().tzinfo is UTC
    assert abs(clock.host_now() - datetime.now(UTC)) < timedelta(minutes=1)
    assert clock.wall() - clock.host_now() > timedelta(minutes=59)


@given(st.lists(st.tuples(st.sampled_from(("resume", "pause")), st.integers(0, 10**12))))
def test_any_order_adds_up_what_ran(steps: list[tuple[str, int]]) -> None:
    host = Host()
    clock = Clock(monotonic_ns=host)
    expected, running = 0, False
    for action, passed in steps:
        getattr(clock, action)()
        running = action == "resume"
        host.now += passed
        expected += passed if running else 0
        assert clock.guest_ns() == expected


def test_entropy() -> None:
    assert entropy_source(7)(32) == entropy_source(7)(32) != entropy_source(8)(32)
    one, other = entropy_source(7, "keys"), entropy_source(7, "answers")
    assert one(32) != other(32)
    drawn = [one(8), one(8)]
    assert drawn[0] != drawn[1]
    again = entropy_source(7, "keys")
    assert [again(32), again(8), again(8)][1:] == drawn
    source = entropy_source()
    assert source(32) != source(32)
    assert len(source(100)) == 100


def test_stepped_time_repeats() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    time = SteppedTime(start)
    assert [time(), time.peek(), time(), time()] == [start + timedelta(milliseconds=ms) for ms in (0, 1, 1, 2)]
