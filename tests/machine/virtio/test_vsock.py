"""The vsock device driven as Linux drives it: registers, rings, and a switch behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import VsockError
from enclavedbg.machine.events import Event, GuestWarning
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.virtio.mmio import VirtioMmio
from enclavedbg.machine.virtio.vsock import RX, TX, VirtioVsock
from enclavedbg.vsock.events import VsockConnection, VsockHeartbeat
from enclavedbg.vsock.inproc import VsockStream
from enclavedbg.vsock.packet import HEADER, HEADER_SIZE, MAX_PAYLOAD, Op, Packet, Shutdown
from enclavedbg.vsock.switch import INBOUND_LIMIT, VsockSwitch
from tests.machine.virtio.driver import GuestDriver, GuestQueue, RecordingLine

GUEST = 16
MODERN = (4096,)
OLD = (HEADER_SIZE, 4096)


class Machine:
    """The device with its driver; calls posted to the vCPU wait until the test lets it run."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.posted: list[Callable[[], None]] = []
        self._work = asyncio.Event()
        self.memory = GuestMemory(8 << 20)
        self.switch = VsockSwitch(
            GUEST, asyncio.get_running_loop(), publish=self.events.append, now_ns=time.monotonic_ns
        )
        self.line = RecordingLine()
        self.device = VirtioVsock(self.switch, post=self._post)
        self.transport = VirtioMmio(self.device, self.memory, irq=self.line, publish=self.events.append)
        self.driver = GuestDriver(self.memory, self.transport, span=0x20_0000)
        self.rx: GuestQueue
        self.tx: GuestQueue

    def _post(self, call: Callable[[], None]) -> None:
        self.posted.append(call)
        self._work.set()

    def probe(self, *, rx_buffers: int = 16, shape: tuple[int, ...] = MODERN) -> None:
        self.rx, self.tx, event = self.driver.probe(3)
        for _ in range(8):
            event.add(into=[4])
        self.driver.kick(2)
        self.offer(rx_buffers, shape=shape)

    def offer(self, count: int, *, shape: tuple[int, ...] = MODERN) -> None:
        """Give the device receive buffers."""
        for _ in range(count):
            self.rx.add(into=shape)
        self.driver.kick(RX)

    def send(self, packet: Packet, *, cuts: tuple[int, ...] = (HEADER_SIZE,)) -> None:
        """Send a packet in descriptors that end at `cuts`."""
        data = packet.encode()
        ends = [c for c in cuts if c < len(data)] + [len(data)]
        self.send_raw([data[a:b] for a, b in zip([0, *ends], ends, strict=False)])

    def send_raw(self, parts: list[bytes]) -> None:
        self.tx.add(out=parts)
        self.driver.kick(TX)

    def run_posted(self) -> None:
        self._work.clear()
        calls, self.posted = self.posted, []
        for call in calls:
            call()

    async def receive(self) -> Packet:
        """The next packet in the rx ring, running the vCPU's posted calls as they come."""
        while (used := self.rx.take()) is None:
            await self._work.wait()
            self.run_posted()
        return Packet.parse(self.rx.written(used))

    async def idle(self) -> None:
        """Let the loop handle all that the guest sent."""
        while self.switch._inbound or self.switch._drain_scheduled:
            await asyncio.sleep(0)

    def warnings(self) -> list[str]:
        return [e.text for e in self.events if isinstance(e, GuestWarning)]


def run(scenario: Callable[[Machine], Awaitable[None]]) -> None:
    async def main() -> None:
        machine = Machine()
        try:
            await asyncio.wait_for(scenario(machine), 20)
        finally:
            await machine.switch.close()

    asyncio.run(main())


async def echo(stream: VsockStream) -> None:
    while data := await stream.read():
        await stream.write(data)


def guest_packet(op: Op, *, host_port: int, payload: bytes = b"", flags: int = 0, fwd_cnt: int = 0) -> Packet:
    return Packet(GUEST, 3, 1024, host_port, op, 1, flags, 262144, fwd_cnt, payload)


def test_the_device_names_itself_and_the_guests_cid() -> None:
    async def scenario(machine: Machine) -> None:
        read = machine.driver.read
        assert read(0x08) == 19
        assert machine.driver.negotiate()
        assert machine.driver.features == 1 << 32, "streams only, and nothing optional of the rings"
        assert read(0x100) | read(0x104) << 32 == GUEST
        for queue, size in enumerate((128, 128, 8, 0)):
            machine.driver.write(0x30, queue)
            assert read(0x34) == size

    run(scenario)


