"""The guest's half of virtio-mmio and of a split virtqueue, as Linux does it (drivers/virtio/virtio_mmio.c).

Tests drive device models through their registers with this; nothing in it uses the code under test but
GuestMemory and the mmio_read/mmio_write contract.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from enclavedbg.machine.bus import MmioDevice
from enclavedbg.machine.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1 = 1 << 32


class RecordingLine:
    """An interrupt line that remembers its level and counts rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def set(self, level: bool) -> None:
        if level and not self.level:
            self.edges += 1
        self.level = level


@dataclass
class Used:
    """A used element: head descriptor, length that the device reported."""

    head: int
    length: int


@dataclass
class GuestQueue:
    """One ring in guest memory. `desc`, `avail`, `used` are guest physical addresses."""

    memory: GuestMemory
    size: int
    desc: int
    avail: int
    used: int
    buffers: int
    """Where buffers are laid out, upwards."""
    avail_idx: int = 0
    used_seen: int = 0
    next_desc: int = 0
    next_buffer: int = 0
    chains: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)

    def descriptor(self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor, legal or not."""
        self.memory.write(self.desc + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, head: int) -> None:
        """Put a head in the available ring and advance its index."""
        self.memory.write_u16(self.avail + 4 + 2 * (self.avail_idx % self.size), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.write_u16(self.avail + 2, self.avail_idx)

    def buffer(self, length: int) -> int:
        """A fresh buffer's address."""
        at = self.buffers + self.next_buffer
        self.next_buffer += (length + 15) & ~15
        return at

    def add(self, out: Sequence[bytes] = (), into: Sequence[int] = ()) -> int:
        """Lay out one chain (bytes for the device, lengths for it to fill), offer it, and return its head."""
        head = self.next_desc
        parts = [(self.buffer(len(data)), len(data), False) for data in out]
        for (gpa, _, _), data in zip(parts, out, strict=True):
            self.memory.write(gpa, data)
        parts += [(self.buffer(length), length, True) for length in into]
        for place, (gpa, length, writable) in enumerate(parts):
            index = (head + place) % self.size
            last = place == len(parts) - 1
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.descriptor(index, gpa, length, flags, (index + 1) % self.size)
        self.next_desc = (head + len(parts)) % self.size
        self.chains[head] = parts
        self.offer(head)
        return head

    def take(self) -> Used | None:
        """The next used element, if the device gave one."""
        if self.memory.read_u16(self.used + 2) == self.used_seen:
            return None
        head, length = struct.unpack("<II", self.memory.read(self.used + 4 + 8 * (self.used_seen % self.size), 8))
        self.used_seen = (self.used_seen + 1) & 0xFFFF
        return Used(head, length)

    def take_all(self) -> list[Used]:
        found = []
        while (element := self.take()) is not None:
            found.append(element)
        return found

    def written(self, used: Used) -> bytes:
        """What the device wrote into the chain of a used element."""
        data = b"".join(self.memory.read(gpa, length) for gpa, length, writable in self.chains[used.head] if writable)
        return data[: used.length]


class GuestDriver:
    """Probes a device and runs its queues, register by register, in Linux's order.

    Rings and buffers lie from `base` upwards in guest memory, `span` bytes for each queue.
    """

    def __init__(self, memory: GuestMemory, device: MmioDevice, *, base: int = 0x10_0000, span: int = 0x4_0000) -> None:
        self.memory = memory
        self.device = device
        self.base = base
        self.span = span
        self.queues: list[GuestQueue] = []
        self.features = 0

    def read(self, offset: int, size: int = 4) -> int:
        return self.device.mmio_read(offset, size)

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.device.mmio_write(offset, size, value)

    def add_status(self, bits: int) -> int:
        """Or bits into Status and return what it reads then."""
        self.write(0x70, self.read(0x70) | bits)
        return self.read(0x70)

    def negotiate(self, accept: int | None = None) -> bool:
        """Reset, acknowledge, accept features (all that are offered unless given); whether the device agreed."""
        assert self.read(0x00) == 0x74726976
        assert self.read(0x04) == 2
        assert self.read(0x08) != 0
        self.read(0x0C)
        self.write(0x70, 0)
        assert self.read(0x70) == 0
        self.add_status(1)
        self.add_status(2)
        self.write(0x14, 1)
        offered = self.read(0x10) << 32
        self.write(0x14, 0)
        offered |= self.read(0x10)
        self.features = offered if accept is None else accept
        self.write(0x24, 1)
        self.write(0x20, self.features >> 32)
        self.write(0x24, 0)
        self.write(0x20, self.features & 0xFFFF_FFFF)
        return bool(self.add_status(8) & 8)

    def set_up_queue(self, index: int, *, size: int | None = None) -> GuestQueue:
        """Program one queue; its size is the largest unless given."""
        self.write(0x30, index)
        assert self.read(0x44) == 0
        maximum = self.read(0x34)
        assert maximum
        size = maximum if size is None else size
        desc = self.base + index * self.span
        avail = desc + 16 * size
        used = (avail + 6 + 2 * size + 3) & ~3
        buffers = (used + 6 + 8 * size + 0xFFF) & ~0xFFF
        self.memory.fill_zero(desc, buffers - desc)
        queue = GuestQueue(self.memory, size, desc, avail, used, buffers)
        self.program(index, size, desc, avail, used)
        return queue

    def program(self, index: int, size: int, desc: int, avail: int, used: int) -> None:
        """The register writes of a queue set-up, whatever the values."""
        self.write(0x30, index)
        self.write(0x38, size)
        for register, value in ((0x80, desc), (0x90, avail), (0xA0, used)):
            self.write(register, value & 0xFFFF_FFFF)
            self.write(register + 4, value >> 32)
        self.write(0x44, 1)

    def probe(self, queue_count: int, *, sizes: Sequence[int | None] | None = None) -> list[GuestQueue]:
        """The whole of a driver's start, to DRIVER_OK."""
        assert self.negotiate()
        chosen = sizes or [None] * queue_count
        self.queues = [self.set_up_queue(i, size=chosen[i]) for i in range(queue_count)]
        for index in range(queue_count):
            self.write(0x30, index)
            assert self.read(0x44) == 1
        assert self.add_status(4) == 15
        return self.queues

    def kick(self, index: int) -> None:
        self.write(0x50, index)

    def interrupt(self) -> int:
        """What Linux's handler does first: read InterruptStatus, acknowledge it, return it."""
        status = self.read(0x60)
        if status:
            self.write(0x64, status)
        return status
