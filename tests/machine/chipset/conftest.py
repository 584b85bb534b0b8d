"""A board on a bus, with a clock that moves only when a test says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from enclavedbg.machine.bus import Bus
from enclavedbg.machine.chipset.board import Board
from enclavedbg.machine.clock import Clock


@dataclass
class Bench:
    """What a test holds: ports by number, guest time by hand."""

    now_ns: int = 0
    start: datetime = datetime(2025, 12, 31, 23, 58, 7, tzinfo=UTC)
    calls: list[str] = field(default_factory=list)
    output: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.bus = Bus()
        self.clock = Clock(monotonic_ns=lambda: self.now_ns, start=self.start)
        self.clock.resume()
        self.board = Board(
            self.bus,
            self.clock,
            self,
            reset=lambda: self.calls.append("reset"),
            power_off=lambda: self.calls.append("power-off"),
        )

    def write(self, byte: int) -> None:
        self.output.append(byte)

    def outb(self, value: int, port: int) -> None:
        self.bus.port_write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.port_read(port, 1)

    def advance(self, **kwargs: float) -> None:
        self.now_ns += timedelta(**kwargs) // timedelta(microseconds=1) * 1000

    def init_pics(self, *, auto_eoi: bool = False) -> None:
        """The sequence of Linux's init_8259A, with everything masked at its end."""
        self.outb(0xFF, 0x21)
        self.outb(0xFF, 0xA1)
        self.outb(0x11, 0x20)
        self.outb(0x30, 0x21)
        self.outb(0x04, 0x21)
        self.outb(0x03 if auto_eoi else 0x01, 0x21)
        self.outb(0x11, 0xA0)
        self.outb(0x38, 0xA1)
        self.outb(0x02, 0xA1)
        self.outb(0x01, 0xA1)
        self.outb(0xFF, 0x21)
        self.outb(0xFF, 0xA1)


@pytest.fixture
def bench() -> Bench:
    return Bench()
