"""The device side of a split virtqueue (virtio 1.2, section 2.7).

Every address and length here was written by the guest. A breach of the rules raises QueueError, on which the
transport marks the device broken; nothing else leaves this module because of what the guest wrote. Neither
EVENT_IDX nor indirect descriptors are offered: without them a driver loses nothing that matters here.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from enclavedbg.errors import MachineError
from enclavedbg.machine.memory import GuestMemory

MAX_QUEUE_SIZE = 32768

# struct vring_desc (include/uapi/linux/virtio_ring.h): addr, len, flags, next
DESCRIPTOR = struct.Struct("<QIHH")
# struct vring_used_elem: id, len
USED_ELEMENT = struct.Struct("<II")

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

AVAIL_F_NO_INTERRUPT = 1

RING_HEADER_SIZE = 4
"""flags and idx, in front of both rings."""

MAX_CHAIN_BYTES = 0xFFFF_FFFF
"""Total length of a chain's buffers stays below 2^32 (virtio 1.2, 2.7.5)."""


class QueueError(MachineError):
    """The guest broke a rule of the virtqueue: its device is broken until the driver resets it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A checked buffer in guest RAM: guest physical address and length in bytes."""

    gpa: int
    length: int


@dataclass(frozen=True, slots=True)
class Chain:
    """One descriptor chain: the buffers that the device reads, then those that it writes.

    The buffers were checked to lie in RAM. Their content may change under the device's hands, so read once and
    use the copy.
    """

    memory: GuestMemory
    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]

    @property
    def readable_size(self) -> int:
        """Bytes that the guest gives."""
        return sum(segment.length for segment in self.readable)

    @property
    def writable_size(self) -> int:
        """Bytes that the guest takes."""
        return sum(segment.length for segment in self.writable)

    def read(self, limit: int, *, offset: int = 0) -> bytes:
        """A copy of at most `limit` of the readable bytes, gathered from `offset` on."""
        pieces: list[bytes] = []
        for segment in self.readable:
            if limit <= 0:
                break
            if offset >= segment.length:
                offset -= segment.length
                continue
            length = min(limit, segment.length - offset)
            pieces.append(self.memory.read(segment.gpa + offset, length))
            limit -= length
            offset = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, data: bytes | bytearray | memoryview, *, offset: int = 0) -> int:
        """Scatter `data` over the writable buffers from `offset` on, and return its length.

        Raises QueueError when it does not fit, with nothing written.
        """
        if offset + len(data) > self.writable_size:
            raise QueueError(
                f"the guest's buffer has {self.writable_size} bytes, expected at least {offset + len(data)}"
            )
        view = memoryview(data)
        for segment in self.writable:
            if not view:
                break
            if offset >= segment.length:
                offset -= segment.length
                continue
            length = min(len(view), segment.length - offset)
            self.memory.write(segment.gpa + offset, view[:length])
            view = view[length:]
            offset = 0
        return len(data)


@dataclass(frozen=True, slots=True)
class QueueState:
    """Everything about a queue that is not in guest memory. Addresses are guest physical."""

    size: int = 0
    descriptors: int = 0
    driver_area: int = 0
    device_area: int = 0
    ready: bool = False
    next_avail: int = 0
    next_used: int = 0