@pytest.mark.parametrize("shape", [MODERN, OLD, (1, 43, 4096), (20, 20, 20, 20)])
@pytest.mark.parametrize("cuts", [(HEADER_SIZE,), (), (1, 2, 43), (40, 46, 47)])
def test_the_heartbeat_through_the_rings(shape: tuple[int, ...], cuts: tuple[int, ...]) -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe(shape=shape)
        machine.send(guest_packet(Op.REQUEST, host_port=9000), cuts=cuts)
        assert (await machine.receive()).op is Op.RESPONSE
        machine.send(guest_packet(Op.RW, host_port=9000, payload=b"\xb7"), cuts=cuts)
        answer = await machine.receive()
        assert (answer.op, answer.payload) == (Op.RW, b"\xb7")
        last = await machine.receive()
        assert (last.op, last.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
        machine.send(guest_packet(Op.RST, host_port=9000))
        await machine.idle()
        assert [u.length for u in machine.tx.take_all()] == [0, 0, 0]
        assert [e.ok for e in machine.events if isinstance(e, VsockHeartbeat)] == [True]
        assert machine.warnings() == []

    run(scenario)


def test_the_guest_is_interrupted_for_used_buffers_only() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe()
        assert not machine.line.level, "giving receive buffers is nothing to be told of"
        machine.send(guest_packet(Op.REQUEST, host_port=9000))
        assert machine.driver.interrupt() == 1
        assert not machine.line.level
        machine.driver.kick(TX)
        machine.driver.kick(RX)
        assert not machine.line.level
        await machine.receive()
        assert machine.driver.interrupt() == 1
        machine.run_posted()
        machine.device._look()
        assert not machine.line.level

    run(scenario)


def test_one_call_is_posted_however_many_packets_wait() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe()
        for port in range(10):
            machine.send(Packet(GUEST, 3, port, 7000, Op.RW, payload=b"x"))
        await machine.idle()
        assert len(machine.posted) == 1
        machine.run_posted()
        assert [Packet.parse(machine.rx.written(u)).dst_port for u in machine.rx.take_all()] == list(range(10))

    run(scenario)


def test_packets_wait_for_receive_buffers_and_none_is_lost() -> None:
    data = bytes(range(256)) * 200

    async def scenario(machine: Machine) -> None:
        machine.switch.register(7, echo, name="echo")
        machine.probe(rx_buffers=1)
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        assert (await machine.receive()).op is Op.RESPONSE
        machine.send(guest_packet(Op.RW, host_port=7, payload=data), cuts=(44, 5000, 9000))
        await machine.idle()
        machine.run_posted()
        assert machine.rx.take() is None
        back = b""
        while len(back) < len(data):
            machine.offer(1, shape=OLD if len(back) % 3 else (1000,))
            packet = await machine.receive()
            back += packet.payload
        assert back == data

    run(scenario)


def test_transmission_goes_on_while_nothing_is_received() -> None:
    """A driver may wait for tx before it gives rx buffers again: the device must not wait for rx."""

    async def scenario(machine: Machine) -> None:
        machine.probe(rx_buffers=0)
        for port in range(1000):
            machine.send(Packet(GUEST, 3, port, 7000, Op.REQUEST))
            await machine.idle()
            assert machine.tx.take() is not None
        machine.run_posted()
        machine.offer(100)
        machine.run_posted()
        resets = [Packet.parse(machine.rx.written(u)) for u in machine.rx.take_all()]
        assert [p.dst_port for p in resets] == list(range(100))

    run(scenario)


def test_a_guest_faster_than_the_loop_waits_in_its_own_ring() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe()
        await machine.idle()
        taken = 0
        for port in range(INBOUND_LIMIT + 50):
            machine.send(Packet(GUEST, 3, port, 7, Op.RST))
            taken += len(machine.tx.take_all())
        assert taken == INBOUND_LIMIT
        await machine.idle()
        machine.run_posted()
        assert len(machine.tx.take_all()) == 50
        await machine.idle()

    run(scenario)


def test_the_largest_packet_in_one_page_pieces() -> None:
    async def scenario(machine: Machine) -> None:
        got: list[bytes] = []

        async def sink(stream: VsockStream) -> None:
            got.append(await stream.read_exactly(MAX_PAYLOAD))

        machine.switch.register(7, sink, name="sink")
        machine.probe()
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        await machine.receive()
        payload = bytes(range(256)) * 256
        machine.send(guest_packet(Op.RW, host_port=7, payload=payload), cuts=tuple(range(44, 44 + MAX_PAYLOAD, 4096)))
        assert (await machine.receive()).op in (Op.CREDIT_UPDATE, Op.SHUTDOWN)
        assert got == [payload]

    run(scenario)


def test_the_host_connects_while_the_guest_idles() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe()
        connecting = asyncio.create_task(machine.switch.connect(5000))
        request = await machine.receive()
        assert (request.op, request.src_cid, request.dst_cid, request.dst_port) == (Op.REQUEST, 3, GUEST, 5000)
        machine.send(Packet(GUEST, 3, 5000, request.src_port, Op.RESPONSE, buf_alloc=1000))
        stream = await connecting
        machine.send(Packet(GUEST, 3, 5000, request.src_port, Op.RW, buf_alloc=1000, payload=b"hello"))
        assert await stream.read() == b"hello"

    run(scenario)


def test_packets_that_wait_before_the_driver_is_up_come_with_it() -> None:
    async def scenario(machine: Machine) -> None:
        assert machine.driver.negotiate()
        await machine.idle()
        connecting = asyncio.create_task(machine.switch.connect(5000))
        await asyncio.sleep(0)
        machine.run_posted()
        machine.rx, machine.tx = machine.driver.set_up_queue(RX), machine.driver.set_up_queue(TX)
        machine.driver.set_up_queue(2)
        machine.rx.add(into=MODERN)
        assert machine.driver.add_status(4) == 15
        assert (await machine.receive()).op is Op.REQUEST
        connecting.cancel()

    run(scenario)


def test_a_device_reset_ends_connections_and_forgets_packets() -> None:
    async def scenario(machine: Machine) -> None:
        machine.switch.register(7, echo, name="echo")
        machine.probe(rx_buffers=1)
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        await machine.receive()
        machine.send(guest_packet(Op.RW, host_port=7, payload=b"never answered"))
        await machine.idle()
        machine.driver.write(0x70, 0)
        machine.run_posted()
        await machine.idle()
        assert machine.switch.connections() == ()
        whys = [e.why for e in machine.events if isinstance(e, VsockConnection) and e.change.value == "reset"]
        assert whys == ["guest reset the device"]
        machine.probe()
        machine.run_posted()
        assert machine.rx.take() is None
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        assert (await machine.receive()).op is Op.RESPONSE

    run(scenario)


# --- hostile guests


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([bytes(10)], "10 bytes are too short for a packet header"),
        ([b"", bytes(43)], "43 bytes are too short"),
        ([HEADER.pack(GUEST, 3, 1024, 7, MAX_PAYLOAD + 1, 1, 5, 0, 0, 0) + bytes(70_000)], "at most 65536"),
        ([HEADER.pack(GUEST, 3, 1024, 7, 100, 1, 5, 0, 0, 0), bytes(99)], "only 99 follow"),
        ([HEADER.pack(GUEST, 3, 1024, 7, 0, 1, 0, 0, 0, 0)], "operation 0 is unknown"),
        ([HEADER.pack(GUEST, 3, 1024, 7, 5, 1, 6, 0, 0, 0), bytes(5)], "CREDIT_UPDATE announces 5 bytes"),
    ],
)
def test_a_malformed_packet_is_dropped_with_a_warning(parts: list[bytes], text: str) -> None:
    async def scenario(machine: Machine) -> None:
        machine.switch.register(7, echo, name="echo")
        machine.probe()
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        await machine.receive()
        machine.tx.take_all()
        machine.send_raw(parts)
        assert [u.length for u in machine.tx.take_all()] == [0]
        assert any(text in warning for warning in machine.warnings())
        await machine.idle()
        lost_payload = "65536" in text or "follow" in text or "CREDIT" in text
        assert len(machine.switch.connections()) == (0 if lost_payload else 1)
        assert machine.transport.active

    run(scenario)


