from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import MachineError
from enclavedbg.machine.bus import Bus
from enclavedbg.machine.chipset.pic import Pic8259Pair

from .conftest import Bench


def unmask_all(bench: Bench) -> None:
    bench.outb(0x00, 0x21)
    bench.outb(0x00, 0xA1)


def test_linux_probe_finds_the_controller(bench: Bench) -> None:
    bench.outb(0xFF, 0xA1)
    bench.outb(0xFB, 0x21)
    assert bench.inb(0x21) == 0xFB


def test_nothing_is_pending_before_initialisation(bench: Bench) -> None:
    bench.board.pic.line(3).set(True)
    assert bench.board.pic.pending() is None


def test_vectors_follow_icw2(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    for irq in (*range(2), *range(3, 16)):
        pic.line(irq).set(True)
        assert pic.pending() == 0x30 + irq
        assert pic.acknowledge() == 0x30 + irq
        assert pic.pending() is None
        bench.outb(0x60 + (irq & 7), 0xA0 if irq & 8 else 0x20)
        if irq & 8:
            bench.outb(0x62, 0x20)
        assert pic.pending() is None  # edge-triggered: the line is still high
        pic.line(irq).set(False)


def test_interrupts_wait_while_initialisation_words_are_missing(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    bench.outb(0x11, 0x20)
    bench.board.pic.line(5).set(True)
    assert bench.board.pic.pending() is None
    for word in (0x20, 0x04, 0x01):
        bench.outb(word, 0x21)
    assert bench.board.pic.pending() == 0x25


def test_an_edge_while_masked_or_in_service_is_kept(bench: Bench) -> None:
    bench.init_pics()
    pic = bench.board.pic
    line = pic.line(5)
    line.set(True)
    assert pic.pending() is None
    assert bench.inb(0x20) == 1 << 5  # IRR shows it
    bench.outb(0xDF, 0x21)
    assert pic.acknowledge() == 0x35
    line.set(False)
    line.set(True)
    assert pic.pending() is None
    bench.outb(0x65, 0x20)
    assert pic.pending() == 0x35


def test_setting_the_same_level_again_is_no_edge(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(6).set(True)
    pic.acknowledge()
    bench.outb(0x20, 0x20)
    pic.line(6).set(True)
    assert pic.pending() is None


@pytest.mark.parametrize(("irq", "spurious"), [(4, 0x37), (11, 0x37)])
def test_a_line_that_falls_before_the_acknowledge_gives_the_spurious_vector(
    bench: Bench, irq: int, spurious: int
) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(irq).set(True)
    pic.line(irq).set(False)
    assert pic.pending() is None
    assert pic.acknowledge() == spurious
    bench.outb(0x0B, 0x20)
    assert bench.inb(0x20) == 0  # how Linux tells it from a real one: nothing in service


def test_spurious_irq_15_leaves_the_cascade_in_service(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(9).set(True)
    pic.master.accept(2)  # the first INTA reached the master ...
    pic.line(9).set(False)  # ... and the slave's line fell before the second
    assert pic.slave.request() == -1
    bench.outb(0x0B, 0x20)
    assert bench.inb(0x20) == 1 << 2
    bench.outb(0x0B, 0xA0)
    assert bench.inb(0xA0) == 0


def test_priority_and_nesting(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(6).set(True)
    assert pic.acknowledge() == 0x36
    pic.line(7).set(True)
    assert pic.pending() is None
    pic.line(8).set(True)
    assert pic.pending() == 0x38
    pic.line(0).set(True)
    assert pic.acknowledge() == 0x30
    assert pic.pending() is None
    bench.outb(0x20, 0x20)  # ends the highest in service: 0
    assert pic.acknowledge() == 0x38
    bench.outb(0x20, 0xA0)
    bench.outb(0x20, 0x20)
    bench.outb(0x20, 0x20)
    assert pic.acknowledge() == 0x37


def test_two_slave_interrupts_come_one_after_the_other(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(12).set(True)
    pic.line(9).set(True)
    assert pic.acknowledge() == 0x39
    bench.outb(0x61, 0xA0)
    bench.outb(0x62, 0x20)
    assert pic.acknowledge() == 0x3C


def test_auto_eoi(bench: Bench) -> None:
    bench.init_pics(auto_eoi=True)
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(5).set(True)
    pic.line(6).set(True)
    assert pic.acknowledge() == 0x35
    assert pic.acknowledge() == 0x36
    bench.outb(0x0B, 0x20)
    assert bench.inb(0x20) == 0


def test_rotation_gives_the_served_input_the_lowest_priority(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(3).set(True)
    assert pic.acknowledge() == 0x33
    bench.outb(0xA0, 0x20)  # rotate on non-specific EOI
    pic.line(3).set(False)
    pic.line(3).set(True)
    pic.line(7).set(True)
    pic.line(0).set(True)
    order = []
    for _ in range(3):
        order.append(pic.acknowledge())
        bench.outb(0x20, 0x20)
    assert order == [0x37, 0x30, 0x33]


def test_special_mask_lets_lower_ones_in(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(1).set(True)
    pic.acknowledge()
    pic.line(6).set(True)
    bench.outb(0x68, 0x20)
    bench.outb(0x02, 0x21)
    assert pic.pending() == 0x36
    bench.outb(0x48, 0x20)
    assert pic.pending() is None


def test_poll_acknowledges_by_reading(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    bench.outb(0x0C, 0x20)
    assert bench.inb(0x20) == 7
    bench.board.pic.line(4).set(True)
    bench.outb(0x0C, 0x20)
    assert bench.inb(0x20) == 0x84
    assert bench.board.pic.pending() is None


def test_level_line_comes_again_until_it_falls(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    bench.outb(0xFF, 0x4D1)
    assert bench.inb(0x4D1) == 0xDE
    bench.outb(0x02, 0x4D1)  # ACPI's SCI, IRQ 9
    pic = bench.board.pic
    pic.line(9).set(True)
    assert pic.acknowledge() == 0x39
    assert pic.pending() is None
    bench.outb(0x61, 0xA0)
    bench.outb(0x62, 0x20)
    assert pic.pending() == 0x39
    pic.line(9).set(False)
    assert pic.pending() is None


def test_edge_lines_need_a_new_edge_after_initialisation(bench: Bench) -> None:
    bench.init_pics()
    line = bench.board.pic.line(5)
    line.set(True)
    bench.init_pics()
    unmask_all(bench)
    assert bench.board.pic.pending() is None
    line.set(False)
    line.set(True)
    assert bench.board.pic.pending() == 0x35


def test_linux_level_handler_loses_nothing(bench: Bench) -> None:
    """mask_and_ack, handler, unmask: a device that raises again in between is seen again."""
    bench.init_pics()
    bench.outb(0xDF, 0x21)
    pic = bench.board.pic
    line = pic.line(5)
    line.set(True)
    assert pic.acknowledge() == 0x35
    bench.inb(0x21)
    bench.outb(0xFF, 0x21)
    bench.outb(0x65, 0x20)
    line.set(False)  # the handler acknowledges the device ...
    line.set(True)  # ... which has more
    assert pic.pending() is None
    bench.outb(0xDF, 0x21)
    assert pic.pending() == 0x35


def test_changes_of_the_pending_vector_are_told(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    seen: list[int | None] = []
    pic.on_change = lambda: seen.append(pic.pending())
    pic.line(4).set(True)
    bench.outb(0x10, 0x21)
    bench.outb(0x00, 0x21)
    pic.line(3).set(True)
    pic.acknowledge()
    assert seen == [0x34, None, 0x34, 0x33, None]


def test_state_goes_round(bench: Bench) -> None:
    bench.init_pics()
    unmask_all(bench)
    pic = bench.board.pic
    pic.line(4).set(True)
    pic.acknowledge()
    pic.line(1).set(True)
    saved = pic.save()
    pic.reset()
    assert pic.pending() is None
    pic.load(saved)
    assert pic.pending() == 0x31
    assert pic.save() == saved
    pic.acknowledge()
    assert pic.save() != saved  # the saved copy is not the live one


@pytest.mark.parametrize("number", [-1, 2, 16])
def test_lines_that_do_not_exist(number: int) -> None:
    with pytest.raises(MachineError, match="IRQ"):
        Pic8259Pair().line(number)


PORTS = st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1])
ACTIONS = st.one_of(
    st.tuples(st.just("write"), PORTS, st.integers(0, 0xFFFF)),
    st.tuples(st.just("read"), PORTS, st.just(0)),
    st.tuples(st.just("line"), st.sampled_from([0, 1, 3, 7, 8, 15]), st.integers(0, 1)),
    st.tuples(st.just("ack"), st.just(0), st.just(0)),
)


@given(st.lists(ACTIONS, max_size=60))
def test_any_sequence_keeps_the_rules(actions: list[tuple[str, int, int]]) -> None:
    bus = Bus()
    pic = Pic8259Pair()
    bus.attach_ports(0x20, 2, pic.master_ports)
    bus.attach_ports(0xA0, 2, pic.slave_ports)
    bus.attach_ports(0x4D0, 2, pic.elcr_ports)
    for what, where, value in actions:
        if what == "write":
            bus.port_write(where, 1, value)
        elif what == "read":
            assert 0 <= bus.port_read(where, 1) <= 0xFF
        elif what == "line":
            pic.line(where).set(bool(value))
        else:
            expected = pic.pending()
            got = pic.acknowledge()
            if expected is not None:
                assert got == expected
        for chip in (pic.master, pic.slave):
            assert 0 <= chip.irr <= 0xFF and 0 <= chip.isr <= 0xFF
            assert chip.irr & ~chip.lines == 0  # a request never outlives its line
        pending = pic.pending()
        assert pending is None or 0 <= pending <= 0xFF
