from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.machine.chipset.pit import FREQUENCY, Pit8254

from .conftest import Bench


class Edges:
    """An interrupt line that counts rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.count = 0

    def set(self, level: bool) -> None:
        self.count += level and not self.level
        self.level = level


class Timer:
    def __init__(self) -> None:
        self.now = 0
        self.irq = Edges()
        self.pit = Pit8254(lambda: self.now, self.irq)

    def out(self, *values: tuple[int, int]) -> None:
        for value, port in values:
            device, offset = (self.pit.gate_port, 0) if port == 0x61 else (self.pit, port - 0x40)
            device.port_write(offset, 1, value)

    def read(self, port: int) -> int:
        return self.pit.gate_port.port_read(0, 1) if port == 0x61 else self.pit.port_read(port - 0x40, 1)

    def read16(self, port: int) -> int:
        return self.read(port) | self.read(port) << 8


@pytest.fixture
def timer() -> Timer:
    return Timer()


def ns(ticks: int) -> int:
    """The first nanosecond at which this many ticks have passed."""
    return -(-ticks * 10**9 // FREQUENCY)


def test_nothing_comes_before_it_is_programmed(timer: Timer) -> None:
    assert timer.pit.next_event_ns() is None
    timer.pit.tick()
    assert timer.irq.count == 0


def test_linux_periodic_tick_at_250_hz(timer: Timer) -> None:
    latch = (FREQUENCY + 125) // 250
    timer.out((0x34, 0x43), (latch & 0xFF, 0x40), (latch >> 8, 0x40))
    for number in range(1, 6):
        due = timer.pit.next_event_ns()
        assert due == ns(latch * number)
        timer.now = due - 1
        timer.pit.tick()
        assert timer.irq.count == number - 1
        timer.now = due
        timer.pit.tick()
        assert timer.irq.count == number
    # Late: no burst, and the grid stays.
    timer.now = ns(latch * 40) + 5
    timer.pit.tick()
    timer.pit.tick()
    assert timer.irq.count == 6
    assert timer.pit.next_event_ns() == ns(latch * 41)


def test_linux_one_shot_mode_4(timer: Timer) -> None:
    timer.out((0x38, 0x43))
    assert timer.pit.next_event_ns() is None
    for number in range(1, 4):
        start = timer.now
        timer.out((0xE8, 0x40), (0x03, 0x40))  # 1000 ticks
        due = timer.pit.next_event_ns()
        assert due == start + ns(1000)
        timer.now = due
        timer.pit.tick()
        assert timer.irq.count == number
        assert timer.pit.next_event_ns() is None


def test_mode_0_fires_once(timer: Timer) -> None:
    timer.out((0x30, 0x43), (0x10, 0x40))
    assert timer.pit.next_event_ns() is None  # the count is half written
    timer.out((0x00, 0x40))
    timer.now = ns(16)
    timer.pit.tick()
    timer.now = ns(200_000)
    timer.pit.tick()
    assert timer.irq.count == 1


def test_linux_shutdown_stops_it(timer: Timer) -> None:
    timer.out((0x34, 0x43), (0, 0x40), (0x10, 0x40))
    timer.out((0x30, 0x43), (0, 0x40), (0, 0x40), (0x30, 0x43))
    assert timer.pit.next_event_ns() is None
    timer.now = 10**10
    timer.pit.tick()
    assert timer.irq.count == 0


def test_a_count_of_zero_is_65536(timer: Timer) -> None:
    timer.out((0x34, 0x43), (0, 0x40), (0, 0x40))
    assert timer.pit.next_event_ns() == ns(65536)


def test_mode_3_edges(timer: Timer) -> None:
    timer.out((0x36, 0x43), (100, 0x40), (0, 0x40))
    assert timer.pit.next_event_ns() == ns(100)
    timer.now = ns(10)
    timer.out((0x00, 0x43))
    assert timer.read16(0x40) == 80  # counts by two


def test_a_divisor_of_one_is_no_flood(timer: Timer) -> None:
    timer.out((0x14, 0x43), (1, 0x40))
    timer.now = 10**9
    timer.pit.tick()
    due = timer.pit.next_event_ns()
    assert due is not None and due > timer.now


def test_fast_tsc_calibration_reads(timer: Timer) -> None:
    """quick_pit_calibrate: channel 2, mode 0, from 0xffff, most significant byte watched."""
    timer.out((timer.read(0x61) & ~2 | 1, 0x61), (0xB0, 0x43), (0xFF, 0x42), (0xFF, 0x42))
    for passed in (0, 1, 255, 256, 0x4321, 0xFFFE):
        timer.now = ns(passed)
        assert timer.read16(0x42) == 0xFFFF - passed
    assert not timer.read(0x61) & 0x20
    timer.now = ns(0xFFFF)
    assert timer.read(0x61) & 0x20
    timer.now = ns(0x10000)
    assert timer.read16(0x42) == 0xFFFF  # it counts on


def test_slow_tsc_calibration_waits_for_the_output(timer: Timer) -> None:
    latch = FREQUENCY // 20
    assert latch < 0x10000
    timer.out((0x01, 0x61), (0xB0, 0x43), (latch & 0xFF, 0x42), (latch >> 8, 0x42))
    timer.now = ns(latch) - 1
    assert not timer.read(0x61) & 0x20
    timer.now += 1
    assert timer.read(0x61) & 0x20


def test_a_low_gate_stops_channel_2(timer: Timer) -> None:
    timer.out((0x01, 0x61), (0xB0, 0x43), (0x00, 0x42), (0x10, 0x42))
    timer.now = ns(0x100)
    timer.out((0x00, 0x61))
    timer.now = ns(0x5000)
    assert timer.read16(0x42) == 0xF00
    start = timer.now
    timer.out((0x01, 0x61))
    timer.now = start + ns(0x100)
    assert timer.read16(0x42) == 0xE00


def test_a_rising_gate_triggers_mode_1(timer: Timer) -> None:
    timer.out((0x00, 0x61), (0xB2, 0x43), (0x10, 0x42), (0x00, 0x42))
    assert timer.read(0x61) & 0x20
    timer.now = ns(100)
    timer.out((0x01, 0x61))
    assert not timer.read(0x61) & 0x20
    timer.now += ns(17)
    assert timer.read(0x61) & 0x20


def test_a_rising_gate_restarts_mode_2(timer: Timer) -> None:
    timer.out((0x01, 0x61), (0xB4, 0x43), (0x00, 0x42), (0x10, 0x42))
    timer.now = ns(0x123)
    timer.out((0x00, 0x61), (0x01, 0x61))
    assert timer.read16(0x42) == 0x1000


def test_the_refresh_bit_toggles(timer: Timer) -> None:
    seen = set()
    for timer.now in range(0, 100_000, 5_000):
        seen.add(timer.read(0x61) & 0x10)
    assert seen == {0, 0x10}


def test_latch_holds_until_read(timer: Timer) -> None:
    timer.out((0x34, 0x43), (0x00, 0x40), (0x40, 0x40))
    timer.now = ns(0x111)
    timer.out((0x00, 0x43))
    timer.now = ns(0x999)
    timer.out((0x00, 0x43))  # a second latch is ignored
    assert timer.read16(0x40) == 0x4000 - 0x111
    assert timer.read16(0x40) == 0x4000 - 0x999


@pytest.mark.parametrize(("access", "value"), [(1, 0x34), (2, 0x12)])
def test_single_byte_access(timer: Timer, access: int, value: int) -> None:
    timer.out((access << 4 | 4, 0x43), (value, 0x40))
    assert timer.read(0x40) == value
    assert timer.read(0x40) == value
    expected = value if access == 1 else value << 8
    assert timer.pit.next_event_ns() == ns(expected)


def test_read_back(timer: Timer) -> None:
    timer.out((0x34, 0x43))
    timer.out((0xE2, 0x43))  # status of channel 0
    assert timer.read(0x40) == 0x80 | 0x40 | 0x30 | 0x04  # output high, no count yet
    timer.out((0x00, 0x40), (0x20, 0x40))
    timer.out((0xC2, 0x43))  # count and status
    timer.now = ns(50)
    assert timer.read(0x40) == 0x80 | 0x30 | 0x04
    assert timer.read16(0x40) == 0x2000


def test_bcd(timer: Timer) -> None:
    timer.out((0x31, 0x43), (0x34, 0x40), (0x12, 0x40))
    assert timer.pit.next_event_ns() == ns(1234)
    timer.now = ns(235)
    assert timer.read16(0x40) == 0x0999


def test_irq_0_through_the_board(bench: Bench) -> None:
    bench.init_pics()
    bench.outb(0xFE, 0x21)
    bench.outb(0x34, 0x43)
    bench.outb(0x9C, 0x40)
    bench.outb(0x2E, 0x40)
    board = bench.board
    assert board.pic.pending() is None
    for _ in range(3):
        bench.advance(milliseconds=11)
        board.pit.tick()
        assert board.pic.acknowledge() == 0x30
        bench.outb(0x60, 0x20)
        assert board.pic.pending() is None


def test_a_pending_tick_survives_the_next_period(bench: Bench) -> None:
    bench.init_pics()
    bench.outb(0xFE, 0x21)
    bench.outb(0x34, 0x43)
    bench.outb(0x9C, 0x40)
    bench.outb(0x2E, 0x40)
    for _ in range(5):
        bench.advance(milliseconds=11)
        bench.board.pit.tick()
    assert bench.board.pic.pending() == 0x30


def test_state_goes_round(timer: Timer) -> None:
    timer.out((0x30, 0x43), (0x00, 0x40), (0x10, 0x40), (0x01, 0x61))
    saved = timer.pit.save()
    timer.pit.reset()
    assert timer.pit.next_event_ns() is None
    timer.now = ns(0x2000)  # the edge is overdue, and must still come
    timer.pit.load(saved)
    assert timer.pit.save() == saved
    timer.pit.tick()
    assert timer.irq.count == 1


@given(
    st.lists(
        st.tuples(st.sampled_from([0x40, 0x41, 0x42, 0x43, 0x61]), st.integers(0, 255), st.integers(0, 10**8)),
        max_size=40,
    )
)
def test_any_programming_leaves_a_sane_timer(writes: list[tuple[int, int, int]]) -> None:
    timer = Timer()
    for port, value, wait in writes:
        timer.out((value, port))
        timer.now += wait
        timer.pit.tick()
        due = timer.pit.next_event_ns()
        assert due is None or due > timer.now
        for number in (0x40, 0x41, 0x42, 0x43, 0x61):
            assert 0 <= timer.read(number) <= 0xFF
