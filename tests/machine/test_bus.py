"""The address decoder: each access reaches one device, cut to its size, or nobody."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import MachineError
from enclavedbg.machine.bus import Bus


class Recorder:
    """A device that answers more bits than it was asked for, and notes what came."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def port_read(self, offset: int, size: int) -> int:
        self.seen.append((offset, size))
        return 0x1122334455667788

    def port_write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))

    mmio_read = port_read
    mmio_write = port_write


def test_ports() -> None:
    bus, device, other = Bus(), Recorder(), Recorder()
    bus.attach_ports(0x60, 2, device)
    bus.attach_ports(0x62, 1, other)
    assert [bus.port_read(0x61, size) for size in (1, 2, 4)] == [0x88, 0x7788, 0x55667788]
    bus.port_write(0x60, 1, 0x1FF)
    assert device.seen == [(1, 1), (1, 2), (1, 4), (0, 1, 0xFF)]
    assert other.seen == []


def test_windows_in_any_order() -> None:
    bus = Bus()
    devices = {base: Recorder() for base in (0x3000, 0x1000, 0x2000)}
    for base, device in devices.items():
        bus.attach_mmio(base, 0x800, device)
    assert bus.mmio_read(0x27FF, 8) == 0x1122334455667788
    bus.mmio_write(0x3000, 2, 0x12345)
    assert devices[0x2000].seen == [(0x7FF, 8)]
    assert devices[0x3000].seen == [(0, 2, 0x2345)]
    for gpa in (0, 0xFFF, 0x1800, 0x3800):
        assert bus.mmio_read(gpa, 4) == 0xFFFF_FFFF


def test_what_is_taken_is_refused() -> None:
    bus, device = Bus(), Recorder()
    bus.attach_ports(0x60, 2, device)
    with pytest.raises(MachineError, match="port 0x61 has two devices"):
        bus.attach_ports(0x61, 4, device)
    bus.attach_mmio(0x1000, 0x1000, device)
    for base, size in ((0x1FFF, 1), (0x0, 0x1001), (0x1800, 0x10)):
        with pytest.raises(MachineError, match="overlap"):
            bus.attach_mmio(base, size, device)
    bus.attach_mmio(0x2000, 0x1000, device)


def test_nobody_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bus = Bus()
    for _ in range(3):
        assert bus.port_read(0x99, 2) == 0xFFFF
        bus.port_write(0x99, 1, 1)
        assert bus.mmio_read(0x99, 1) == 0xFF
        bus.mmio_write(0x99, 8, 1)
    assert len(caplog.records) == 4


def test_a_guest_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bus = Bus()
    for gpa in range(6000):
        bus.mmio_read(gpa, 4)
    assert len(caplog.records) == 4096


@given(gpa=st.integers(0, (1 << 64) - 1), size=st.sampled_from((1, 2, 4, 8)), value=st.integers(0, (1 << 64) - 1))
def test_any_access_fits_its_size(gpa: int, size: int, value: int) -> None:
    bus, device = Bus(), Recorder()
    bus.attach_mmio(1 << 32, 1 << 32, device)
    assert 0 <= bus.mmio_read(gpa, size) < 1 << (8 * size)
    bus.mmio_write(gpa, size, value)
    inside = 1 << 32 <= gpa < 1 << 33
    assert device.seen == (
        [(gpa - (1 << 32), size), (gpa - (1 << 32), size, value % (1 << 8 * size))] if inside else []
    )
