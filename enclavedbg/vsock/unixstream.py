"""One program's Unix socket as the host side of a connection.

The socket is non-blocking and driven by the loop's readers and writers, not by an asyncio transport: the guest's
credit must grow by each byte that the kernel took, and a transport tells only when its whole buffer is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable

from enclavedbg.vsock.connection import Connection
from enclavedbg.vsock.contract import Ending
from enclavedbg.vsock.events import Side, count_bytes
from enclavedbg.vsock.packet import MAX_PAYLOAD


class UnixStream:
    """One connected Unix socket as the host side of a connection. `gone` is called once its socket is closed."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        label: str,
        loop: asyncio.AbstractEventLoop,
        gone: Callable[[UnixStream], None],
        greet: bool = False,
        early: bytes = b"",
    ) -> None:
        self.label = label
        self._sock = sock
        self._loop = loop
        self._gone = gone
        self._greet = greet
        self._early = early
        """Bytes for the guest that were read together with the command."""
        self._connection: Connection | None = None
        self._buffer = bytearray()
        self._writing = False
        self._reading = False
        self._guest_finished = False
        self._deaf = False
        """The program reads no more."""
        self._closed = False

    @property
    def undelivered(self) -> int:
        """Bytes that the program has not taken."""
        return len(self._buffer)

    # --- connection.HostSide

    def established(self, connection: Connection) -> None:
        self._connection = connection
        if self._greet:
            # The first bytes on a fresh socket always fit; a program that is gone shows when it is read.
            with contextlib.suppress(OSError):
                self._sock.send(f"OK {connection.key.host_port}\n".encode())
        self._pump()

    def deliver(self, payload: bytes) -> None:
        if self._deaf or self._closed:
            self._consumed(len(payload))
            return
        self._buffer += payload
        if not self._writing:
            self._flush()

    def window_open(self) -> None:
        self._pump()

    def guest_finished(self) -> None:
        self._guest_finished = True
        self._finish_if_flushed()

    def guest_deaf(self) -> None:
        self._stop_reading()
        self._early = b""
        # The program learns by EPIPE, as it would on a vsock of its own.
        self._shutdown(socket.SHUT_RD)

    def ended(self, ending: Ending) -> None:
        self._connection = None
        self._stop_reading()
        if not self._buffer:
            self.close()

    def close(self) -> None:
        """Close the socket now."""
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        if self._writing:
            self._loop.remove_writer(self._sock)
        self._sock.close()
        self._gone(self)

    # --- the program to the guest

    def _pump(self) -> None:
        """Send what was read early, then read as long as the guest gives credit."""
        connection = self._connection
        if connection is None or self._closed:
            return
        while self._early and (window := connection.window):
            connection.send(self._early[:window])
            self._early = self._early[window:]
        if self._early:
            connection.want_window()
        elif not self._reading:
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        connection = self._connection
        if connection is None:
            self._stop_reading()
            return
        window = connection.window
        if window == 0:
            # Unread bytes stay in the socket: that is what makes the program wait.
            self._stop_reading()
            connection.want_window()
            return
        try:
            data = self._sock.recv(min(window, MAX_PAYLOAD))
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionResetError:
            self._stop_reading()
            connection.close("the program at this socket closed it without reading everything")
            return
        except OSError as error:
            self._stop_reading()
            self._lose_buffer()
            connection.reset(Side.PARENT, f"its socket failed: {error.strerror}")
            return
        if data:
            connection.send(data)
            return
        self._stop_reading()
        if self._hung_up() and not self._guest_finished:
            connection.close("parent closed")
        else:
            connection.finish()

    def _hung_up(self) -> bool:
        """Whether the program closed its socket, rather than only its sending half."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    # --- the guest to the program

    def _flush(self) -> None:
        taken = 0
        try:
            while self._buffer:
                with memoryview(self._buffer) as view:
                    count = self._sock.send(view[: 4 * MAX_PAYLOAD])
                del self._buffer[:count]
                taken += count
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock, self._flush)
        except OSError as error:
            self._program_deaf(taken, error)
            return
        if not self._buffer and self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)
        self._finish_if_flushed()
        self._consumed(taken)

    def _program_deaf(self, taken: int, error: OSError) -> None:
        self._deaf = True
        lost = self._lose_buffer()
        connection = self._connection
        if connection is None:
            self.close()
            return
        # Credit for the lost bytes too: the guest must not hang on a reader that will never come.
        connection.consumed(taken)
        why = "parent closed" if isinstance(error, BrokenPipeError | ConnectionResetError) else f"{error.strerror}"
        connection.stop_receiving(f"{why}; {count_bytes(lost)} from the guest were not taken")
        connection.consumed(lost)

    def _lose_buffer(self) -> int:
        lost = len(self._buffer)
        self._buffer.clear()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)
        return lost

    def _finish_if_flushed(self) -> None:
        if self._buffer:
            return
        if self._connection is None:
            self.close()
        elif self._guest_finished:
            self._shutdown(socket.SHUT_WR)

    def _consumed(self, count: int) -> None:
        if self._connection is not None and count:
            self._connection.consumed(count)

    def _shutdown(self, how: int) -> None:
        if not self._closed:
            with contextlib.suppress(OSError):  # the program may be gone already
                self._sock.shutdown(how)
