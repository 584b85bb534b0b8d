from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.machine.chipset.acpi_pm import TIMER_FREQUENCY
from enclavedbg.machine.layout import ACPI_PM_BASE

from .conftest import Bench

STATUS, ENABLE, CONTROL, TIMER = ACPI_PM_BASE, ACPI_PM_BASE + 2, ACPI_PM_BASE + 4, ACPI_PM_BASE + 8


def test_acpi_mode_is_always_on(bench: Bench) -> None:
    assert bench.bus.port_read(CONTROL, 2) == 1
    bench.bus.port_write(CONTROL, 2, 0)
    assert bench.bus.port_read(CONTROL, 2) == 1


def test_the_timer_counts_and_wraps(bench: Bench) -> None:
    assert bench.bus.port_read(TIMER, 4) == 0
    bench.advance(seconds=1)
    assert bench.bus.port_read(TIMER, 4) == TIMER_FREQUENCY
    assert bench.inb(TIMER + 1) == TIMER_FREQUENCY >> 8 & 0xFF
    bench.advance(seconds=4)
    assert bench.bus.port_read(TIMER, 4) == 5 * TIMER_FREQUENCY & 0xFFFFFF


def test_linux_powers_off(bench: Bench) -> None:
    """ACPICA writes SLP_TYP first, then the same with SLP_EN."""
    bench.bus.port_write(CONTROL, 2, 5 << 10 | 1)
    assert bench.calls == []
    bench.bus.port_write(CONTROL, 2, 5 << 10 | 1 << 13 | 1)
    assert bench.calls == ["power-off"]
    assert bench.bus.port_read(CONTROL, 2) == 5 << 10 | 1  # SLP_EN reads 0


def test_power_off_by_bytes(bench: Bench) -> None:
    bench.outb(0x34, CONTROL + 1)
    assert bench.calls == ["power-off"]


@pytest.mark.parametrize("sleep_type", [0, 1, 3, 7])
def test_other_sleep_states_do_nothing(bench: Bench, sleep_type: int) -> None:
    bench.bus.port_write(CONTROL, 2, sleep_type << 10 | 1 << 13)
    assert bench.calls == []


def test_the_power_button_raises_sci(bench: Bench) -> None:
    bench.init_pics()
    bench.outb(0xFB, 0x21)
    bench.outb(0xFD, 0xA1)
    bench.bus.port_write(ENABLE, 2, 0x0100)
    assert bench.bus.port_read(ENABLE, 2) == 0x0100
    bench.board.acpi_pm.press_power_button()
    assert bench.board.pic.pending() == 0x39
    assert bench.bus.port_read(STATUS, 2) == 0x0100
    assert bench.bus.port_read(STATUS, 4) == 0x0100_0100
    bench.bus.port_write(STATUS, 2, 0x0001)
    assert bench.board.pic.pending() == 0x39
    bench.bus.port_write(STATUS, 2, 0x0100)
    assert bench.board.pic.pending() is None


def test_state_goes_round(bench: Bench) -> None:
    bench.bus.port_write(ENABLE, 2, 0x0120)
    bench.board.acpi_pm.press_power_button()
    saved = bench.board.save()
    bench.board.reset()
    assert bench.bus.port_read(STATUS, 4) == 0
    bench.board.load(saved)
    assert bench.bus.port_read(STATUS, 4) == 0x0120_0100
    assert bench.board.save() == saved


@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)), max_size=40))
def test_any_access_is_contained(writes: list[tuple[int, int, int]]) -> None:
    bench = Bench()
    for offset, size, value in writes:
        bench.bus.port_write(ACPI_PM_BASE + offset, size, value)
        assert 0 <= bench.bus.port_read(ACPI_PM_BASE + offset, size) < 1 << 8 * size
        assert bench.bus.port_read(CONTROL, 2) & 1
