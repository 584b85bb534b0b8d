"""The byte level of the GDB remote protocol: bytes in, frames out, and replies back into bytes.

Pure: no I/O and no knowledge of what a packet means. GDB manual, appendix "Remote Protocol", Overview.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

PACKET_SIZE = 0x20000
"""Longest packet body in bytes that is accepted or sent; announced (in hexadecimal) as PacketSize."""

_DOLLAR, _HASH = b"$#"
_NOTABLE_OUTSIDE = re.compile(rb"[$+\-\x03]")
_BODY_END = re.compile(rb"[#$]")
_ESCAPED = re.compile(rb"\}(.)", re.DOTALL)
_TO_ESCAPE = re.compile(rb"[#$}*]")
_RUN = re.compile(rb"([^#$}*])\1{3,}", re.DOTALL)

# A repeat count n is sent as chr(n + 29). These counts would read as `#`, `$`, `*`, `+`, `-` or `}`.
_LONGEST_RUN = 126 - 29
_UNSENDABLE_RUNS = frozenset(ord(c) - 29 for c in "#$*+-}")
_SHORTEST_RUN = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """A whole packet with a right checksum; `body` has its escapes undone."""

    body: bytes


@dataclass(frozen=True, slots=True)
class BadPacket:
    """A packet that has to be sent again; `reason` is for the log."""

    reason: str


class Signal(Enum):
    """What one byte outside a packet says."""

    ACK = auto()
    NAK = auto()
    INTERRUPT = auto()


Frame = Packet | BadPacket | Signal


class _State(Enum):
    OUTSIDE = auto()
    BODY = auto()
    OVERFLOW = auto()
    SUM_HIGH = auto()
    SUM_LOW = auto()


class Decoder:
    """Turns a client's bytes, in pieces of any size, into frames.

    A `$` inside a packet starts a new one: clients escape it in data, so it means that bytes were lost and that
    the client has begun again (no frame tells of it, as asking for a resend would make the packet come twice).
    0x03 is an interrupt only outside a packet, as binary data may hold it. Bytes between packets that mean
    nothing are passed over. At most `limit` bytes of body are ever kept.
    """

    def __init__(self, limit: int = PACKET_SIZE) -> None:
        self._limit = limit
        self._state = _State.OUTSIDE
        self._body = bytearray()
        self._overflowed = False
        self._sum_high = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes."""
        position = 0
        end = len(data)
        while position < end:
            match self._state:
                case _State.OUTSIDE:
                    found = _NOTABLE_OUTSIDE.search(data, position)
                    if found is None:
                        return
                    position = found.end()
                    if (frame := self._outside(data[found.start()])) is not None:
                        yield frame
                case _State.BODY | _State.OVERFLOW:
                    found = _BODY_END.search(data, position)
                    self._keep(data[position : found.start() if found else end])
                    if found is None:
                        return
                    position = found.end()
                    if data[found.start()] == _HASH:
                        self._state = _State.SUM_HIGH
                    else:
                        self._begin()
                case _State.SUM_HIGH:
                    self._sum_high = data[position]
                    position += 1
                    self._state = _State.SUM_LOW
                    if self._sum_high == _DOLLAR:
                        self._begin()
                case _State.SUM_LOW:
                    low = data[position]
                    position += 1
                    if low == _DOLLAR:
                        self._begin()
                    else:
                        self._state = _State.OUTSIDE
                        yield self._finish(bytes((self._sum_high, low)))

    def _outside(self, byte: int) -> Frame | None:
        match byte:
            case 0x24:  # $
                self._begin()
                return None
            case 0x2B:  # +
                return Signal.ACK
            case 0x2D:  # -
                return Signal.NAK
            case _:
                return Signal.INTERRUPT

    def _begin(self) -> None:
        self._state = _State.BODY
        self._overflowed = False
        self._body.clear()

    def _keep(self, piece: bytes) -> None:
        if self._state is _State.OVERFLOW:
            return
        if len(self._body) + len(piece) > self._limit:
            self._state = _State.OVERFLOW
            self._overflowed = True
            self._body.clear()
            return
        self._body += piece

    def _finish(self, checksum: bytes) -> Frame:
        if self._overflowed:
            self._overflowed = False
            return BadPacket(f"a packet longer than the {self._limit} bytes announced")
        raw = bytes(self._body)
        self._body.clear()
        try:
            wanted = int(checksum.decode("ascii"), 16) if checksum.isalnum() else -1
        except ValueError:
            wanted = -1
        if wanted != sum(raw) & 0xFF:
            return BadPacket(f"checksum {checksum!r} where {sum(raw) & 0xFF:02x} is right")
        if b"}" not in raw:
            return Packet(raw)
        if _ESCAPED.sub(b"", raw).endswith(b"}"):
            return BadPacket("an escape character ends the packet")
        return Packet(unescape(raw))


def unescape(raw: bytes) -> bytes:
    """Undo `}` escapes: the byte after it is the real one with bit 5 flipped."""
    return _ESCAPED.sub(lambda m: bytes((m[1][0] ^ 0x20,)), raw)


def escape(data: bytes) -> bytes:
    """Escape what must not appear in a reply: `#`, `$`, `}` and the run-length mark `*`."""
    return _TO_ESCAPE.sub(lambda m: bytes((0x7D, m[0][0] ^ 0x20)), data)


def encode(body: bytes, *, run_length: bool = False) -> bytes:
    """A whole packet around `body`: escaped, shortened by run lengths when asked, with its checksum."""
    raw = escape(body)
    if run_length:
        raw = _RUN.sub(_shorten, raw)
    return b"$%b#%02x" % (raw, sum(raw) & 0xFF)


def expand_runs(raw: bytes) -> bytes:
    """Undo run lengths in an encoded body, as a client does; escapes stay as they are."""
    out = bytearray()
    position = 0
    while (mark := raw.find(b"*", position)) >= 0:
        out += raw[position:mark]
        out += out[-1:] * (raw[mark + 1] - 29)
        position = mark + 2
    return bytes(out + raw[position:])


def _shorten(match: re.Match[bytes]) -> bytes:
    byte = match[1]
    if match.start() and match.string[match.start() - 1] == 0x7D:
        # The first of these is the second half of an escape: a run must not begin there.
        return byte + _runs(byte, len(match[0]) - 1)
    return _runs(byte, len(match[0]))


def _runs(byte: bytes, count: int) -> bytes:
    out = bytearray()
    while count:
        more = min(count - 1, _LONGEST_RUN)
        while more in _UNSENDABLE_RUNS:
            more -= 1
        if more < _SHORTEST_RUN:
            out += byte * count
            break
        out += byte + b"*" + bytes((more + 29,))
        count -= more + 1
    return bytes(out)
