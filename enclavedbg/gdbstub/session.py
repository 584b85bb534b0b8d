"""One client's session: bytes in, handlers between, bytes out; and the wait for the machine's next stop.

No sockets and no threads here: the server feeds bytes and events, on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from enclavedbg.errors import EnclaveDbgError, MachineError
from enclavedbg.gdbstub import data, files, packets, queries, running
from enclavedbg.gdbstub.client import Client, Deferred, Dialect, Feature, Reply, Services, merge
from enclavedbg.gdbstub.framing import PACKET_SIZE, BadPacket, Decoder, Packet, Signal, encode
from enclavedbg.gdbstub.packets import Request
from enclavedbg.gdbstub.parser import parse
from enclavedbg.gdbstub.target import Verdict

log = logging.getLogger(__name__)
wire = logging.getLogger("enclavedbg.gdbstub.packets")

HANDLERS = merge(queries.TABLE, data.TABLE, running.TABLE, files.TABLE)
FEATURES: list[Feature] = [
    Feature(f"PacketSize={PACKET_SIZE:x}"),
    *(feature for handler in HANDLERS.values() for feature in handler.features),
]

_MAX_WAITING = 256
"""Packets that may wait while the machine runs; a client sends one, and GDB none."""

_SHOWN = 160


class State(Enum):
    """What the session is doing with the packets that come."""

    READY = auto()
    RUNNING = auto()
    """The client waits for a stop; only an interrupt is heard."""
    STOPPING = auto()
    """The machine ran when the client came; packets wait until it stands still."""
    BUSY = auto()
    """An answer is being made elsewhere."""
    CLOSED = auto()


class Session:
    """The protocol with one client. `write` sends bytes, `hang_up` ends the connection after what was sent."""

    def __init__(
        self, services: Services, *, owner: str, write: Callable[[bytes], None], hang_up: Callable[[], None]
    ) -> None:
        self.client = Client(services, owner, self._console)
        self.state = State.READY
        self.paused = False
        """Set while the client does not take what was sent: no packet is answered until it does."""
        self._write = write
        self._hang_up = hang_up
        self._decoder = Decoder()
        self._waiting: deque[bytes] = deque()
        self._last_reply = b""
        self._attached = False
        self._task: asyncio.Future[bytes] | None = None

    def feed(self, received: bytes) -> None:
        """Take bytes from the client, in pieces of any size."""
        for frame in self._decoder.feed(received):
            if self.state is State.CLOSED:
                return
            match frame:
                case Packet(body):
                    self._acknowledge(b"+")
                    self._waiting.append(body)
                    # At once, not after the rest: an interrupt that follows must find the machine resumed.
                    self.drain()
                case BadPacket(reason):
                    log.info("a client sent %s", reason)
                    self._acknowledge(b"-")
                case Signal.NAK:
                    if self.client.acknowledge and self._last_reply and not self.paused:
                        self._write(self._last_reply)
                case Signal.ACK:
                    self._last_reply = b""
                case Signal.INTERRUPT:
                    self._interrupt()
        if len(self._waiting) > _MAX_WAITING:
            log.warning("a client sent %d packets without waiting for an answer; disconnected", len(self._waiting))
            self._end()

    def drain(self) -> None:
        """Answer what waits, as far as state and connection allow."""
        while self._waiting and self.state is State.READY and not self.paused:
            body = self._waiting.popleft()
            if wire.isEnabledFor(logging.DEBUG):
                wire.debug("-> %r", body[:_SHOWN])
            self._answer(body)

    def machine_stopped(self) -> None:
        """The machine published a stop. One that is over already is no news."""
        if self.client.target.running:
            return
        match self.state:
            case State.RUNNING:
                self._report_stop()
            case State.STOPPING:
                self.state = State.READY
        self.drain()

    def machine_ended(self, verdict: Verdict) -> None:
        """The machine published its verdict: it was let go, or ended from outside, and is not there for a look."""
        self.client.verdict = verdict
        match self.state:
            case State.RUNNING:
                self._finish(verdict)
            case State.STOPPING:
                self.state = State.READY
        self.drain()

    def close(self) -> None:
        """Forget the client: nothing is sent or called any more. Its breakpoints are the server's to remove."""
        self.state = State.CLOSED
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def _acknowledge(self, sign: bytes) -> None:
        if self.client.acknowledge:
            self._write(sign)

    def _interrupt(self) -> None:
        if self.state in (State.RUNNING, State.STOPPING):
            self.client.target.interrupt()

    def _answer(self, body: bytes) -> None:
        try:
            request = parse(body)
            self._note_dialect(request)
            if not self._reach(request):
                self._waiting.appendleft(body)
                return
            self._give(self._handle(request), request)
        except Exception as error:
            self._reply(self._failed(error, repr(body[:_SHOWN])))

    def _note_dialect(self, request: Request) -> None:
        client = self.client
        match request:
            case packets.QuerySupported(features):
                client.offered = frozenset(features)
                if client.dialect is Dialect.OTHER and "swbreak+" in features:
                    client.dialect = Dialect.GDB
            case packets.StartNoAck() if client.dialect is Dialect.OTHER and not client.offered:
                client.dialect = Dialect.LLDB
            case packets.ThreadSuffix():
                client.dialect = Dialect.LLDB

    def _reach(self, request: Request) -> bool:
        """Whether the request can be handled now. The first that needs a stopped machine stops it; later on the
        client believes it stopped, and is told by an error if someone else has resumed it.
        """
        handler = HANDLERS.get(type(request))
        if handler is None or not handler.stopped or self._attached:
            return True
        self._attached = True
        if not self.client.target.running:
            return True
        self.state = State.STOPPING
        self.client.target.interrupt()
        return False

    def _handle(self, request: Request) -> Reply:
        if isinstance(request, packets.QuerySupported):
            return queries.supported(self.client, FEATURES)
        handler = HANDLERS.get(type(request))
        return handler.run(self.client, request) if handler is not None else b""

    def _give(self, reply: Reply, request: Request) -> None:
        match reply:
            case bytes():
                self._reply(reply, run_length=isinstance(request, packets.ReadRegisters))
                if isinstance(request, packets.StartNoAck):
                    self.client.acknowledge = False
            case Deferred.RUN | Deferred.STEP:
                self._run(step=reply is Deferred.STEP)
            case Deferred.GOODBYE:
                self._reply(b"OK")
                self._end()
            case Deferred.SILENCE:
                self._end()
            case _:
                self.state = State.BUSY
                self._task = asyncio.ensure_future(reply)
                self._task.add_done_callback(self._finish_later)

    def _finish_later(self, task: asyncio.Future[bytes]) -> None:
        if self.state is State.CLOSED or task.cancelled():
            return
        try:
            body = task.result()
        except Exception as error:
            body = self._failed(error, "a packet that took longer")
        self._task = None
        self.state = State.READY
        self._reply(body)
        self.drain()

    def _failed(self, error: Exception, what: object) -> bytes:
        """The error reply. This is the outermost place: whatever goes wrong, machine and session live on."""
        if isinstance(error, EnclaveDbgError):
            log.info("refused %s: %s", what, error)
            return self.client.error(error)
        log.error("no answer to %s", what, exc_info=error)
        return self.client.error(MachineError("internal error; the log of enclavedbg has the details"))

    def _run(self, *, step: bool) -> None:
        target = self.client.target
        verdict = running.verdict_of(self.client)
        if verdict is not None and self.client.told_verdict:
            running.let_go(self.client)
            self._finish(verdict)
            return
        self.state = State.RUNNING
        if target.running:
            return  # someone else let it go on: the next stop is the answer
        try:
            target.step() if step else target.resume()
        except EnclaveDbgError:
            self.state = State.READY
            if verdict is None:
                raise
            self._finish(verdict)

    def _report_stop(self) -> None:
        """The guest's end is a stop first, with the reason as text, so that it can be looked at."""
        self.state = State.READY
        if (verdict := running.verdict_of(self.client)) is not None:
            self._tell(verdict)
        elif (caught := self.client.target.caught) is not None:
            # The protocol has no word for it: to GDB it is a SIGTRAP.
            self._console(f"enclavedbg: {caught.words}\n")
        self._reply(running.stop_reply(self.client))

    def _finish(self, verdict: Verdict) -> None:
        self.state = State.READY
        self._tell(verdict)
        self._reply(running.exit_reply(self.client, verdict))

    def _tell(self, verdict: Verdict) -> None:
        if not self.client.told_verdict:
            self.client.told_verdict = True
            self._console(f"enclavedbg: {verdict.line}\n")

    def _console(self, text: str) -> None:
        raw = text.encode("utf-8", "replace")
        for start in range(0, len(raw), PACKET_SIZE // 4):
            self._send(b"O" + raw[start : start + PACKET_SIZE // 4].hex().encode())

    def _reply(self, body: bytes, *, run_length: bool = False) -> None:
        if self.state is not State.CLOSED:
            self._send(body, run_length=run_length)

    def _send(self, body: bytes, *, run_length: bool = False) -> None:
        if wire.isEnabledFor(logging.DEBUG):
            wire.debug("<- %r", body[:_SHOWN])
        self._last_reply = encode(body, run_length=run_length)
        self._write(self._last_reply)

    def _end(self) -> None:
        self.close()
        self._hang_up()
