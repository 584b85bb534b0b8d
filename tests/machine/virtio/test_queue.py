"""The device side of a virtqueue against legal and hostile rings."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import MachineError
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.virtio.queue import QueueError, QueueState, SplitQueue
from tests.machine.virtio.driver import INDIRECT, NEXT, WRITE, GuestQueue

RAM = 1 << 20
DESC, AVAIL, USED, BUFFERS = 0x1000, 0x2000, 0x3000, 0x8000


def make(size: int = 8, *, memory: GuestMemory | None = None) -> tuple[SplitQueue, GuestQueue]:
    """A live queue and the guest's view of it."""
    memory = memory or GuestMemory(RAM)
    queue = SplitQueue(memory, 0, 256)
    queue.size, queue.descriptors, queue.driver_area, queue.device_area = size, DESC, AVAIL, USED
    queue.enable()
    return queue, GuestQueue(memory, size, DESC, AVAIL, USED, BUFFERS)


def test_chain_is_gathered_and_scattered() -> None:
    queue, guest = make()
    guest.add([b"he", b"llo"], [2, 0, 6])
    chain = queue.pop()
    assert chain is not None
    assert chain.readable_size == 5
    assert chain.writable_size == 8
    assert chain.read(100) == b"hello"
    assert chain.read(3, offset=1) == b"ell"
    assert chain.read(9, offset=5) == b""
    assert chain.read(0) == b""
    assert chain.write(b"world") == 5
    assert chain.write(b"!!", offset=5) == 2
    queue.push(chain, 7)
    used = guest.take()
    assert used is not None
    assert (used.head, used.length) == (0, 7)
    assert guest.written(used) == b"world!!"
    assert guest.take() is None
    assert queue.pop() is None


def test_write_that_does_not_fit_writes_nothing() -> None:
    queue, guest = make()
    guest.add([], [4, 4])
    chain = queue.pop()
    assert chain is not None
    with pytest.raises(QueueError, match="has 8 bytes, expected at least 9"):
        chain.write(b"x" * 9)
    with pytest.raises(QueueError):
        chain.write(b"x", offset=8)
    assert guest.memory.read(BUFFERS, 32) == bytes(32)


def test_indices_wrap_around_16_bits() -> None:
    queue, guest = make(4)
    for turn in range(0x1_0010):
        guest.offer(turn % 4)
        guest.descriptor(turn % 4, BUFFERS, 1, WRITE)
        chain = queue.pop()
        assert chain is not None
        assert chain.head == turn % 4
        queue.push(chain, 1)
    assert guest.memory.read_u16(USED + 2) == 0x10
    assert queue.save().next_avail == 0x10


def test_unpop_gives_the_same_chain_again() -> None:
    queue, guest = make()
    guest.add([b"a"])
    first = queue.pop()
    queue.unpop()
    assert queue.available() == 1
    assert queue.pop() == first


def test_chains_takes_what_waits() -> None:
    queue, guest = make()
    heads = [guest.add([b"x"]) for _ in range(5)]
    assert [chain.head for chain in queue.chains()] == heads
    assert list(queue.chains()) == []


def test_interrupt_wanted_follows_the_available_ring() -> None:
    queue, guest = make()
    assert queue.interrupt_wanted
    guest.memory.write_u16(AVAIL, 1)
    assert not queue.interrupt_wanted


def test_queue_that_is_not_ready_yields_nothing() -> None:
    queue, guest = make()
    guest.add([b"x"])
    chain = queue.pop()
    assert chain is not None
    queue.ready = False
    assert queue.pop() is None
    assert not queue.interrupt_wanted
    with pytest.raises(QueueError, match="taken back"):
        queue.push(chain, 0)


def test_state_survives_save_and_load() -> None:
    memory = GuestMemory(RAM)
    queue, guest = make(memory=memory)
    guest.add([b"one"])
    guest.add([b"two"])
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)
    other = SplitQueue(memory, 0, 256)
    other.load(queue.save())
    assert other.save() == queue.save()
    chain = other.pop()
    assert chain is not None
    assert chain.read(10) == b"two"
    with pytest.raises(QueueError):
        other.load(QueueState(8, DESC, AVAIL, RAM, True, 0, 0))


@pytest.mark.parametrize("size", [0, 3, 24, 512, 0x1_0000, 0xFFFF_FFFF])
def test_illegal_sizes_are_refused(size: int) -> None:
    with pytest.raises(QueueError, match="power of two up to 256"):
        make(size)


