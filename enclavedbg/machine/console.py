"""The serial console's text: kept whole, and published line by line."""

from __future__ import annotations

import errno
import os
import re
import select
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from enclavedbg.errors import MachineError
from enclavedbg.machine.events import ConsoleLine, Event, GuestWarning

LINE_LIMIT = 4096
"""Bytes after which a line that does not end is published anyway."""

MEMORY_LIMIT = 64 << 20
"""Bytes kept in memory. Beyond them the middle goes: what a person looks for is at the start or at the end."""

LAST_SECONDS = 0.3
"""How long a pipe's reader that is behind may take at the end: Ctrl-C ends a run within a second."""

_HEAD = 4 << 20
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_LF = 0x0A


def printable(raw: bytes) -> str:
    """A line as it may be shown on a terminal: colours dropped, every other control character escaped.

    Text that would move the cursor, hide itself or turn the writing direction shows as `\\x..` or `\\u....`.
    """
    text = _COLOUR.sub("", raw.decode("utf-8", "backslashreplace"))
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


class Console:
    """Collects the serial port's bytes. `publish` gets a ConsoleLine for each line; `file` gets all bytes as they are.

    A line reaches the file when it ends; `close` brings the rest. Raises MachineError when the file cannot be
    opened; a later failure is reported once as an event and the console goes on in memory. The file may be a pipe:
    the guest never waits for its reader, who may be MEMORY_LIMIT bytes behind.
    """

    def __init__(self, publish: Callable[[Event], object], *, file: Path | None = None) -> None:
        self._publish = publish
        self._kept = bytearray()
        self._line = bytearray()
        self._dropped = 0
        self._path = file
        self._unwritten = bytearray()
        try:
            self._file = FileIO(file, "w", opener=_open_nonblocking) if file is not None else None
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise MachineError(f"nobody reads the pipe {file}; start its reader first") from error
            raise MachineError(
                f"cannot write the console to {file}: {error.strerror}; choose another --console"
            ) from error

    def write(self, byte: int) -> None:
        """One byte from the serial port."""
        line = self._line
        line.append(byte)
        if byte == _LF or len(line) >= LINE_LIMIT:
            self._end_line()

    def text(self) -> str:
        """Everything so far, the unfinished line included, with plain line ends."""
        raw = bytes(self._kept) + bytes(self._line)
        if self._dropped:
            note = f"\n[{self._dropped} bytes of console left out here]\n".encode()
            raw = raw[:_HEAD] + note + raw[_HEAD:]
        return raw.replace(b"\r\n", b"\n").decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Publish the unfinished line and close the file. The text stays readable; calling it twice is harmless."""
        if self._line:
            self._end_line()
        deadline = time.monotonic() + LAST_SECONDS
        while self._file is not None and self._unwritten:
            if _writable(self._file, deadline - time.monotonic()):
                self._store(b"")
            else:
                self._give_up(f"its last {len(self._unwritten)} bytes were not read")
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end_line(self) -> None:
        raw = bytes(self._line)
        self._line.clear()
        self._kept += raw
        if len(self._kept) > MEMORY_LIMIT:
            cut = MEMORY_LIMIT // 2
            del self._kept[_HEAD : _HEAD + cut]
            self._dropped += cut
        if self._file is not None:
            self._store(raw)
        self._publish(ConsoleLine(printable(raw.rstrip(b"\r\n"))))

    def _store(self, raw: bytes) -> None:
        assert self._file is not None
        self._unwritten += raw
        try:
            while self._unwritten and (written := self._file.write(self._unwritten)):
                del self._unwritten[:written]
        except OSError as error:
            self._give_up(f"{error.strerror}; kept in memory only from here")
            return
        if len(self._unwritten) > MEMORY_LIMIT:
            self._give_up("its reader is too far behind; kept in memory only from here")

    def _give_up(self, why: str) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None
        self._publish(GuestWarning("console", f"cannot write {self._path}: {why}"))


def _writable(file: FileIO, seconds: float) -> bool:
    """Whether a file takes bytes within so many seconds."""
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(max(0, seconds) * 1000))


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