def test_a_packet_in_writable_descriptors_is_empty() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe()
        machine.tx.add(into=[100])
        machine.driver.kick(TX)
        assert [u.length for u in machine.tx.take_all()] == [0]
        assert machine.warnings() == ["packet dropped: 0 bytes are too short for a packet header, expected 44"]

    run(scenario)


@pytest.mark.parametrize("shape", [(10,), (44,), (40, 4), ()])
def test_a_receive_buffer_too_small_is_given_back_empty(shape: tuple[int, ...]) -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe(rx_buffers=0)
        if shape:
            machine.rx.add(into=shape)
        else:
            machine.rx.add(out=[bytes(100)])
        machine.offer(1)
        machine.send(guest_packet(Op.REQUEST, host_port=9000))
        await machine.idle()
        machine.run_posted()
        small, good = machine.rx.take_all()
        assert small.length == 0
        assert Packet.parse(machine.rx.written(good)).op is Op.RESPONSE
        assert machine.warnings() == [f"receive buffer of {sum(shape)} bytes, expected at least 45"]

    run(scenario)


def test_a_buffer_outside_memory_breaks_the_device_not_the_machine() -> None:
    async def scenario(machine: Machine) -> None:
        machine.switch.register(7, echo, name="echo")
        machine.probe()
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        await machine.receive()
        machine.driver.interrupt()
        machine.tx.descriptor(5, 0xD000_0000, 44)
        machine.tx.offer(5)
        machine.driver.kick(TX)
        assert not machine.transport.active
        assert machine.driver.interrupt() & 2
        await machine.idle()
        assert machine.switch.connections() == ()
        whys = [e.why for e in machine.events if isinstance(e, VsockConnection) and e.change.value == "reset"]
        assert whys == ["the guest broke its vsock device"]
        with pytest.raises(VsockError):
            async with asyncio.timeout(5):
                connecting = asyncio.create_task(machine.switch.connect(5000))
                await asyncio.sleep(0)
                machine.run_posted()
                machine.driver.write(0x70, 0)
                await connecting
        machine.probe()
        machine.send(guest_packet(Op.REQUEST, host_port=7))
        assert (await machine.receive()).op is Op.RESPONSE

    run(scenario)


