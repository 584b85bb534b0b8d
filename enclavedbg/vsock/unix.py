"""The host's programs reach the enclave, and are reached by it, through Unix sockets in one directory.

The convention is Firecracker's hybrid vsock, so its clients work here: a connection of the guest to the
parent's port P goes to DIR/vsock_P; a program that connects to DIR/vsock and writes `CONNECT PORT\\n` is
answered `OK HOSTPORT\\n` once the guest has accepted, and then has a plain stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
import stat
from pathlib import Path

from enclavedbg.errors import VsockError
from enclavedbg.vsock.switch import VsockSwitch
from enclavedbg.vsock.unixstream import UnixStream

log = logging.getLogger(__name__)

MAX_PATH = 107
"""Bytes of a socket's path that fit in `sockaddr_un`, without the closing zero."""
MAX_COMMAND = 32
"""Bytes of a CONNECT line, as in Firecracker."""
ACCEPT_PAUSE = 1.0
"""Seconds without accepting after the process ran out of file descriptors."""
_COMMAND = re.compile(rb"\s*connect\s+(\d{1,10})\s*", re.IGNORECASE)
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Command:
    """A program that connected to DIR/vsock and has not yet said where to."""

    def __init__(self, sock: socket.socket, endpoints: UnixEndpoints, loop: asyncio.AbstractEventLoop) -> None:
        self.sock = sock
        self._endpoints = endpoints
        self._loop = loop
        self._line = b""
        loop.add_reader(sock, self._readable)

    def close(self) -> None:
        self.release()
        self.sock.close()

    def release(self) -> socket.socket:
        """Stop reading and give the socket away."""
        self._loop.remove_reader(self.sock)
        return self.sock

    def _readable(self) -> None:
        try:
            data = self.sock.recv(MAX_COMMAND - len(self._line))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._line += data
        line, newline, rest = self._line.partition(b"\n")
        if newline:
            self._endpoints.command(self, line, rest)
        elif not data or len(self._line) >= MAX_COMMAND:
            self._endpoints.no_command(self, self._line)


