from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .conftest import Bench

RX, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(0x3F8, 0x400)


def test_linux_finds_a_16550a(bench: Bench) -> None:
    """The existence, loopback and FIFO checks of the 8250 driver's autoconfig."""
    bench.outb(0, IER)
    assert bench.inb(IER) & 0x0F == 0
    bench.outb(0x0F, IER)
    assert bench.inb(IER) == 0x0F
    bench.outb(0, IER)
    bench.outb(0x1A, MCR)
    assert bench.inb(MSR) & 0xF0 == 0x90
    bench.outb(0, MCR)
    bench.outb(0xBF, LCR)
    bench.outb(0, IIR)
    bench.outb(0, LCR)
    bench.outb(0x01, IIR)
    assert bench.inb(IIR) & 0xC0 == 0xC0
    # no enhanced register (16650), no 64-byte FIFO (16750), no UART enable bit (XScale)
    bench.outb(0x80, LCR)
    assert bench.inb(IIR) != 0
    bench.outb(0x00, LCR)
    bench.outb(0x21, IIR)
    assert bench.inb(IIR) & 0x20 == 0
    bench.outb(0x40, IER)
    assert bench.inb(IER) == 0


def test_scratch_and_divisor_keep_their_values(bench: Bench) -> None:
    bench.outb(0xA5, SCR)
    assert bench.inb(SCR) == 0xA5
    bench.outb(0x80, LCR)
    bench.outb(0x01, RX)
    bench.outb(0x02, IER)
    assert (bench.inb(RX), bench.inb(IER)) == (1, 2)
    bench.outb(0x03, LCR)
    assert bench.inb(LCR) == 3
    assert bench.inb(IER) == 0
    assert bench.output == b""


def test_bytes_reach_the_sink_and_the_transmitter_is_always_ready(bench: Bench) -> None:
    for byte in b"Linux\r\n":
        assert bench.inb(LSR) == 0x60
        bench.outb(byte, RX)
    assert bench.output == b"Linux\r\n"


def serial_irq(bench: Bench) -> bool:
    """Whether IRQ 4 wants service; acknowledges it as Linux does."""
    if bench.board.pic.pending() != 0x34:
        return False
    bench.board.pic.acknowledge()
    bench.outb(0x64, 0x20)
    return True


@pytest.fixture
def open_port(bench: Bench) -> Bench:
    bench.init_pics()
    bench.outb(0xEF, 0x21)
    bench.outb(0x07, IIR)
    bench.outb(0x0B, MCR)
    return bench


def test_transmit_by_interrupt(open_port: Bench) -> None:
    bench = open_port
    bench.outb(0x02, IER)
    assert serial_irq(bench)
    assert bench.inb(IIR) == 0xC2
    assert bench.inb(IIR) == 0xC1
    for byte in b"0123456789abcdef":
        bench.outb(byte, RX)
    assert serial_irq(bench)
    assert bench.inb(IIR) == 0xC2
    bench.outb(0x00, IER)
    assert not serial_irq(bench)


def test_linux_thre_test_sees_a_sound_chip(open_port: Bench) -> None:
    bench = open_port
    results = []
    for _ in range(2):
        bench.outb(0x02, IER)
        results.append(bench.inb(IIR) & 1)
        bench.outb(0x00, IER)
    assert results == [0, 0]


def test_no_interrupt_without_out2(open_port: Bench) -> None:
    bench = open_port
    bench.outb(0x03, MCR)
    bench.outb(0x02, IER)
    assert not serial_irq(bench)
    bench.outb(0x0B, MCR)
    assert serial_irq(bench)


def test_receive(open_port: Bench) -> None:
    bench = open_port
    bench.outb(0x01, IER)
    assert bench.board.uart.receive(b"ls\n") == 3
    assert serial_irq(bench)
    assert bench.inb(IIR) == 0xC4
    bench.outb(0x81, IIR)  # trigger at 8 bytes: fewer are a time-out
    assert bench.inb(IIR) == 0xCC
    got = bytearray()
    while bench.inb(LSR) & 1:
        got.append(bench.inb(RX))
    assert got == b"ls\n"
    assert bench.inb(IIR) == 0xC1
    assert bench.inb(RX) == 0


def test_receive_is_bounded(open_port: Bench) -> None:
    assert open_port.board.uart.receive(b"x" * 10_000) == 4096
    assert open_port.board.uart.receive(b"y") == 0


def test_loopback_and_overrun(open_port: Bench) -> None:
    bench = open_port
    bench.outb(0x1B, MCR)
    bench.outb(0x05, IER)
    for byte in range(17):
        bench.outb(byte, RX)
    assert bench.output == b""
    assert not serial_irq(bench)
    assert bench.inb(IIR) == 0xC6
    assert bench.inb(LSR) == 0x63
    assert bench.inb(LSR) == 0x61
    assert [bench.inb(RX) for _ in range(16)] == list(range(16))


def test_clearing_the_fifo(open_port: Bench) -> None:
    open_port.board.uart.receive(b"abc")
    open_port.outb(0x03, IIR)
    assert open_port.inb(LSR) == 0x60


def test_state_goes_round(open_port: Bench) -> None:
    bench = open_port
    bench.outb(0x03, IER)
    bench.board.uart.receive(b"ab")
    saved = bench.board.uart.save()
    bench.board.uart.reset()
    assert bench.inb(IER) == 0
    assert bench.board.pic.pending() is None
    bench.board.uart.load(saved)
    assert bench.board.uart.save() == saved
    assert serial_irq(bench)
    assert bench.inb(RX) == ord("a")


@given(st.lists(st.tuples(st.integers(0x3F8, 0x3FF), st.integers(0, 0xFFFF), st.booleans()), max_size=60))
def test_any_access_stays_in_bounds(accesses: list[tuple[int, int, bool]]) -> None:
    bench = Bench()
    for port, value, write in accesses:
        if write:
            bench.outb(value, port)
        else:
            assert 0 <= bench.inb(port) <= 0xFF
    assert len(bench.board.uart.save().received) <= 4096