class SplitQueue:
    """One virtqueue: the transport sets it up, the device takes chains and gives them back.

    `size`, `descriptors`, `driver_area` (available ring) and `device_area` (used ring) hold what the driver
    programmed and are checked by `enable`. While the queue is not ready, `pop` returns None.
    """

    def __init__(self, memory: GuestMemory, index: int, size_max: int) -> None:
        if not 0 < size_max <= MAX_QUEUE_SIZE or size_max & (size_max - 1):
            raise MachineError(f"queue size {size_max}: expected a power of two up to {MAX_QUEUE_SIZE}")
        self._memory = memory
        self.index = index
        self.size_max = size_max
        self.reset()

    def reset(self) -> None:
        """Back to the state at power-on: not ready, nothing programmed."""
        self.ready = False
        self.size = 0
        self.descriptors = 0
        self.driver_area = 0
        self.device_area = 0
        self._next_avail = 0
        self._next_used = 0

    def save(self) -> QueueState:
        return QueueState(
            self.size,
            self.descriptors,
            self.driver_area,
            self.device_area,
            self.ready,
            self._next_avail,
            self._next_used,
        )

    def load(self, state: QueueState) -> None:
        """Take a saved state; raises QueueError when its rings do not lie in this memory."""
        self.reset()
        self.size = state.size
        self.descriptors = state.descriptors
        self.driver_area = state.driver_area
        self.device_area = state.device_area
        if state.ready:
            self.enable()
        self._next_avail = state.next_avail
        self._next_used = state.next_used

    def enable(self) -> None:
        """Check what the driver programmed and make the queue live; raises QueueError on a breach."""
        size = self.size
        if not 0 < size <= self.size_max or size & (size - 1):
            raise QueueError(f"queue {self.index} has size {size}, expected a power of two up to {self.size_max}")
        areas = (
            ("descriptor table", self.descriptors, DESCRIPTOR.size * size, 16),
            ("available ring", self.driver_area, RING_HEADER_SIZE + 2 * size + 2, 2),
            ("used ring", self.device_area, RING_HEADER_SIZE + USED_ELEMENT.size * size + 2, 4),
        )
        for what, gpa, length, alignment in areas:
            if gpa % alignment:
                raise QueueError(f"queue {self.index}: {what} at {gpa:#x} is not aligned to {alignment} bytes")
            if not self._memory.contains(gpa, length):
                raise QueueError(f"queue {self.index}: {what} of {length} bytes at {gpa:#x} does not lie in RAM")
        self._map_rings(size)
        self._next_avail = 0
        self._next_used = 0
        self.ready = True

    def _map_rings(self, size: int) -> None:
        """Lay the rings over the host mapping once: checks and address arithmetic are then off the hot path.

        The index fields become ctypes integers because those are read and stored whole; struct goes byte by
        byte, and a guest on another thread could see half an index.
        """
        base = self._memory.host_address
        avail = base + self._memory.offset(self.driver_area, RING_HEADER_SIZE + 2 * size + 2)
        used = base + self._memory.offset(self.device_area, RING_HEADER_SIZE + USED_ELEMENT.size * size + 2)
        table = base + self._memory.offset(self.descriptors, DESCRIPTOR.size * size)
        self._mask = size - 1
        self._table = (ctypes.c_char * (DESCRIPTOR.size * size)).from_address(table)
        self._avail_flags = ctypes.c_uint16.from_address(avail)
        self._avail_idx = ctypes.c_uint16.from_address(avail + 2)
        self._avail_ring = (ctypes.c_uint16 * size).from_address(avail + RING_HEADER_SIZE)
        self._used_idx = ctypes.c_uint16.from_address(used + 2)
        self._used_ring = (ctypes.c_char * (USED_ELEMENT.size * size)).from_address(used + RING_HEADER_SIZE)

    @property
    def interrupt_wanted(self) -> bool:
        """Whether the driver wants an interrupt for used buffers at this moment."""
        return self.ready and not self._avail_flags.value & AVAIL_F_NO_INTERRUPT

    def available(self) -> int:
        """Number of chains that wait; raises QueueError when the ring's index cannot be true."""
        if not self.ready:
            return 0
        index = self._avail_idx.value
        waiting = (index - self._next_avail) & 0xFFFF
        if waiting > self.size:
            raise QueueError(
                f"queue {self.index}: available index {index:#x} is {waiting} ahead of the device, "
                f"expected at most {self.size}"
            )
        return waiting

    def pop(self) -> Chain | None:
        """Take the next chain, or None when none waits. Raises QueueError on a breach."""
        if not self.available():
            return None
        chain = self._walk(self._avail_ring[self._next_avail & self._mask])
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return chain

    def chains(self) -> Iterator[Chain]:
        """Take the chains that wait now, at most `size`, so that one guest CPU cannot hold the device for ever."""
        for _ in range(self.available()):
            chain = self.pop()
            if chain is None:
                return
            yield chain

    def unpop(self) -> None:
        """Give back the chain taken last: the next `pop` finds it again."""
        self._next_avail = (self._next_avail - 1) & 0xFFFF

    def push(self, chain: Chain, written: int) -> None:
        """Put a chain in the used ring; `written` counts the bytes stored in its writable part.

        Raises QueueError when the queue is no longer live. The driver is told by `VirtioMmio.signal_used`.
        """
        if not self.ready:
            raise QueueError(f"queue {self.index} was taken back by the driver before its buffer was used")
        at = (self._next_used & self._mask) * USED_ELEMENT.size
        USED_ELEMENT.pack_into(self._used_ring, at, chain.head, written)
        self._next_used = (self._next_used + 1) & 0xFFFF
        self._used_idx.value = self._next_used

    def _walk(self, head: int) -> Chain:
        """Follow a chain from its head descriptor; its length is bounded by the table's."""
        size = self.size
        readable: list[Segment] = []
        writable: list[Segment] = []
        total = 0
        index = head
        for _ in range(size):
            if index >= size:
                raise QueueError(f"queue {self.index}: descriptor {index} named, expected one below {size}")
            gpa, length, flags, following = DESCRIPTOR.unpack_from(self._table, index * DESCRIPTOR.size)
            if flags & DESC_F_INDIRECT:
                raise QueueError(f"queue {self.index}: descriptor {index} is indirect, which was not negotiated")
            if flags & DESC_F_WRITE:
                segments = writable
            elif writable:
                raise QueueError(
                    f"queue {self.index}: descriptor {index} is device-readable after a device-writable one"
                )
            else:
                segments = readable
            if length:
                if not self._memory.contains(gpa, length):
                    raise QueueError(
                        f"queue {self.index}: descriptor {index} names {length} bytes at {gpa:#x}, "
                        "which do not lie in RAM"
                    )
                segments.append(Segment(gpa, length))
                total += length
            if total > MAX_CHAIN_BYTES:
                raise QueueError(f"queue {self.index}: chain {head} holds 4 GiB or more")
            if not flags & DESC_F_NEXT:
                return Chain(self._memory, head, tuple(readable), tuple(writable))
            index = following
        raise QueueError(f"queue {self.index}: chain {head} has more descriptors than the table's {size}")