@pytest.mark.parametrize("size_max", [0, 3, 65536])
def test_device_with_an_illegal_size_is_a_bug_of_ours(size_max: int) -> None:
    with pytest.raises(MachineError):
        SplitQueue(GuestMemory(RAM), 0, size_max)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("descriptors", 0x1008, "descriptor table at 0x1008 is not aligned"),
        ("driver_area", 0x2001, "available ring at 0x2001 is not aligned"),
        ("device_area", 0x3002, "used ring at 0x3002 is not aligned"),
        ("descriptors", RAM, "does not lie in RAM"),
        ("descriptors", RAM - 16, "does not lie in RAM"),
        ("driver_area", RAM - 4, "does not lie in RAM"),
        ("device_area", RAM - 8, "does not lie in RAM"),
        ("device_area", 0xD000_0000, "does not lie in RAM"),
        ("descriptors", 0xFFFF_FFFF_FFFF_FFF0, "does not lie in RAM"),
    ],
)
def test_illegal_areas_are_refused(field: str, value: int, message: str) -> None:
    queue, _ = make()
    queue.reset()
    queue.size, queue.descriptors, queue.driver_area, queue.device_area = 8, DESC, AVAIL, USED
    setattr(queue, field, value)
    with pytest.raises(QueueError, match=message):
        queue.enable()
    assert not queue.ready


def test_available_index_too_far_ahead() -> None:
    queue, guest = make(8)
    guest.memory.write_u16(AVAIL + 2, 9)
    with pytest.raises(QueueError, match="9 ahead of the device, expected at most 8"):
        queue.pop()
    guest.memory.write_u16(AVAIL + 2, 0xFFFF)
    with pytest.raises(QueueError):
        queue.available()


def hostile(*descriptors: tuple[int, int, int, int], head: int = 0) -> None:
    """Take one chain made of these descriptors from a ring of 4."""
    queue, guest = make(4)
    for index, descriptor in enumerate(descriptors):
        guest.descriptor(index, *descriptor)
    guest.offer(head)
    queue.pop()


@pytest.mark.parametrize(
    ("descriptors", "head", "message"),
    [
        ([(BUFFERS, 1, NEXT, 0)], 0, "more descriptors than the table's 4"),
        ([(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)], 0, "more descriptors"),
        ([], 4, "descriptor 4 named"),
        ([], 0xFFFF, "descriptor 65535 named"),
        ([(BUFFERS, 1, NEXT, 4)], 0, "descriptor 4 named, expected one below 4"),
        ([(RAM, 1, 0, 0)], 0, "do not lie in RAM"),
        ([(RAM - 1, 2, 0, 0)], 0, "do not lie in RAM"),
        ([(0xD000_0000, 4, WRITE, 0)], 0, "do not lie in RAM"),
        ([(0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, 0, 0)], 0, "do not lie in RAM"),
        ([(BUFFERS, 1, WRITE | NEXT, 1), (BUFFERS, 1, 0, 0)], 0, "device-readable after a device-writable"),
        ([(BUFFERS, 16, INDIRECT, 0)], 0, "indirect"),
    ],
)
def test_hostile_chains_are_refused(descriptors: list[tuple[int, int, int, int]], head: int, message: str) -> None:
    with pytest.raises(QueueError, match=message):
        hostile(*descriptors, head=head)


def test_length_of_a_chain_is_bounded() -> None:
    memory = GuestMemory(256 << 20)
    queue, guest = make(32, memory=memory)
    for index in range(32):
        guest.descriptor(index, 0, 256 << 20, NEXT if index < 31 else 0, index + 1)
    guest.offer(0)
    with pytest.raises(QueueError, match="4 GiB"):
        queue.pop()


DESCRIPTORS = st.tuples(
    st.one_of(st.integers(0, RAM + 64), st.integers(0, 2**64 - 1)),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
)
TABLE_MEMORY = GuestMemory(RAM)


@given(
    table=st.lists(DESCRIPTORS, min_size=8, max_size=8),
    heads=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)), min_size=8, max_size=8),
    index=st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
)
@settings(max_examples=200, deadline=None)
def test_any_ring_gives_checked_chains_or_a_queue_error(
    table: list[tuple[int, int, int, int]], heads: list[int], index: int
) -> None:
    queue, guest = make(8, memory=TABLE_MEMORY)
    for at, descriptor in enumerate(table):
        guest.descriptor(at, *descriptor)
    TABLE_MEMORY.write(AVAIL, struct.pack("<HH8H", 0, index, *heads))
    try:
        for chain in queue.chains():
            assert len(chain.read(4096)) == min(4096, chain.readable_size)
            assert all(TABLE_MEMORY.contains(s.gpa, s.length) for s in chain.readable + chain.writable)
            # The rings may be among the buffers, so what is written here can be the next chain.
            chain.write(b"\xff" * min(64, chain.writable_size))
            queue.push(chain, 0)
    except QueueError:
        pass
