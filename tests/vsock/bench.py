"""A switch with a scripted guest: tests speak packets from the guest's side and look at what comes back.

Each scenario runs in an event loop of its own; afterwards no task, file descriptor or error log may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from enclavedbg.vsock.credit import U32
from enclavedbg.vsock.events import Change, VsockConnection, VsockEvent, VsockHeartbeat, VsockPacketEvent
from enclavedbg.vsock.packet import Op, Packet, Shutdown
from enclavedbg.vsock.switch import VsockSwitch

GUEST = 16
DEADLINE = 20.0


class GuestSocket:
    """One end of a connection in the guest, with Linux's bookkeeping of credit."""

    def __init__(self, guest: FakeGuest, *, port: int, peer_port: int, peer_cid: int, buf_alloc: int) -> None:
        self.guest = guest
        self.port = port
        self.peer_port = peer_port
        self.peer_cid = peer_cid
        self.buf_alloc = buf_alloc
        self.fwd_cnt = 0
        self.tx_cnt = 0
        self.peer_buf_alloc = 0
        self.peer_fwd_cnt = 0

    def send(self, op: Op, *, payload: bytes = b"", flags: int = 0) -> None:
        self.tx_cnt = (self.tx_cnt + len(payload)) & U32
        self.guest.send(
            Packet(
                GUEST,
                self.peer_cid,
                self.port,
                self.peer_port,
                op,
                flags=flags,
                buf_alloc=self.buf_alloc,
                fwd_cnt=self.fwd_cnt,
                payload=payload,
            )
        )

    @property
    def credit(self) -> int:
        """Bytes that the host lets this socket send."""
        return self.peer_buf_alloc - ((self.tx_cnt - self.peer_fwd_cnt) & U32)

    async def expect(self, op: Op) -> Packet:
        """The next packet for the guest; it must be of this connection and do `op`."""
        packet = await self.guest.take()
        assert (packet.src_cid, packet.src_port, packet.dst_cid, packet.dst_port) == (
            self.peer_cid,
            self.peer_port,
            GUEST,
            self.port,
        )
        assert packet.op is op, packet
        self.peer_buf_alloc, self.peer_fwd_cnt = packet.buf_alloc, packet.fwd_cnt
        return packet

    async def read(self, count: int) -> bytes:
        """`count` bytes, given credit for as they come."""
        data = bytearray()
        while len(data) < count:
            packet = await self.expect_skipping(Op.RW)
            data += packet.payload
            self.fwd_cnt = (self.fwd_cnt + len(packet.payload)) & U32
            self.send(Op.CREDIT_UPDATE)
        return bytes(data)

    async def expect_skipping(self, op: Op) -> Packet:
        """Like `expect`, past credit messages."""
        while True:
            packet = await self.guest.take()
            self.peer_buf_alloc, self.peer_fwd_cnt = packet.buf_alloc, packet.fwd_cnt
            if packet.op not in (Op.CREDIT_UPDATE, Op.CREDIT_REQUEST):
                assert packet.op is op, packet
                return packet


class FakeGuest:
    """The guest's driver on the other side of the switch: no rings, packets only."""

    def __init__(self, switch: VsockSwitch) -> None:
        self.switch = switch
        self.kicks = 0
        self._pending = asyncio.Event()
        switch.on_pending = self._kick

    def _kick(self) -> None:
        self.kicks += 1
        self._pending.set()

    def send(self, packet: Packet) -> None:
        self.switch.from_guest(packet)

    async def take(self, limit: int = 4096) -> Packet:
        """The next packet for the guest, as soon as there is one."""
        while True:
            self._pending.clear()
            packet = self.switch.next_for_guest(limit)
            if packet is not None:
                return packet
            await self._pending.wait()

    def take_now(self, limit: int = 4096) -> list[Packet]:
        """All that waits."""
        found = []
        while (packet := self.switch.next_for_guest(limit)) is not None:
            found.append(packet)
        return found

    async def connect(
        self, peer_port: int, *, port: int = 1024, peer_cid: int = 3, buf_alloc: int = 256 * 1024
    ) -> GuestSocket:
        """Connect to a port of the host, which must accept."""
        sock = GuestSocket(self, port=port, peer_port=peer_port, peer_cid=peer_cid, buf_alloc=buf_alloc)
        sock.send(Op.REQUEST)
        await sock.expect(Op.RESPONSE)
        return sock

    async def accept(self, port: int, *, buf_alloc: int = 256 * 1024) -> GuestSocket:
        """Take a connection from the host to `port`."""
        request = await self.take()
        assert request.op is Op.REQUEST and request.dst_port == port and request.dst_cid == GUEST
        sock = GuestSocket(self, port=port, peer_port=request.src_port, peer_cid=request.src_cid, buf_alloc=buf_alloc)
        sock.peer_buf_alloc, sock.peer_fwd_cnt = request.buf_alloc, request.fwd_cnt
        sock.send(Op.RESPONSE)
        return sock


