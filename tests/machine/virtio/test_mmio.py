"""The transport's registers, as a good and as a bad driver use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.events import GuestWarning
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.virtio.device import Transport
from enclavedbg.machine.virtio.mmio import WARNINGS_KEPT, VirtioMmio
from enclavedbg.machine.virtio.queue import QueueError, SplitQueue
from tests.machine.virtio.driver import VERSION_1, GuestDriver, RecordingLine

RAM = 2 << 20


class Reverser:
    """Gives each chain its readable bytes back, reversed."""

    device_id: ClassVar[int] = 42
    name: ClassVar[str] = "virtio-reverser"
    features: ClassVar[int] = VERSION_1 | 1 << 3
    queue_sizes: ClassVar[tuple[int, ...]] = (8, 4)

    def __init__(self) -> None:
        self.queues: tuple[SplitQueue, ...] = ()
        self.calls: list[str] = []
        self.state: object = "fresh"

    def attach(self, transport: Transport) -> None:
        self.transport = transport

    def config(self) -> bytes:
        return bytes(range(1, 10))

    def activate(self, queues: tuple[SplitQueue, ...]) -> None:
        self.calls.append("activate")
        self.queues = queues
        for index in range(len(queues)):
            self.notify(index)

    def notify(self, queue: int) -> None:
        self.calls.append(f"notify {queue}")
        ring = self.queues[queue]
        used = False
        for chain in ring.chains():
            ring.push(chain, chain.write(chain.read(4096)[::-1]))
            used = True
        if used:
            self.transport.signal_used(ring)

    def reset(self) -> None:
        self.calls.append("reset")

    def save(self) -> object:
        return self.state

    def load(self, state: object) -> None:
        self.state = state


@dataclass
class Setup:
    memory: GuestMemory = field(default_factory=lambda: GuestMemory(RAM))
    device: Reverser = field(default_factory=Reverser)
    line: RecordingLine = field(default_factory=RecordingLine)
    events: list[GuestWarning] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mmio = VirtioMmio(self.device, self.memory, irq=self.line, publish=self.events.append)  # type: ignore[arg-type]
        self.driver = GuestDriver(self.memory, self.mmio)

    @property
    def warnings(self) -> str:
        return "\n".join(event.summary() for event in self.events)


def test_healthy_probe_and_exchange() -> None:
    s = Setup()
    rx, tx = s.driver.probe(2)
    assert s.events == []
    assert s.driver.features == VERSION_1 | 1 << 3
    assert (rx.size, tx.size) == (8, 4)
    tx.add([b"abc", b"def"], [16])
    s.driver.kick(1)
    assert s.line.level
    assert s.driver.interrupt() == 1
    assert not s.line.level
    assert s.driver.interrupt() == 0
    used = tx.take()
    assert used is not None
    assert tx.written(used) == b"fedcba"
    assert s.events == []


def test_identity_registers() -> None:
    s = Setup()
    assert s.driver.read(0x00) == 0x74726976
    assert s.driver.read(0x04) == 2
    assert s.driver.read(0x08) == 42
    assert [s.driver.read(at) for at in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4
    s.driver.write(0xAC, 3)
    assert s.driver.read(0xFC) == 0
    s.driver.write(0x14, 2)
    assert s.driver.read(0x10) == 0
    s.driver.write(0x30, 2)
    assert s.driver.read(0x34) == 0
    assert s.driver.read(0x44) == 0
    assert s.events == []


def test_configuration_space() -> None:
    s = Setup()
    assert s.driver.read(0x100, 1) == 1
    assert s.driver.read(0x102, 2) == 0x0403
    assert s.driver.read(0x104, 4) == 0x08070605
    assert s.driver.read(0x108, 4) == 9
    assert s.driver.read(0x10C, 4) == 0
    assert s.driver.read(0xFFF, 4) == 0
    assert s.events == []
    assert s.driver.read(0x100, 8) == 0
    s.driver.write(0x100, 5)
    assert "read of 8 bytes in the configuration space" in s.warnings
    assert "read-only" in s.warnings


@pytest.mark.parametrize(("offset", "size"), [(0x00, 1), (0x70, 2), (0x00, 8), (0x71, 4), (0x60, 1)])
def test_accesses_of_a_wrong_width_do_nothing(offset: int, size: int) -> None:
    s = Setup()
    s.driver.probe(2)
    assert s.driver.read(offset, size) == 0
    s.driver.write(offset, 0, size)
    assert s.driver.read(0x70) == 15
    assert len(s.events) == 2


def test_features_outside_the_offer_are_refused() -> None:
    s = Setup()
    assert not s.driver.negotiate(VERSION_1 | 1 << 29)
    assert "accepted, of which only" in s.warnings
    s.driver.add_status(4)
    assert s.driver.read(0x70) == 3
    assert "DRIVER_OK before FEATURES_OK" in s.warnings


def test_legacy_driver_is_refused() -> None:
    s = Setup()
    assert not s.driver.negotiate(1 << 3)
    assert "VERSION_1" in s.warnings


def test_driver_may_try_features_again() -> None:
    s = Setup()
    assert not s.driver.negotiate(1 << 3)
    assert s.driver.negotiate(VERSION_1)


def test_status_goes_forward_only() -> None:
    s = Setup()
    s.driver.write(0x70, 2)
    assert s.driver.read(0x70) == 0
    s.driver.write(0x70, 1)
    s.driver.write(0x70, 2)
    assert s.driver.read(0x70) == 1
    assert "clears bits only by writing 0" in s.warnings
    s.driver.write(0x70, 0x40 | 3)
    assert s.driver.read(0x70) == 3


def test_features_and_queues_are_written_only_at_their_time() -> None:
    s = Setup()
    s.driver.write(0x20, 1 << 3)
    assert "features written with status 0x0" in s.warnings
    s.driver.program(0, 8, 0x1000, 0x2000, 0x3000)
    assert "QueueNum of queue 0 written with status 0x0" in s.warnings
    assert s.driver.read(0x44) == 0
    s.driver.probe(2)
    s.driver.write(0x20, 0)
    s.driver.write(0x30, 0)
    s.driver.write(0x38, 2)
    assert s.mmio.queues[0].size == 8
    assert "QueueNum of queue 0 written with status 0xf and the queue ready" in s.warnings


def test_kick_before_driver_ok_is_served_on_activation() -> None:
    s = Setup()
    assert s.driver.negotiate()
    queue = s.driver.set_up_queue(0)
    queue.add([b"xy"], [2])
    s.driver.kick(0)
    assert queue.take() is None
    assert s.device.calls == ["reset"]
    s.driver.add_status(4)
    used = queue.take()
    assert used is not None
    assert queue.written(used) == b"yx"
    assert s.line.level


def test_kicks_of_queues_that_are_not_live_do_nothing() -> None:
    s = Setup()
    assert s.driver.negotiate()
    s.driver.set_up_queue(0)
    s.driver.add_status(4)
    calls = list(s.device.calls)
    s.driver.kick(1)
    s.driver.kick(2)
    s.driver.kick(0xFFFF_FFFF)
    assert s.device.calls == calls
    assert "notification for queue 2" in s.warnings


def test_driver_may_take_a_queue_back() -> None:
    s = Setup()
    rx, _ = s.driver.probe(2)
    s.driver.write(0x30, 0)
    s.driver.write(0x44, 0)
    assert s.driver.read(0x44) == 0
    rx.add([b"ab"], [2])
    s.driver.kick(0)
    assert rx.take() is None
    assert s.events == []


def test_reset_forgets_everything() -> None:
    s = Setup()
    rx, _ = s.driver.probe(2)
    rx.add([b"ab"], [2])
    s.driver.kick(0)
    generation = s.mmio.generation
    assert s.line.level
    s.driver.write(0x70, 0)
    assert not s.line.level
    assert [s.driver.read(at) for at in (0x70, 0x60, 0x44)] == [0, 0, 0]
    assert s.mmio.generation == generation + 1
    assert s.device.calls[-1] == "reset"
    assert not s.mmio.active
    rx, _ = s.driver.probe(2)
    rx.add([b"ab"], [2])
    s.driver.kick(0)
    assert len(rx.take_all()) == 1


def test_driver_that_wants_no_interrupt_gets_none() -> None:
    s = Setup()
    rx, _ = s.driver.probe(2)
    s.memory.write_u16(rx.avail, 1)
    rx.add([b"ab"], [2])
    s.driver.kick(0)
    assert len(rx.take_all()) == 1
    assert not s.line.level


def assert_broken(s: Setup) -> None:
    assert s.driver.read(0x70) & 64
    assert s.line.level
    assert s.driver.interrupt() == 2
    assert not s.line.level
    assert not s.mmio.active
    calls = list(s.device.calls)
    s.driver.kick(0)
    assert s.device.calls == calls
    assert len(s.events) == 1
    assert "stands still until the driver resets it" in s.warnings
    s.driver.probe(2)
    assert s.driver.read(0x70) == 15


def test_hostile_ring_breaks_the_device_until_reset() -> None:
    s = Setup()
    rx, _ = s.driver.probe(2)
    s.memory.write_u16(rx.avail + 2, 0x8000)
    s.driver.kick(0)
    assert_broken(s)


def test_fault_in_device_work_breaks_the_device() -> None:
    s = Setup()
    s.driver.probe(2)

    def work() -> None:
        raise GuestFault("outside", address=0)

    s.mmio.service(work)
    assert_broken(s)


def test_work_of_a_device_that_is_not_active_is_not_run() -> None:
    s = Setup()
    s.mmio.service(lambda: pytest.fail("ran"))
    s.driver.probe(2)
    s.driver.add_status(128)
    s.mmio.service(lambda: pytest.fail("ran"))


def test_queue_outside_memory_is_a_warning_and_a_broken_device() -> None:
    s = Setup()
    assert s.driver.negotiate()
    s.driver.program(0, 8, 0xFFFF_FFFF_FFFF_F000, 0x2000, 0x3000)
    assert s.driver.read(0x70) & 64
    assert s.driver.read(0x44) == 0
    assert "descriptor table of 128 bytes at 0xfffffffffffff000 does not lie in RAM" in s.warnings
    s.driver.add_status(4)
    assert not s.mmio.active
    assert not s.line.level


def test_breaches_cannot_flood_the_event_stream() -> None:
    s = Setup()
    for index in range(10, 1000):
        s.driver.kick(index)
        s.driver.kick(index)
    assert len(s.events) == WARNINGS_KEPT + 1
    assert s.events[-1].text == "further breaches are not reported"


def test_state_survives_save_and_load() -> None:
    s = Setup()
    rx, _ = s.driver.probe(2)
    rx.add([b"ab"], [2])
    s.driver.kick(0)
    s.device.state = "kept"
    other = Setup(memory=s.memory)
    other.mmio.load(s.mmio.save())
    assert other.mmio.save() == s.mmio.save()
    assert other.device.state == "kept"
    assert other.line.level
    rx.take_all()
    rx.add([b"cd"], [2])
    other.driver.kick(0)
    used = rx.take()
    assert used is not None
    assert rx.written(used) == b"dc"
    broken = Setup(memory=GuestMemory(4096))
    with pytest.raises(QueueError):
        broken.mmio.load(s.mmio.save())


def test_device_must_offer_version_1() -> None:
    class Legacy(Reverser):
        features: ClassVar[int] = 0

    with pytest.raises(MachineError, match="VERSION_1"):
        VirtioMmio(Legacy(), GuestMemory(RAM), irq=RecordingLine(), publish=print)


REGISTERS = (0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4, 0xAC)
WRITES = st.tuples(
    st.one_of(st.sampled_from(REGISTERS), st.integers(0, 0xFFF)),
    st.sampled_from([4, 4, 4, 1, 2, 8]),
    st.one_of(st.sampled_from([0, 1, 2, 3, 4, 8, 11, 15, 0x1000, 0x2000, 0x3000]), st.integers(0, 2**64 - 1)),
)


@given(st.booleans(), st.lists(WRITES, max_size=40))
@settings(max_examples=150, deadline=None)
def test_no_access_raises(probed: bool, writes: list[tuple[int, int, int]]) -> None:
    s = Setup(memory=SHARED)
    if probed:
        s.driver.probe(2)
    for offset, size, value in writes:
        s.driver.write(offset, value, size)
        assert 0 <= s.driver.read(offset, size) < 1 << (8 * size)
        assert s.line.level == (s.driver.read(0x60) != 0)


SHARED = GuestMemory(RAM)
