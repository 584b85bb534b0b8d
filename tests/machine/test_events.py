"""The event stream: one order for everybody, and no listener stops the machine."""

from __future__ import annotations

import logging
import threading

import pytest

from enclavedbg.machine.events import (
    BootStage,
    ConsoleLine,
    EventStream,
    GuestResumed,
    GuestStopped,
    GuestWarning,
    Record,
)
from enclavedbg.machine.verdict import Outcome, Verdict


def line(n: int) -> ConsoleLine:
    return ConsoleLine(str(n))


def test_records_are_numbered_and_timed() -> None:
    times = iter((5, 9))
    stream = EventStream(lambda: next(times))
    assert stream.publish(line(0)) == Record(0, 5, line(0))
    assert stream.publish(line(1)) == Record(1, 9, line(1))
    assert [r.seq for r in stream.history()] == [0, 1]


def test_subscribers_come_and_go() -> None:
    stream = EventStream(lambda: 0)
    stream.publish(line(0))
    late: list[Record] = []
    all_of_them: list[Record] = []
    stream.subscribe(all_of_them.append, replay=True)
    leave = stream.subscribe(late.append)
    stream.publish(line(1))
    leave()
    leave()
    stream.publish(line(2))
    assert [r.seq for r in all_of_them] == [0, 1, 2]
    assert [r.seq for r in late] == [1]


def test_what_a_subscriber_publishes_comes_after_what_it_answers_to() -> None:
    stream = EventStream(lambda: 0)
    seen: list[Record] = []

    def answer(record: Record) -> None:
        if record.seq == 0:
            stream.publish(line(1))
            stream.subscribe(late.append, replay=True)

    late: list[Record] = []
    stream.subscribe(answer)
    stream.subscribe(seen.append)
    stream.publish(line(0))
    stream.publish(line(2))
    assert [r.seq for r in seen] == [r.seq for r in late] == [0, 1, 2]


def test_a_subscriber_that_fails_is_logged_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    stream = EventStream(lambda: 0)
    seen: list[Record] = []

    def broken(record: Record) -> None:
        raise ValueError(record.seq)

    stream.subscribe(broken)
    stream.subscribe(seen.append)
    stream.publish(line(0))
    stream.publish(line(1))
    assert len(seen) == 2
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 2


def test_a_subscriber_may_publish_and_leave() -> None:
    stream = EventStream(lambda: 0)
    seen: list[str] = []

    def once(record: Record) -> None:
        leave()
        stream.publish(GuestResumed())

    leave = stream.subscribe(once)
    stream.subscribe(lambda record: seen.append(record.event.kind))
    stream.publish(line(0))
    assert sorted(seen) == ["console", "resume"]


def test_history_is_bounded_and_filtered_by_kind() -> None:
    stream = EventStream(lambda: 0, keep=3)
    for event in (line(0), BootStage("measured"), GuestWarning("nsm", "x"), line(1)):
        stream.publish(event)
    assert [r.seq for r in stream.history()] == [1, 2, 3]
    assert [r.seq for r in stream.history("console")] == [3]
    assert stream.history("boo") == [], "a kind, or one above it, and not any beginning"


def test_all_threads_see_one_order() -> None:
    stream = EventStream(lambda: 0)
    seen: list[int] = []
    stream.subscribe(lambda record: seen.append(record.seq))
    threads = [threading.Thread(target=lambda: [stream.publish(line(0)) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == list(range(800))


@pytest.mark.parametrize(
    ("event", "kind", "summary"),
    [
        (ConsoleLine("hello"), "console", "hello"),
        (BootStage("measured"), "boot", "measured"),
        (BootStage("measured", "PCR0 00"), "boot", "measured: PCR0 00"),
        (GuestWarning("nsm", "a breach"), "warning", "nsm: a breach"),
        (GuestStopped("breakpoint", 0x10), "stop", "breakpoint at 0x10"),
        (GuestResumed(), "resume", "running"),
        (Verdict(Outcome.CLEAN, "the end"), "verdict", "the end"),
    ],
)
def test_events_describe_themselves(event: ConsoleLine, kind: str, summary: str) -> None:
    assert (event.kind, event.summary()) == (kind, summary)
