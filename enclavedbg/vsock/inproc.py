"""A vsock stream whose host side lives in this process: for the shell, the demo, parent services and tests."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from enclavedbg.errors import VsockError
from enclavedbg.vsock.connection import Connection
from enclavedbg.vsock.contract import Ending
from enclavedbg.vsock.credit import BUFFER_SIZE
from enclavedbg.vsock.events import Side
from enclavedbg.vsock.packet import MAX_PAYLOAD


class VsockStream:
    """Both directions of one connection to the guest, for tasks on the switch's loop.

        async with await switch.connect(5000) as stream:
            await stream.write(b"hello")
            stream.finish()
            answer = await stream.read_all()

    One task may read while another writes. Bytes count as taken, and the guest gets credit for them, when
    `read` returns them: a reader that pauses makes the guest wait.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._connection: Connection | None = None
        self._buffer = bytearray()
        self._established = False
        self._eof = False
        self._deaf = False
        self._ending: Ending | None = None
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()

    @property
    def host_port(self) -> int:
        """Our port, u32."""
        return self._live().key.host_port

    @property
    def guest_port(self) -> int:
        """The guest's port, u32."""
        return self._live().key.guest_port

    @property
    def ending(self) -> Ending | None:
        """How the connection ended, or None while it lives."""
        return self._ending

    async def read(self, limit: int = MAX_PAYLOAD) -> bytes:
        """Up to `limit` bytes as soon as there are any; b"" once the guest sends no more.

        Raises VsockError when the connection was reset, after all that came before was read.
        """
        if limit <= 0:
            return b""
        while not self._buffer:
            if self._ending is not None and not self._ending.clean and not self._eof:
                raise VsockError(self._end_text("read"))
            if self._eof or self._ending is not None:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(memoryview(self._buffer)[:limit])
        del self._buffer[:limit]
        self._live().consumed(len(data))
        return data

    async def read_exactly(self, count: int) -> bytes:
        """`count` bytes; raises VsockError when the guest ends before."""
        parts = bytearray()
        while len(parts) < count:
            part = await self.read(count - len(parts))
            if not part:
                raise VsockError(f"{self.label}: the guest ended after {len(parts)} of {count} bytes")
            parts += part
        return bytes(parts)

    async def read_all(self, *, limit: int = 1 << 20) -> bytes:
        """All until the guest sends no more; raises VsockError when that is over `limit` bytes."""
        parts = bytearray()
        while part := await self.read():
            parts += part
            if len(parts) > limit:
                raise VsockError(f"{self.label}: the guest sent more than {limit} bytes")
        return bytes(parts)

    async def write(self, data: bytes) -> None:
        """Send all of `data`; waits while the guest gives no credit. Raises VsockError when it can arrive no more."""
        rest = memoryview(data)
        while rest:
            if self._ending is not None or self._deaf:
                raise VsockError(self._end_text("write"))
            connection = self._live()
            count = min(connection.window, len(rest), MAX_PAYLOAD)
            if count:
                connection.send(bytes(rest[:count]))
                rest = rest[count:]
                continue
            self._writable.clear()
            connection.want_window()
            await self._writable.wait()

    def finish(self) -> None:
        """Send no more; the guest reads an end of file. Reading goes on."""
        if self._connection is not None:
            self._connection.finish()
            self._stop_writing()

    def close(self) -> None:
        """End in good order: what was written still reaches the guest, what was not read is dropped."""
        if self._connection is not None:
            self._connection.close()
            self._stop_writing()

    def reset(self, why: str) -> None:
        """End at once with RST."""
        if self._connection is not None:
            self._connection.reset(Side.PARENT, why)

    async def wait_closed(self) -> None:
        """Wait until the connection is over on both sides."""
        while self._ending is None:
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the switch's side (connection.HostSide)

    def attach(self, connection: Connection) -> None:
        """The connection that this stream belongs to, before it is established."""
        self._connection = connection

    async def wait_established(self) -> None:
        """Wait for the guest's answer; raises VsockError when it refuses."""
        while self._ending is None and not self._established:
            self._changed.clear()
            await self._changed.wait()
        if not self._established:
            raise VsockError(self._end_text("connect"))

    def established(self, connection: Connection) -> None:
        self._connection = connection
        self._established = True
        self._writable.set()
        self._changed.set()

    def deliver(self, payload: bytes) -> None:
        # Bounded by our credit: Connection resets a guest that sends more than BUFFER_SIZE unread bytes.
        assert len(self._buffer) + len(payload) <= BUFFER_SIZE
        self._buffer += payload
        self._changed.set()

    def window_open(self) -> None:
        self._writable.set()

    def guest_finished(self) -> None:
        self._eof = True
        self._changed.set()

    def guest_deaf(self) -> None:
        self._stop_writing()

    def ended(self, ending: Ending) -> None:
        self._ending = ending
        self._stop_writing()
        self._changed.set()

    def _stop_writing(self) -> None:
        self._deaf = True
        self._writable.set()

    def _live(self) -> Connection:
        if self._connection is None:
            raise VsockError(f"{self.label}: not connected")
        return self._connection

    def _end_text(self, what: str) -> str:
        if self._ending is None:
            return f"{self.label}: cannot {what}: the guest's end receives no more"
        why = f": {self._ending.why}" if self._ending.why else ""
        return f"{self.label}: cannot {what}: {self._ending.change.value} by {self._ending.who.value}{why}"
