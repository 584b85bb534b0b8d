"""The host side of the enclave's vsock: takes the guest's packets, finds or opens connections, queues answers.

Two threads meet here. The vCPU thread calls `from_guest`, `accepts_packets`, `next_for_guest` and
`guest_reset`; everything else belongs to the event loop. Packets cross in two queues that keep their order,
with one scheduled call on the loop however many packets wait; nothing polls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from enclavedbg.errors import VsockError
from enclavedbg.vsock.connection import Connection
from enclavedbg.vsock.contract import ConnectionInfo, HostSide, Timer
from enclavedbg.vsock.credit import ReceiveCredit
from enclavedbg.vsock.events import (
    HOST_CID,
    PARENT_CID,
    Change,
    Publish,
    Side,
    VsockConnection,
    VsockPacketEvent,
)
from enclavedbg.vsock.heartbeat import HEARTBEAT_PORT, HeartbeatService
from enclavedbg.vsock.inproc import VsockStream
from enclavedbg.vsock.outbox import Outbox
from enclavedbg.vsock.packet import Key, Op, Packet, SocketType
from enclavedbg.vsock.timer import GuestTimer

log = logging.getLogger(__name__)

FIRST_HOST_PORT = 1 << 30
LAST_HOST_PORT = (1 << 31) - 1
INBOUND_LIMIT = 256
"""Packets from the guest that may wait for the loop: with 64 KiB each, what bounds our memory."""
DRAIN_BATCH = 256

ParentService = Callable[[VsockStream], Awaitable[None]]
"""Serves one connection of the guest; the stream is closed when it returns."""


class Listener(Protocol):
    """Answers connections of the guest to ports that no service has."""

    def accept(self, port: int) -> HostSide:
        """The host side for a connection, or VsockError with the reason for the refusal."""
        ...

    async def close(self, *, grace: float) -> None:
        """Give everything back, within `grace` seconds for what still has bytes to deliver."""
        ...


@dataclass(slots=True)
class _Registration:
    service: ParentService
    name: str
    once: bool
    used: bool = False


@dataclass(frozen=True, slots=True)
class _Malformed:
    header: Packet
    why: str


@dataclass(slots=True)
class _Reset:
    """In the queue from the guest: the driver reset the device here, for the `epoch`th time."""

    why: str
    epoch: int
    taken: bool = False


class VsockSwitch:
    """Connects the guest's ports with parent services, Unix sockets and streams in this process.

    `guest_cid` is the enclave's CID; the parent answers as CID 3, and as 2, the host. `publish` takes events
    from both threads, `now_ns` gives the guest's time, in which time-outs count. The heartbeat service is
    registered from the start, as the guest may report as soon as it runs.
    """

    def __init__(
        self,
        guest_cid: int,
        loop: asyncio.AbstractEventLoop,
        *,
        publish: Publish,
        now_ns: Callable[[], int],
        connect_timeout: float = 2.0,
        close_timeout: float = 8.0,
        max_connections: int = 1024,
    ) -> None:
        if not 4 <= guest_cid <= 0xFFFF_FFFE:
            raise VsockError(f"CID {guest_cid} cannot be an enclave's, expected 4 to 4294967294")
        self.guest_cid = guest_cid
        self.on_pending: Callable[[], None] = _nothing
        self._loop = loop
        self._publish = publish
        self._now_ns = now_ns
        self._connect_timeout = connect_timeout
        self._close_timeout = close_timeout
        self._max_connections = max_connections
        self._connections: dict[Key, Connection] = {}
        self._services: dict[int, _Registration] = {}
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox = Outbox()
        self._inbound: deque[Packet | _Malformed | _Reset] = deque()
        self._last_reset: _Reset | None = None
        self._reset_lock = threading.Lock()
        self._drain_scheduled = False
        self._kick_when_drained = False
        self._next_port = FIRST_HOST_PORT
        self._closed = False
        self.register(HEARTBEAT_PORT, HeartbeatService(publish), name="heartbeat", once=True)

    # --- the vCPU thread

    def from_guest(self, packet: Packet) -> None:
        """Take a packet that the guest sent."""
        self._publish(VsockPacketEvent.of(packet, to_guest=False))
        self._enqueue(packet)

    def malformed(self, header: Packet, why: str) -> None:
        """Take the header of a packet whose payload could not be: its connection lost bytes and is reset."""
        self._enqueue(_Malformed(header, why))

    def accepts_packets(self) -> bool:
        """Whether `from_guest` may be called; when not, `on_pending` follows as soon as it may."""
        if len(self._inbound) < INBOUND_LIMIT:
            return True
        self._kick_when_drained = True
        return len(self._inbound) < INBOUND_LIMIT  # the loop may have drained it between the two lines

    @property
    def pending(self) -> bool:
        """Whether a packet waits for the guest."""
        return len(self._outbox) > 0

    def next_for_guest(self, limit: int) -> Packet | None:
        """The next packet, its payload cut to `limit` bytes (the rest follows), or None when none waits."""
        packet = self._outbox.pop(limit)
        if packet is not None:
            self._publish(VsockPacketEvent.of(packet, to_guest=True))
        return packet

    def guest_reset(self, why: str = "guest reset the device") -> None:
        """The device starts anew: whatever was open is no more, for the reason `why`."""
        epoch = self._outbox.reset()
        with self._reset_lock:
            last = self._last_reset
            if last is not None and not last.taken:
                # A driver that resets without end must not fill the queue: nothing came in between.
                last.epoch = epoch
                return
        reset = _Reset(why, epoch)
        self._enqueue(reset)
        self._last_reset = reset

    def _enqueue(self, item: Packet | _Malformed | _Reset) -> None:
        self._last_reset = None
        self._inbound.append(item)
        # The loop clears the flag before it looks at the queue, so an item is never left behind.
        if not self._drain_scheduled:
            self._drain_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                log.debug("the event loop is closed: a packet of the guest is dropped")

    # --- the loop: services and connections of ours

    def register(self, port: int, service: ParentService, *, name: str, once: bool = False) -> None:
        """Let `service` answer the guest's connections to `port` (u32); `once`: the first since the guest's reset.

        Raises VsockError when the port is taken.
        """
        if not 0 <= port <= 0xFFFF_FFFF:
            raise VsockError(f"port {port} is no vsock port, expected 0 to 4294967295")
        if port in self._services:
            raise VsockError(f"port {port} is served by {self._services[port].name} already; unregister that first")
        self._services[port] = _Registration(service, name, once)

    def unregister(self, port: int) -> None:
        """Let nothing answer `port` any more; connections go on."""
        self._services.pop(port, None)

    def services(self) -> dict[int, str]:
        """The parent services by port."""
        return {port: entry.name for port, entry in sorted(self._services.items())}

    def set_listener(self, listener: Listener) -> None:
        """Let `listener` answer ports without a service; `close` closes it too."""
        self._listener = listener

    async def connect(self, port: int, *, label: str = "enclavedbg") -> VsockStream:
        """Connect to a port of the guest; raises VsockError when it refuses or does not answer.

        `label` says who asks, for the events.
        """
        stream = VsockStream(label)
        connection = self.open_connection(port, stream)
        stream.attach(connection)
        try:
            await stream.wait_established()
        except asyncio.CancelledError:
            connection.reset(Side.PARENT, "gave up")
            raise
        return stream

    def open_connection(self, port: int, host: HostSide) -> Connection:
        """Ask the guest for a connection to `port`; `host` hears the outcome. Raises VsockError."""
        if not 0 <= port <= 0xFFFF_FFFF:
            raise VsockError(f"port {port} is no vsock port, expected 0 to 4294967295")
        if self._closed:
            raise VsockError(f"cannot connect to port {port}: the enclave's run is over")
        if len(self._connections) >= self._max_connections:
            raise VsockError(f"cannot connect to port {port}: all {self._max_connections} connections are in use")
        key = Key(PARENT_CID, self._allocate_port(port), port)
        connection = Connection(self, host, key=key, opened_by=Side.PARENT, now=self._now_ns())
        self._connections[key] = connection
        connection.request(connect_timeout=self._connect_timeout, close_timeout=self._close_timeout)
        return connection

    def connections(self) -> tuple[ConnectionInfo, ...]:
        """What is open now, oldest first."""
        now = self._now_ns()
        return tuple(connection.info(now) for connection in tuple(self._connections.values()))

    async def close(self, *, grace: float = 0.5) -> None:
        """End everything: connections, services, sockets. What the guest sent before is still delivered.

        A host program that does not read it within `grace` seconds loses it.
        """
        if self._closed:
            return
        while self._inbound:
            self._take(self._inbound.popleft())
        self._closed = True
        self.on_pending = _nothing
        for connection in tuple(self._connections.values()):
            connection.abandon(Change.CLOSED, Side.DEBUGGER, "the enclave's run is over")
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self._listener is not None:
                await self._listener.close(grace=grace)
            self._inbound.clear()

    # --- the loop: what the guest sent

    def _drain(self) -> None:
        self._drain_scheduled = False
        for _ in range(DRAIN_BATCH):
            if not self._inbound:
                break
            item = self._inbound.popleft()
            try:
                self._take(item)
            except Exception:
                # Nothing above would see it; one packet must not stop all that follow.
                log.exception("a packet of the guest could not be handled")
        if self._inbound and not self._drain_scheduled:
            self._drain_scheduled = True
            self._loop.call_soon(self._drain)
        if self._kick_when_drained and len(self._inbound) < INBOUND_LIMIT:
            self._kick_when_drained = False
            self.on_pending()

    def _take(self, item: Packet | _Malformed | _Reset) -> None:
        if self._closed:
            return
        match item:
            case Packet():
                self._packet(item)
            case _Malformed():
                connection = self._connections.get(item.header.key_from_guest)
                if connection is not None and item.header.src_cid == self.guest_cid:
                    connection.reset(Side.DEBUGGER, item.why)
            case _Reset():
                with self._reset_lock:
                    item.taken = True
                for connection in tuple(self._connections.values()):
                    connection.abandon(Change.RESET, Side.GUEST, item.why)
                for entry in self._services.values():
                    entry.used = False
                self._outbox.acknowledge_reset(item.epoch)

    def _packet(self, packet: Packet) -> None:
        if packet.src_cid != self.guest_cid:
            self._answer_with_reset(packet)
            return
        connection = self._connections.get(packet.key_from_guest)
        if packet.type != SocketType.STREAM:
            if connection is not None:
                connection.abandon(
                    Change.RESET, Side.DEBUGGER, f"the guest sent socket type {packet.type} on a stream (type 1)"
                )
            elif packet.op is Op.REQUEST:
                self._refused(packet, f"socket type {packet.type} is not offered, only stream (type 1)")
            self._answer_with_reset(packet)
        elif connection is None:
            if packet.op is Op.REQUEST:
                self._guest_connects(packet)
            else:
                self._answer_with_reset(packet)
        elif packet.op is Op.REQUEST:
            connection.reset(Side.DEBUGGER, "the guest sent a second REQUEST for it")
        else:
            connection.handle(packet)

    def _guest_connects(self, packet: Packet) -> None:
        key = packet.key_from_guest
        try:
            host, task = self._accept(key)
        except VsockError as error:
            self._refused(packet, str(error))
            self._answer_with_reset(packet)
            return
        connection = Connection(self, host, key=key, opened_by=Side.GUEST, now=self._now_ns())
        self._connections[key] = connection
        connection.accept_guest(packet, close_timeout=self._close_timeout)
        if task is not None:
            self._start(task, host)

    def _accept(self, key: Key) -> tuple[HostSide, _Registration | None]:
        if key.host_cid not in (PARENT_CID, HOST_CID):
            raise VsockError(f"nobody has CID {key.host_cid} here, the parent is CID {PARENT_CID}")
        if len(self._connections) >= self._max_connections:
            raise VsockError(f"all {self._max_connections} connections are in use")
        entry = self._services.get(key.host_port)
        if entry is not None and not (entry.once and entry.used):
            entry.used = True
            return VsockStream(entry.name), entry
        if self._listener is not None:
            return self._listener.accept(key.host_port), None
        if entry is not None:
            raise VsockError(f"{entry.name} takes one connection, and has had it")
        raise VsockError(f"no listener on port {key.host_port}: no parent service, and no socket directory given")

    def _start(self, entry: _Registration, host: HostSide) -> None:
        assert isinstance(host, VsockStream)
        task = self._loop.create_task(_serve(entry, host), name=f"vsock service {entry.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refused(self, packet: Packet, why: str) -> None:
        self._publish(
            VsockConnection(
                Change.REFUSED, packet.dst_cid, packet.dst_port, self.guest_cid, packet.src_port,
                Side.GUEST, Side.DEBUGGER, why,
            )
        )  # fmt: skip

    def _answer_with_reset(self, packet: Packet) -> None:
        if packet.op is not Op.RST:
            self.send(packet.reset_reply())

    def _allocate_port(self, guest_port: int) -> int:
        # At most max_connections keys are taken, so this ends.
        while True:
            port = self._next_port
            self._next_port = FIRST_HOST_PORT if port == LAST_HOST_PORT else port + 1
            if Key(PARENT_CID, port, guest_port) not in self._connections:
                return port

    # --- what connections need (connection.Carrier)

    def send(self, packet: Packet, credit: ReceiveCredit | None = None) -> None:
        if self._outbox.push(packet, credit):
            self.on_pending()

    def forget(self, connection: Connection) -> None:
        if self._connections.get(connection.key) is connection:
            del self._connections[connection.key]

    def drop_waiting(self, key: Key) -> bool:
        return self._outbox.drop(key)

    def publish(self, event: VsockConnection) -> object:
        return self._publish(event)

    def timer(self, seconds: float, callback: Callable[[], None]) -> Timer:
        return GuestTimer(self._loop, self._now_ns, seconds=seconds, callback=callback)


async def _serve(entry: _Registration, stream: VsockStream) -> None:
    """Run a service on one connection; its failure ends the connection, nothing else."""
    try:
        await entry.service(stream)
    except VsockError as error:
        log.debug("service %s: %s", entry.name, error)
    except Exception:
        log.exception("service %s failed", entry.name)
        stream.reset(f"service {entry.name} failed")
    finally:
        stream.close()


def _nothing() -> None:
    pass
