"""A device that asks for a stop in a write to it: the guest stands right behind the instruction."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from enclavedbg.machine.cpu.engine import BreakpointHit, Halted, Interrupted, StepDone
from enclavedbg.machine.cpu.soft import native
from tests.machine.cpu.bare import CODE, HLT, SIZE, STACK, TABLES, BareGuest

DEVICE = SIZE
"""The first address that is not RAM; the tests map it as it is."""

SET_UP = b"\xbf" + struct.pack("<I", DEVICE)  # mov edi, DEVICE
STORE = b"\x89\x07"  # mov [rdi], eax
INC_RBX = b"\x48\xff\xc3"
BEHIND = CODE + len(SET_UP) + len(INC_RBX) + len(STORE)


class Doorbell:
    """Asks for a stop at every write, and keeps what was written."""

    def __init__(self, guest: BareGuest) -> None:
        self._guest = guest
        self.written: list[tuple[int, int]] = []

    def mmio_read(self, offset: int, size: int) -> int:
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size))
        self._guest.engine.interrupt()


def make(*, native_part: bool) -> tuple[BareGuest, Doorbell]:
    guest = BareGuest(native=native_part)
    guest.memory.write_u64(TABLES + 0x2000 + 8 * (DEVICE >> 21), DEVICE | 0x87)
    bell = Doorbell(guest)
    guest.bus.attach_mmio(DEVICE, 0x1000, bell)
    return guest, bell


@pytest.fixture
def rung() -> Iterator[tuple[BareGuest, Doorbell]]:
    if native.load() is None:
        pytest.skip("the native part is not built: no C compiler at installation")
    guest, bell = make(native_part=True)
    guest.engine.set_exact_stops(True)
    yield guest, bell
    guest.close()


def test_stops_right_behind_the_write_and_goes_on_from_there(rung: tuple[BareGuest, Doorbell]) -> None:
    guest, bell = rung
    guest.code(SET_UP, INC_RBX, STORE, INC_RBX, INC_RBX, HLT)
    guest.start()
    for _ in range(3):  # the second time the block of one instruction is known already
        guest.engine.load_state(guest.state)
        assert guest.engine.run() == Interrupted()
        state = guest.engine.save_state()
        assert (state.rip, state.regs["rbx"]) == (BEHIND, 1)
        assert guest.engine.run() == Halted(interruptible=False)
        assert guest.regs()["rbx"] == 3
    assert bell.written == [(0, 4)] * 3


def test_a_breakpoint_right_behind_is_still_reported(rung: tuple[BareGuest, Doorbell]) -> None:
    guest, bell = rung
    guest.code(SET_UP, INC_RBX, STORE, INC_RBX, HLT)
    guest.start()
    guest.engine.set_breakpoints(frozenset({BEHIND}))
    assert guest.engine.run() == Interrupted()
    assert guest.engine.run() == BreakpointHit(BEHIND)
    assert guest.engine.run() == Halted(interruptible=False)
    assert len(bell.written) == 1


def test_a_step_over_the_write_writes_once(rung: tuple[BareGuest, Doorbell]) -> None:
    guest, bell = rung
    guest.code(STORE, INC_RBX, HLT)
    guest.state.regs["rdi"] = DEVICE
    guest.start()
    assert guest.engine.step() == StepDone()
    assert guest.engine.save_state().rip == CODE + len(STORE)
    assert len(bell.written) == 1


def test_an_instruction_of_several_writes_does_each_once(rung: tuple[BareGuest, Doorbell]) -> None:
    """`enter` with nesting pushes three times; here its stack is the device."""
    guest, bell = rung
    guest.code(b"\xc8\x00\x00\x02", INC_RBX, HLT)  # enter 0, 2
    guest.state.regs["rbp"] = STACK
    guest.state.regs["rsp"] = DEVICE + 0x800
    guest.start()
    assert guest.engine.run() == Interrupted()
    assert guest.engine.save_state().rip == CODE + 4
    assert sorted(bell.written) == [(offset, 4) for offset in range(0x7E8, 0x800, 4)]  # eight bytes in two halves


def test_a_write_across_the_end_of_the_window_is_one_write_of_each_byte(rung: tuple[BareGuest, Doorbell]) -> None:
    guest, bell = rung
    guest.code(b"\x89\x47\xfe", INC_RBX, HLT)  # mov [rdi-2], eax: two bytes in RAM, two in the device
    guest.state.regs["rdi"] = DEVICE
    guest.start()
    assert guest.engine.run() == Interrupted()
    assert guest.engine.save_state().rip == CODE + 3
    assert sorted(bell.written) == [(0, 1), (1, 1)]


def test_page_tables_in_the_device(rung: tuple[BareGuest, Doorbell]) -> None:
    """The walk marks an entry as accessed: no instruction's write, so none is sent back."""
    guest, bell = rung
    guest.memory.write_u64(TABLES + 0x1000 + 8 * 2, DEVICE | 7)
    guest.code(b"\x48\x8b\x06", INC_RBX, HLT)  # mov rax, [rsi]
    guest.state.regs["rsi"] = 2 << 30
    guest.start()
    stop = guest.engine.run()
    while stop == Interrupted():
        stop = guest.engine.run()
    assert len(bell.written) < 10


def test_without_it_the_stop_comes_at_the_end_of_the_block() -> None:
    guest, bell = make(native_part=False)
    guest.code(SET_UP, INC_RBX, STORE, INC_RBX, b"\xeb\x00", HLT)
    guest.start()
    guest.engine.set_exact_stops(True)
    assert guest.engine.run() == Interrupted()
    state = guest.engine.save_state()
    assert (state.rip, state.regs["rbx"]) == (BEHIND + len(INC_RBX) + 2, 2)
    assert len(bell.written) == 1
    guest.close()
