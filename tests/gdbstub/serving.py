"""A server with a fake machine, on an event loop in a thread: for real debuggers and plain sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from enclavedbg.gdbstub.framing import encode
from enclavedbg.gdbstub.monitor import MonitorCommand
from enclavedbg.gdbstub.server import GdbServer
from tests.gdbstub.fake import FakeMachine

_T = TypeVar("_T")


class Serving:
    """The server's machine and address."""

    def __init__(self, machine: FakeMachine, loop: asyncio.AbstractEventLoop, server: GdbServer) -> None:
        self.machine = machine
        self.loop = loop
        self.server = server
        self.host, self.port = server.address

    @contextmanager
    def client(self) -> Iterator[PlainClient]:
        """A connection of a client that speaks the protocol itself."""
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            yield PlainClient(connection)

    def on_loop(self, look: Callable[[], _T]) -> _T:
        """What a function says on the server's own thread."""

        async def call() -> _T:
            return look()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def settle(self) -> None:
        """Wait until the event loop has done what it had to do by now."""
        for _ in range(3):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.loop).result(10)


class PlainClient:
    """Just enough of a client to talk over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = b""

    def send(self, body: str | bytes) -> None:
        self.connection.sendall(encode(body if isinstance(body, bytes) else body.encode()))

    def answer(self) -> bytes:
        """The next packet's body; EOFError once the server has hung up."""
        while b"#" not in self._buffer[:-2]:
            more = self.connection.recv(1 << 16)
            if not more:
                raise EOFError
            self._buffer += more
        start, end = self._buffer.index(b"$"), self._buffer.index(b"#")
        body, self._buffer = self._buffer[start + 1 : end], self._buffer[end + 3 :]
        return body

    def ask(self, body: str | bytes) -> bytes:
        self.send(body)
        return self.answer()


@contextmanager
def serving(
    *,
    machine: FakeMachine | None = None,
    symbol_file: Callable[[], bytes] | None = None,
    kernel: bytes | None = None,
    commands: Iterable[MonitorCommand] = (),
    end_guest: Callable[[], object] | None = None,
) -> Iterator[Serving]:
    """A started server; closed at the end, with its loop and its machine's thread."""
    machine = machine or FakeMachine(threaded=True)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        server = GdbServer(
            machine,
            machine.events,
            symbol_file=symbol_file,
            kernel=kernel,
            commands=commands,
            end_guest=end_guest,
        )
        asyncio.run_coroutine_threadsafe(server.start("127.0.0.1", 0), loop).result(10)
        try:
            yield Serving(machine, loop, server)
        finally:
            asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
    finally:
        machine.interrupt()
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
