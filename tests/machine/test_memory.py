"""Guest RAM: every access checked, the hole below 4 GiB, and the mapping that the engine shares."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.layout import HIGH_RAM_BASE, LOW_RAM_LIMIT
from enclavedbg.machine.memory import GuestMemory

SIZE = 1 << 20


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


@pytest.fixture(scope="module")
def large() -> Iterator[GuestMemory]:
    memory = GuestMemory(LOW_RAM_LIMIT + SIZE)  # reserved only: nothing of it is touched but a few pages
    yield memory
    memory.close()


@pytest.mark.parametrize("size", [0, -4096, 1000, 4097])
def test_sizes_that_are_no_pages_are_refused(size: int) -> None:
    with pytest.raises(MachineError, match="positive multiple of 4096"):
        GuestMemory(size)


@pytest.mark.parametrize("size", [1 << 62, 1 << 70])
def test_more_than_the_host_has_is_refused_with_the_cure(size: int) -> None:
    with pytest.raises(MachineError, match="use a smaller --memory"):
        GuestMemory(size)


def test_numbers_are_little_endian(memory: GuestMemory) -> None:
    memory.write_u64(0x100, 0x1122334455667788)
    assert memory.read(0x100, 8).hex() == "8877665544332211"
    assert (memory.read_u16(0x100), memory.read_u32(0x102)) == (0x7788, 0x33445566)
    memory.write_u16(0x100, 0xAAAA)
    memory.write_u32(0x104, 0xBBBBBBBB)
    assert memory.read_u64(0x100) == 0xBBBBBBBB5566AAAA


def test_the_host_sees_the_same_bytes(memory: GuestMemory) -> None:
    memory.write(0x2000, b"hello")
    assert ctypes.string_at(memory.host_address + 0x2000, 5) == b"hello"


@pytest.mark.parametrize(("gpa", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (0, SIZE + 1), (1 << 70, 1), (0, -1)])
def test_outside_is_a_fault(memory: GuestMemory, gpa: int, length: int) -> None:
    assert not memory.contains(gpa, length)
    with pytest.raises(GuestFault, match="are not RAM") as caught:
        memory.read(gpa, length)
    assert (caught.value.address, caught.value.level) == (gpa, "physical")


def test_the_ends_are_inside(memory: GuestMemory) -> None:
    memory.write(SIZE - 4, b"last")
    assert memory.read(SIZE - 4, 4) == b"last"
    assert memory.read(SIZE, 0) == b""


def test_memory_over_3_gib_lies_above_4_gib(large: GuestMemory) -> None:
    assert [(r.gpa, r.size) for r in large.regions] == [(0, LOW_RAM_LIMIT), (HIGH_RAM_BASE, SIZE)]
    large.write(HIGH_RAM_BASE, b"high")
    assert ctypes.string_at(large.host_address + LOW_RAM_LIMIT, 4) == b"high"
    for gpa, length in ((LOW_RAM_LIMIT - 2, 4), (LOW_RAM_LIMIT, 1), (HIGH_RAM_BASE - 1, 2), (HIGH_RAM_BASE + SIZE, 1)):
        with pytest.raises(GuestFault):
            large.offset(gpa, length)


def test_zeroes(memory: GuestMemory) -> None:
    memory.write(0x3000, b"\xff" * 0x3000)
    memory.fill_zero(0x4000, 0x1000)
    assert memory.read(0x3FFF, 0x1002) == b"\xff" + bytes(0x1000) + b"\xff"
    memory.fill_zero(0x3000, 0)
    assert memory.read(0x3000, 0x1000) == b"\xff" * 0x1000
    with pytest.raises(GuestFault):
        memory.fill_zero(SIZE - 1, 2)


@settings(max_examples=200, deadline=None)
@given(gpa=st.integers(-(1 << 66), 1 << 66) | st.integers(SIZE - 16, SIZE + 16), length=st.integers(-8, 64))
def test_an_access_is_right_or_a_fault(memory: GuestMemory, gpa: int, length: int) -> None:
    inside = gpa >= 0 and length >= 0 and gpa + length <= SIZE
    assert memory.contains(gpa, length) == inside
    if inside:
        assert memory.offset(gpa, length) == gpa
        memory.write(gpa, bytes(length))
    else:
        with pytest.raises(GuestFault):
            memory.offset(gpa, length)