class HandTimer:
    """A time-out that passes when the test says so."""

    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """What a scenario gets."""

    def __init__(self, **options: object) -> None:
        self.events: list[VsockEvent] = []
        self._happened = asyncio.Event()
        self.switch = VsockSwitch(
            GUEST,
            asyncio.get_running_loop(),
            publish=self._publish,
            now_ns=time.monotonic_ns,
            **options,  # type: ignore[arg-type]
        )
        self.guest = FakeGuest(self.switch)

    def _publish(self, event: VsockEvent) -> None:
        self.events.append(event)
        self._happened.set()

    def timers_by_hand(self) -> Callable[[], float]:
        """Take time-outs out of the clock's hands; the result lets the one that is set pass, and tells its length."""
        timers: list[HandTimer] = []

        def timer(seconds: float, callback: Callable[[], None]) -> HandTimer:
            timers.append(HandTimer(seconds, callback))
            return timers[-1]

        def let_pass() -> float:
            (due,) = [t for t in timers if not t.cancelled]
            timers.clear()
            due.callback()
            return due.seconds

        self.switch.timer = timer  # type: ignore[method-assign]
        return let_pass

    async def drained(self) -> None:
        """Everything that the guest sent has been handled."""
        while self.switch._inbound:
            await asyncio.sleep(0)

    async def until(self, predicate: Callable[[VsockEvent], bool]) -> VsockEvent:
        """The first event, past or to come, for which `predicate` holds."""
        seen = 0
        while True:
            self._happened.clear()
            for event in self.events[seen:]:
                if predicate(event):
                    return event
            seen = len(self.events)
            await self._happened.wait()

    async def changed(self, change: Change) -> VsockConnection:
        event = await self.until(lambda e: isinstance(e, VsockConnection) and e.change is change)
        assert isinstance(event, VsockConnection)
        return event

    def changes(self) -> list[VsockConnection]:
        return [e for e in self.events if isinstance(e, VsockConnection)]

    def heartbeats(self) -> list[VsockHeartbeat]:
        return [e for e in self.events if isinstance(e, VsockHeartbeat)]

    def packets(self) -> list[VsockPacketEvent]:
        return [e for e in self.events if isinstance(e, VsockPacketEvent)]


class ErrorLog(logging.Handler):
    """Keeps what is logged as an error: the loop's own callbacks have nobody else to tell."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def run(scenario: Callable[[Bench], Awaitable[None]], **options: object) -> None:
    """Run a scenario against a fresh switch, and check that it leaves nothing behind."""
    errors = ErrorLog()

    async def main() -> None:
        files = open_files()
        tasks = asyncio.all_tasks()
        bench = Bench(**options)
        try:
            await asyncio.wait_for(scenario(bench), DEADLINE)
        finally:
            await bench.switch.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks
        assert bench.switch.connections() == ()
        # Fewer may be open: what an earlier test dropped is closed whenever it is collected.
        assert open_files() <= files

    loggers = [logging.getLogger(name) for name in ("enclavedbg.vsock", "asyncio")]
    for logger in loggers:
        logger.addHandler(errors)
    try:
        asyncio.run(main())
    finally:
        for logger in loggers:
            logger.removeHandler(errors)
    assert errors.messages == []


def open_files() -> set[str]:
    """What the process's descriptors point to."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add(number + " " + os.readlink(f"/proc/self/fd/{number}"))
    return found


def from_guest(op: Op, *, host_port: int, guest_port: int = 1024, **fields: object) -> Packet:
    """A packet of the guest to the parent."""
    fields = {"buf_alloc": 256 * 1024, **fields}
    return replace(Packet(GUEST, 3, guest_port, host_port, op), **fields)  # type: ignore[arg-type]


__all__ = ["DEADLINE", "GUEST", "Bench", "FakeGuest", "GuestSocket", "Shutdown", "from_guest", "open_files", "run"]