def test_a_bad_receive_ring_found_by_a_posted_call_breaks_the_device() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe(rx_buffers=0)
        machine.send(guest_packet(Op.REQUEST, host_port=9000))
        machine.rx.offer(1000)
        await machine.idle()
        machine.run_posted()
        assert not machine.transport.active
        assert "descriptor 1000 named" in machine.warnings()[0]

    run(scenario)


def test_a_connection_dropped_while_the_device_looks_costs_no_buffer() -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe(rx_buffers=2)
        switch = machine.switch
        machine.send(guest_packet(Op.REQUEST, host_port=9000))
        await machine.idle()
        # The loop's thread drops the packet between the device's two looks.
        real, calls = switch.next_for_guest, []

        def empty(limit: int) -> Packet | None:
            calls.append(limit)
            return None

        switch.next_for_guest = empty  # type: ignore[method-assign]
        machine.run_posted()
        assert calls == [4096 - HEADER_SIZE]
        switch.next_for_guest = real  # type: ignore[method-assign]
        machine.driver.kick(RX)
        assert Packet.parse(machine.rx.written(machine.rx.take_all()[0])).op is Op.RESPONSE

    run(scenario)


descriptors = st.tuples(
    st.integers(0, 127),
    st.sampled_from([0x10_0000, 0x50_0000, 0x7F_FFF0, 0xD000_0000, (1 << 64) - 8]),
    st.sampled_from([0, 1, 44, 100, 70_000, 0xFFFF_FFFF]),
    st.integers(0, 7),
    st.one_of(st.integers(0, 127), st.just(60_000)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([RX, TX]), st.lists(descriptors, max_size=4)), max_size=10), st.binary())
def test_no_ring_content_breaks_more_than_the_device(
    script: list[tuple[int, list[tuple[int, int, int, int, int]]]], noise: bytes
) -> None:
    async def scenario(machine: Machine) -> None:
        machine.probe(rx_buffers=2)
        machine.memory.write(0x50_0000, noise)
        for which, found in script:
            queue = (machine.rx, machine.tx)[which]
            for index, gpa, length, flags, following in found:
                queue.descriptor(index, gpa, length, flags, following)
                queue.offer(index)
            machine.driver.kick(which)
            machine.send(guest_packet(Op.RW, host_port=7, payload=b"x"))
            await machine.idle()
            machine.run_posted()
        machine.probe()
        machine.send(guest_packet(Op.REQUEST, host_port=9000))
        assert (await machine.receive()).op is Op.RESPONSE

    run(scenario)
