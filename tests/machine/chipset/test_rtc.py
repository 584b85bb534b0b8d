from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Bench


def cmos(bench: Bench, index: int) -> int:
    bench.outb(index, 0x70)
    return bench.inb(0x71)


def set_cmos(bench: Bench, index: int, value: int) -> None:
    bench.outb(index, 0x70)
    bench.outb(value, 0x71)


def date(bench: Bench) -> tuple[int, ...]:
    return tuple(cmos(bench, i) for i in (0x32, 9, 8, 7, 4, 2, 0))


def test_linux_reads_the_time(bench: Bench) -> None:
    """mc146818_get_time: BCD, 24 hours, century in 0x32."""
    assert not cmos(bench, 0x0A) & 0x80
    assert cmos(bench, 0x0B) == 0x02
    assert cmos(bench, 0x0D) == 0x80
    assert date(bench) == (0x20, 0x25, 0x12, 0x31, 0x23, 0x58, 0x07)
    bench.advance(seconds=113)
    assert date(bench) == (0x20, 0x26, 0x01, 0x01, 0x00, 0x00, 0x00)
    assert cmos(bench, 6) == 5  # a Thursday; Sunday is 1


def test_the_update_bit_shows_before_each_second_and_goes_away(bench: Bench) -> None:
    bench.advance(microseconds=999_800)
    assert cmos(bench, 0x0A) & 0x80
    bench.advance(microseconds=200)
    assert not cmos(bench, 0x0A) & 0x80
    assert cmos(bench, 0) == 0x08


def test_twelve_hour_and_binary_formats(bench: Bench) -> None:
    set_cmos(bench, 0x0B, 0x00)
    assert cmos(bench, 4) == 0x91
    set_cmos(bench, 0x0B, 0x06)
    assert (cmos(bench, 4), cmos(bench, 2), cmos(bench, 0x32)) == (23, 58, 20)


def test_linux_sets_the_time(bench: Bench) -> None:
    control = cmos(bench, 0x0B)
    set_cmos(bench, 0x0B, control | 0x80)
    for index, value in ((9, 0x30), (8, 0x02), (7, 0x28), (4, 0x12), (2, 0x34), (0, 0x56), (0x32, 0x20)):
        set_cmos(bench, index, value)
    bench.advance(seconds=30)  # the clock stands while SET is on
    assert cmos(bench, 0) == 0x56
    set_cmos(bench, 0x0B, control)
    assert date(bench) == (0x20, 0x30, 0x02, 0x28, 0x12, 0x34, 0x56)
    bench.advance(seconds=4)
    assert date(bench)[-2:] == (0x35, 0x00)
    bench.board.rtc.reset()
    assert date(bench)[-1] == 0x41


def test_a_date_that_does_not_exist_is_not_taken(bench: Bench) -> None:
    set_cmos(bench, 8, 0x13)
    assert cmos(bench, 8) == 0x12


@pytest.mark.parametrize("index", [0x0E, 0x3F, 0x7F])
def test_cmos_memory(bench: Bench, index: int) -> None:
    set_cmos(bench, index | 0x80, 0x5A)
    assert cmos(bench, index) == 0x5A
    saved = bench.board.rtc.save()
    bench.board.rtc.reset()
    assert cmos(bench, index) == 0
    bench.board.rtc.load(saved)
    assert cmos(bench, index) == 0x5A


def test_read_only_registers(bench: Bench) -> None:
    set_cmos(bench, 0x0D, 0)
    set_cmos(bench, 0x0C, 0xFF)
    assert (cmos(bench, 0x0C), cmos(bench, 0x0D)) == (0, 0x80)
    assert bench.inb(0x70) == 0xFF


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=60),
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)),
)
def test_any_writes_leave_a_clock_that_reads(writes: list[tuple[int, int]], start: datetime) -> None:
    bench = Bench(start=start.replace(tzinfo=UTC))
    for index, value in writes:
        set_cmos(bench, index, value)
        bench.advance(seconds=3)
    for index in range(128):
        assert 0 <= cmos(bench, index) <= 0xFF
