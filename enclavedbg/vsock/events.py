"""What the vsock tells: every packet, every change of a connection with who caused it and why, the heartbeat.

The classes fit the protocol of the machine's event stream (`kind`, `summary()`), without importing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from enclavedbg.vsock.packet import Op, Packet, Shutdown, SocketType

HOST_CID = 2
PARENT_CID = 3
PREVIEW = 64
"""Payload bytes that a packet event keeps."""


class Side(Enum):
    """Who did something to a connection."""

    GUEST = "guest"
    PARENT = "parent"
    DEBUGGER = "enclavedbg"


class Change(Enum):
    """What happened to a connection."""

    OPENED = "opened"
    ESTABLISHED = "established"
    HALF_CLOSED = "half-closed"
    CLOSED = "closed"
    RESET = "reset"
    REFUSED = "refused"


def address_name(cid: int, port: int) -> str:
    """An address on our side of the socket, for people: `parent:9000`."""
    name = {HOST_CID: "host", PARENT_CID: "parent"}.get(cid, f"cid {cid}")
    return f"{name}:{port}"


def count_bytes(count: int) -> str:
    """`1 byte`, `5 bytes`."""
    return f"{count} byte" if count == 1 else f"{count} bytes"


@dataclass(frozen=True, slots=True)
class VsockPacketEvent:
    """A packet that crossed the device. `head` is the first 64 bytes of a payload of `length` bytes."""

    kind: ClassVar[str] = "vsock.packet"
    to_guest: bool
    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: Op
    type: int
    flags: int
    buf_alloc: int
    fwd_cnt: int
    length: int
    head: bytes

    @classmethod
    def of(cls, packet: Packet, *, to_guest: bool) -> VsockPacketEvent:
        """The event for a packet."""
        return cls(
            to_guest, packet.src_cid, packet.dst_cid, packet.src_port, packet.dst_port, packet.op, packet.type,
            packet.flags, packet.buf_alloc, packet.fwd_cnt, len(packet.payload), packet.payload[:PREVIEW],
        )  # fmt: skip

    def summary(self) -> str:
        if self.to_guest:
            ends = f"{address_name(self.src_cid, self.src_port)} => guest:{self.dst_port}"
        else:
            ends = f"guest:{self.src_port} => {address_name(self.dst_cid, self.dst_port)}"
        return f"{ends} {self.op.name}{self._detail()}"

    def _detail(self) -> str:
        kind = "" if self.type == SocketType.STREAM else f" (socket type {self.type})"
        match self.op:
            case Op.RW:
                shown = "".join(chr(b) if 32 <= b < 127 else "." for b in self.head)
                more = "..." if self.length > len(self.head) else ""
                return f"{kind} {count_bytes(self.length)} |{shown}|{more}"
            case Op.SHUTDOWN:
                said = {
                    Shutdown.RECEIVE: "will receive no more",
                    Shutdown.SEND: "will send no more",
                    Shutdown.BOTH: "will send and receive no more",
                }
                return f"{kind} ({said.get(Shutdown(self.flags & 3), 'says nothing')})"
            case Op.RST:
                return kind
            case _:
                return f"{kind} (buffer {self.buf_alloc}, taken {self.fwd_cnt})"


@dataclass(frozen=True, slots=True)
class VsockConnection:
    """A connection changed: what happened, who did it and why in words. Byte counts are payload since its start."""

    kind: ClassVar[str] = "vsock.connection"
    change: Change
    host_cid: int
    host_port: int
    guest_cid: int
    guest_port: int
    opened_by: Side
    who: Side
    why: str
    bytes_from_guest: int = 0
    bytes_to_guest: int = 0

    def summary(self) -> str:
        guest, host = f"guest:{self.guest_port}", address_name(self.host_cid, self.host_port)
        ends = f"{guest} -> {host}" if self.opened_by is Side.GUEST else f"{host} -> {guest}"
        if self.change in (Change.OPENED, Change.ESTABLISHED):
            return f"{ends} {self.change.value} ({self.why})"
        text = f"{ends} {self.change.value} by {'' if self.who is Side.DEBUGGER else 'the '}{self.who.value}"
        if self.why:
            text += f": {self.why}"
        if self.change in (Change.CLOSED, Change.RESET):
            text += f" ({count_bytes(self.bytes_from_guest)} from the guest, {count_bytes(self.bytes_to_guest)} to it)"
        return text


@dataclass(frozen=True, slots=True)
class VsockHeartbeat:
    """The guest's init reported to the parent (`ok`), or tried and did it wrong."""

    kind: ClassVar[str] = "vsock.heartbeat"
    ok: bool
    detail: str

    def summary(self) -> str:
        return f"heartbeat: {self.detail}" if self.ok else f"heartbeat failed: {self.detail}"


VsockEvent = VsockPacketEvent | VsockConnection | VsockHeartbeat
Publish = Callable[[VsockEvent], object]
"""Takes an event from any thread."""
