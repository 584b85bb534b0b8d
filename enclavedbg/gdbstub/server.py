"""The listening side: connections on an event loop, one controlling client at a time, stops from the vCPU thread."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import cast

from enclavedbg.errors import EnclaveDbgError, MachineError, SymbolError
from enclavedbg.gdbstub.client import Services
from enclavedbg.gdbstub.early import LinkMap
from enclavedbg.gdbstub.framing import Decoder, Packet, encode
from enclavedbg.gdbstub.monitor import MonitorCommand, MonitorTable
from enclavedbg.gdbstub.session import Session
from enclavedbg.gdbstub.target import DebugTarget, Events, Verdict
from enclavedbg.machine.events import Event, Record

log = logging.getLogger(__name__)

_REFUSAL_SECONDS = 5.0
_MAX_CONNECTIONS = 16


class GdbServer:
    """Serves GDB and LLDB for one machine.

    `symbol_file` makes the ELF file that clients get without asking their user for one; it runs in a worker
    thread, once, when the first client comes or `prepare` is called, and raises SymbolError when the kernel has
    no symbols. `kernel` is the kernel's own ELF file: with it, kernel addresses can be read before the kernel
    has mapped them. `end_guest` ends the run when a client kills; without it, kill is refused.

    A client that vanishes leaves the machine stopped, without its breakpoints, so that another can look.
    """

    def __init__(
        self,
        target: DebugTarget,
        events: Events,
        *,
        symbol_file: Callable[[], bytes] | None = None,
        kernel: bytes | memoryview | None = None,
        commands: Iterable[MonitorCommand] = (),
        end_guest: Callable[[], object] | None = None,
    ) -> None:
        self._target = target
        self._events = events
        self._symbol_file = symbol_file
        self._services = Services(
            target,
            MonitorTable(target, commands),
            symbols=self._symbols if symbol_file is not None else None,
            end_guest=end_guest,
            link_map=LinkMap.from_elf(kernel) if kernel is not None else None,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: asyncio.Server | None = None
        self._symbols_ready: asyncio.Future[bytes] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._connections: set[_Connection] = set()
        self._controller: _Connection | None = None
        self._numbers = itertools.count(1)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen, and return address and port as they really are (`port` 0 takes a free one).

        Raises MachineError when the port is taken or the address is not this host's.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._listener = await self._loop.create_server(lambda: _Connection(self), host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise MachineError(
                    f"port {port} on {host} is in use by another program; choose another with --gdb {host}:PORT"
                ) from None
            reason = error.strerror or str(error)
            raise MachineError(f"cannot serve gdb on {host}:{port}: {reason}; choose another with --gdb") from None
        self._unsubscribe = self._events.subscribe(self._hear)
        return self.address

    async def close(self) -> None:
        """Stop listening, drop every client, remove their breakpoints. The machine is left as it is."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._connections):
            self._release(connection, vanished=False)
            connection.drop()
        if self._listener is not None:
            await self._listener.wait_closed()
            self._listener = None

    @property
    def address(self) -> tuple[str, int]:
        """Where the server listens."""
        assert self._listener is not None, "the server has not been started"
        host, port = self._listener.sockets[0].getsockname()[:2]
        return host, port

    @property
    def attached(self) -> bool:
        """Whether a client controls the machine."""
        return self._controller is not None

    def prepare(self) -> None:
        """Begin to make the symbol file now, not when the first client comes."""
        if self._symbols_ready is None and self._symbol_file is not None:
            assert self._loop is not None, "the server has not been started"
            self._symbols_ready = asyncio.ensure_future(self._make_symbols(self._symbol_file))

    async def _make_symbols(self, make: Callable[[], bytes]) -> bytes:
        assert self._loop is not None
        try:
            return await self._loop.run_in_executor(None, make)
        except SymbolError as error:
            log.warning("no symbols for gdb: %s", error)
            raise

    def _symbols(self) -> Awaitable[bytes]:
        self.prepare()
        assert self._symbols_ready is not None
        # A client that goes away while it waits must not stop the work for the next one.
        return asyncio.shield(self._symbols_ready)

    def _hear(self, record: Record) -> None:
        """On the publishing thread: bring what concerns clients to the event loop."""
        if record.event.kind in ("stop", "verdict") and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._notice, record.event)
            except RuntimeError:
                log.debug("the event loop is closed; %s is not told to clients", record.event.kind)

    def _notice(self, event: Event) -> None:
        session = self._controller.session if self._controller is not None else None
        if session is None:
            return
        if event.kind == "verdict":
            session.machine_ended(cast(Verdict, event))
        else:
            session.machine_stopped()

    def _connected(self, connection: _Connection) -> bool:
        self._connections.add(connection)
        return len(self._connections) <= _MAX_CONNECTIONS

    def _claim(self, connection: _Connection) -> Session | None:
        """Give the connection control of the machine, unless another one has it."""
        if self._controller is not None:
            log.warning("a second client, %s, was refused: %s is attached", connection.peer, self._controller.peer)
            return None
        self._controller = connection
        log.info("%s is attached", connection.peer)
        if self._services.symbols is not None:
            self.prepare()
        owner = f"gdb {next(self._numbers)}"
        self._target.hold(owner)
        return Session(self._services, owner=owner, write=connection.write, hang_up=connection.hang_up)

    def _release(self, connection: _Connection, *, vanished: bool) -> None:
        """Take control back. A client that did not say goodbye leaves a stopped machine behind."""
        if self._controller is not connection or connection.session is None:
            return
        self._controller = None
        session = connection.session
        session.close()
        if vanished and self._target.running:
            log.warning("the client %s vanished; the guest is stopped, attach again or continue it", connection.peer)
            self._target.interrupt()
        self._target.clear_owner(session.client.owner)

    def _disconnected(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._release(connection, vanished=self._unsubscribe is not None)

    @property
    def _busy_message(self) -> str:
        peer = self._controller.peer if self._controller is not None else "nobody"
        return f"another debugger ({peer}) is attached to this machine; detach it first"


class _Connection(asyncio.Protocol):
    """One TCP connection; it asks for control of the machine when its first bytes come."""

    def __init__(self, server: GdbServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._refusal: Decoder | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.session: Session | None = None
        self.peer = "nobody"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if (raw := transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        host, port = (transport.get_extra_info("peername") or ("?", 0))[:2]
        self.peer = f"{host}:{port}"
        if not self._server._connected(self):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.session is None and self._refusal is None:
            self.session = self._server._claim(self)
            if self.session is None:
                self._refusal = Decoder()
                self._timer = asyncio.get_running_loop().call_later(_REFUSAL_SECONDS, self.drop)
        if self.session is not None:
            self.session.feed(data)
        elif self._refusal is not None:
            self._refuse(self._refusal, data)

    def _refuse(self, decoder: Decoder, data: bytes) -> None:
        """Answer every packet with the reason. GDB shows it when `vMustReplyEmpty` gets it, and gives up."""
        for frame in decoder.feed(data):
            if isinstance(frame, Packet):
                self.write(b"+" + encode(f"E.{self._server._busy_message}".encode()))
                if frame.body.startswith(b"vMustReplyEmpty"):
                    self.hang_up()

    def pause_writing(self) -> None:
        if self.session is not None and self._transport is not None:
            self.session.paused = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.session is not None and self._transport is not None:
            self.session.paused = False
            self._transport.resume_reading()
            self.session.drain()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._server._disconnected(self)
        except EnclaveDbgError as error:
            log.warning("after the end of %s: %s", self.peer, error)

    def write(self, data: bytes) -> None:
        """Send to the client."""
        if self._transport is not None:
            self._transport.write(data)

    def hang_up(self) -> None:
        """End the connection after what was sent, and give control back at once."""
        self._server._release(self, vanished=False)
        if self._transport is not None:
            self._transport.close()

    def drop(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()
