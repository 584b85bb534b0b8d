from __future__ import annotations

import pytest

from .conftest import Bench


def test_linux_gives_up_at_once(bench: Bench) -> None:
    """i8042_flush reads data while status bit 0 is set, at most 16 times, then finds no controller."""
    assert all(bench.inb(0x64) & 1 and bench.inb(0x60) >= 0 for _ in range(20))


def test_linux_reboots_at_once(bench: Bench) -> None:
    """kb_wait ends as soon as status bit 1 is clear; then 0xfe pulses the reset line."""
    assert not bench.inb(0x64) & 2
    assert bench.calls == []
    bench.outb(0xFE, 0x64)
    assert bench.calls == ["reset"]


@pytest.mark.parametrize("command", [0xD1, 0xAA, 0x20, 0xFF, 0xEE, 0x0E])
def test_other_commands_do_nothing(bench: Bench, command: int) -> None:
    bench.outb(command, 0x64)
    bench.outb(0xFE, 0x60)
    assert bench.calls == []


def test_port_92(bench: Bench) -> None:
    assert bench.inb(0x92) == 2
    bench.outb(2, 0x92)
    assert bench.calls == []
    bench.outb(3, 0x92)
    assert bench.calls == ["reset"]


def test_port_cf9(bench: Bench) -> None:
    value = bench.inb(0xCF9) & ~0x06
    bench.outb(value | 2, 0xCF9)
    assert bench.calls == []
    bench.outb(value | 6, 0xCF9)
    assert bench.calls == ["reset"]


@pytest.mark.parametrize("port", [0x80, 0xED])
def test_delay_ports(bench: Bench, port: int) -> None:
    bench.outb(0x42, port)
    assert bench.inb(port) == 0xFF


def test_there_is_no_pci(bench: Bench) -> None:
    """pci_check_type1 and type2: neither answers."""
    bench.outb(1, 0xCFB)
    bench.bus.port_write(0xCF8, 4, 0x8000_0000)
    assert bench.bus.port_read(0xCF8, 4) == 0xFFFF_FFFF
    bench.outb(0, 0xCF8)
    assert bench.inb(0xCF8) == 0xFF