class UnixEndpoints:
    """The socket directory of one enclave. Make it, `open` it on the switch's loop; the switch closes it."""

    def __init__(self, directory: Path, switch: VsockSwitch, *, max_sockets: int = 1024) -> None:
        self._directory = directory
        self._switch = switch
        self._max_sockets = max_sockets
        self._path = directory / "vsock"
        longest = f"{self._path}_{0xFFFF_FFFF}"
        if len(os.fsencode(longest)) > MAX_PATH:
            raise VsockError(
                f"the path {longest} has {len(os.fsencode(longest))} bytes, but a Unix socket's may have "
                f"{MAX_PATH}; use a shorter directory"
            )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None
        self._made_directory = False
        self._identity: tuple[int, int] | None = None
        self._streams: set[UnixStream] = set()
        self._commands: set[_Command] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._all_gone = asyncio.Event()

    @property
    def path(self) -> Path:
        """The socket that programs connect to."""
        return self._path

    def open(self) -> None:
        """Listen on DIR/vsock (mode 0600), making DIR if there is none; raises VsockError.

        A socket left over by a process that is no more is replaced; a live one is not.
        """
        self._loop = asyncio.get_running_loop()
        try:
            if not self._directory.exists():
                self._directory.mkdir(mode=0o700)
                self._made_directory = True
            self._remove_stale()
            self._listen()
        except OSError as error:
            self._release()
            raise VsockError(f"cannot listen on {self._path}: {error.strerror}") from error
        except VsockError:
            self._release()
            raise
        self._switch.set_listener(self)

    def accept(self, port: int) -> UnixStream:
        """Connect to DIR/vsock_PORT for the guest; raises VsockError with the reason."""
        assert self._loop is not None
        path = f"{self._path}_{port}"
        if len(self._streams) >= self._max_sockets:
            raise VsockError(f"port {port}: all {self._max_sockets} host sockets are in use")
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise VsockError(f"port {port}: no socket to be had: {error.strerror}") from error
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise VsockError(_refusal(port, path, error)) from error
        return self._stream(sock, label=path)

    async def close(self, *, grace: float = 0.5) -> None:
        """Remove the socket and close all connections; programs get `grace` seconds to take what is theirs."""
        self._release()
        for command in tuple(self._commands):
            command.close()
        self._commands.clear()
        try:
            for stream in tuple(self._streams):
                if not stream.undelivered:
                    stream.close()
            if self._streams:
                self._all_gone.clear()
                await asyncio.wait_for(self._all_gone.wait(), grace)
        except TimeoutError:
            pass
        finally:
            for stream in tuple(self._streams):
                log.warning("%s: %s of the guest's output were never read", stream.label, stream.undelivered)
                stream.close()

    # --- listening

    def _remove_stale(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise VsockError(f"{self._path} is there and is no socket; remove it or use another directory")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except BlockingIOError:
                pass  # alive, with a full backlog
        raise VsockError(f"{self._path} is served by another process; end that or use another directory")

    def _listen(self) -> None:
        assert self._loop is not None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(str(self._path))
        found = self._path.lstat()
        self._identity = (found.st_dev, found.st_ino)
        # Nobody can connect before listen, so there is no moment with wider permissions.
        self._path.chmod(0o600)
        self._listener.listen(128)
        self._loop.add_reader(self._listener, self._acceptable)

    def _acceptable(self) -> None:
        assert self._listener is not None and self._loop is not None
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                log.warning("%s: %s; new connections wait", self._path, error.strerror)
                self._loop.remove_reader(self._listener)
                self._resume = self._loop.call_later(ACCEPT_PAUSE, self._accept_again)
            return
        sock.setblocking(False)
        if len(self._commands) + len(self._streams) >= self._max_sockets:
            log.warning("%s: all %d connections are in use", self._path, self._max_sockets)
            sock.close()
            return
        self._commands.add(_Command(sock, self, self._loop))

    def _accept_again(self) -> None:
        assert self._listener is not None and self._loop is not None
        self._resume = None
        self._loop.add_reader(self._listener, self._acceptable)

    def _release(self) -> None:
        """Give back the listening socket, its file, and the directory if it was ours and is empty."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._listener is not None and self._loop is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if self._identity is not None:
            # Only our own file: another process may have replaced it.
            with contextlib.suppress(OSError):
                found = self._path.lstat()
                if (found.st_dev, found.st_ino) == self._identity:
                    self._path.unlink()
            self._identity = None
        if self._made_directory:
            with contextlib.suppress(OSError):
                self._directory.rmdir()
            self._made_directory = False

    # --- programs that connect

    def command(self, command: _Command, line: bytes, rest: bytes) -> None:
        """A program wrote a whole line; `rest` is what it sent after it."""
        match = _COMMAND.fullmatch(line)
        if match is None or int(match[1]) > 0xFFFF_FFFF:
            self.no_command(command, line)
            return
        self._commands.discard(command)
        port = int(match[1])
        stream = self._stream(command.release(), label=str(self._path), greet=True, early=rest)
        try:
            self._switch.open_connection(port, stream)
        except VsockError as error:
            log.warning("%s: %s", self._path, error)
            stream.close()

    def no_command(self, command: _Command, line: bytes) -> None:
        """A program wrote something else, or nothing."""
        if line:
            log.warning("%s: a program wrote %r, expected CONNECT PORT and a newline", self._path, line)
        self._commands.discard(command)
        command.close()

    def _stream(self, sock: socket.socket, *, label: str, greet: bool = False, early: bytes = b"") -> UnixStream:
        assert self._loop is not None
        stream = UnixStream(sock, label=label, loop=self._loop, gone=self._stream_gone, greet=greet, early=early)
        self._streams.add(stream)
        return stream

    def _stream_gone(self, stream: UnixStream) -> None:
        self._streams.discard(stream)
        if not self._streams:
            self._all_gone.set()


def _refusal(port: int, path: str, error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return f"no listener on port {port}: nothing at {path}"
        case ConnectionRefusedError():
            return f"no listener on port {port}: {path} is there, but nobody listens on it"
        case BlockingIOError():
            return f"the listener on port {port} at {path} does not accept: its backlog is full"
        case _:
            return f"no listener on port {port}: {path}: {error.strerror}"
