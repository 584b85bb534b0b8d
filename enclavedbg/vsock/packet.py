"""The packet of virtio-vsock: a 44-byte header and, for RW, a payload.

Layout and operation numbers: Linux include/uapi/linux/virtio_vsock.h, VIRTIO 1.2 section 5.10.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple, Self

from enclavedbg.errors import VsockError

HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = HEADER.size
MAX_PAYLOAD = 64 * 1024
"""VIRTIO_VSOCK_MAX_PKT_BUF_SIZE: no driver sends more in one packet."""


class Op(IntEnum):
    """What a packet does (`VIRTIO_VSOCK_OP_*`; 0 is invalid)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class SocketType(IntEnum):
    """`VIRTIO_VSOCK_TYPE_*`."""

    STREAM = 1
    SEQPACKET = 2


class Shutdown(IntFlag):
    """Flags of SHUTDOWN: what its sender will do no more."""

    NONE = 0
    RECEIVE = 1
    SEND = 2
    BOTH = 3


class Key(NamedTuple):
    """What identifies a connection, seen from the host; the guest's CID is the same in all."""

    host_cid: int
    host_port: int
    guest_port: int


class PacketError(VsockError):
    """Bytes from the guest are no vsock packet.

    `header` is the packet without payload when the addresses and operation could still be read, so that the
    connection that lost it can be reset; None otherwise.
    """

    def __init__(self, message: str, *, header: Packet | None = None) -> None:
        super().__init__(message)
        self.header = header


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. CIDs are u64, ports and counters u32; `type` stays a number, as unknown ones get an answer."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    op: Op
    type: int = SocketType.STREAM
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0
    payload: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The packet in `data`, whose bytes beyond the payload are ignored; raises PacketError."""
        if len(data) < HEADER_SIZE:
            raise PacketError(f"{len(data)} bytes are too short for a packet header, expected {HEADER_SIZE}")
        (src_cid, dst_cid, src_port, dst_port, length, kind, number, flags, buf_alloc, fwd_cnt) = HEADER.unpack_from(
            data
        )
        try:
            op = Op(number)
        except ValueError:
            raise PacketError(f"operation {number} is unknown, expected 1 (REQUEST) to 7 (CREDIT_REQUEST)") from None
        header = cls(src_cid, dst_cid, src_port, dst_port, op, kind, flags, buf_alloc, fwd_cnt)
        if length == 0:
            _check_flags(header)
            return header
        if op is not Op.RW:
            raise PacketError(f"{op.name} announces {length} bytes of payload, only RW may carry any", header=header)
        if length > MAX_PAYLOAD:
            raise PacketError(f"RW announces {length} bytes, at most {MAX_PAYLOAD} are allowed", header=header)
        if length > len(data) - HEADER_SIZE:
            raise PacketError(
                f"RW announces {length} bytes but only {len(data) - HEADER_SIZE} follow its header", header=header
            )
        payload = data[HEADER_SIZE : HEADER_SIZE + length]
        return cls(src_cid, dst_cid, src_port, dst_port, op, kind, flags, buf_alloc, fwd_cnt, payload)

    def encode(self) -> bytes:
        """Header and payload as they lie in guest memory."""
        header = HEADER.pack(
            self.src_cid, self.dst_cid, self.src_port, self.dst_port,
            len(self.payload), self.type, self.op, self.flags, self.buf_alloc, self.fwd_cnt,
        )  # fmt: skip
        return header + self.payload

    def reset_reply(self) -> Packet:
        """The RST that answers this packet: addresses swapped, type copied (stream if unknown), no credit."""
        kind = self.type if self.type == SocketType.SEQPACKET else SocketType.STREAM
        return Packet(self.dst_cid, self.src_cid, self.dst_port, self.src_port, Op.RST, kind)

    @property
    def key_from_guest(self) -> Key:
        """The connection of a packet that the guest sent."""
        return Key(self.dst_cid, self.dst_port, self.src_port)

    @property
    def key_to_guest(self) -> Key:
        """The connection of a packet that goes to the guest."""
        return Key(self.src_cid, self.src_port, self.dst_port)


def _check_flags(header: Packet) -> None:
    # Other operations have no flags on streams; Linux ignores what it finds there, and so do we.
    if header.op is Op.SHUTDOWN and header.flags > Shutdown.BOTH:
        raise PacketError(f"SHUTDOWN has flags {header.flags:#x}, expected 0 to 3", header=header)
