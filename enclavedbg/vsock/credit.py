"""Flow control of a vsock connection: two windows, counted in u32 that wrap.

VIRTIO 1.2 section 5.10.6.3. Each side tells in every packet how large its receive buffer is (`buf_alloc`) and
how many bytes of it it has passed on so far (`fwd_cnt`). Nothing here does any input or output.
"""

from __future__ import annotations

from dataclasses import dataclass

from enclavedbg.errors import VsockError

U32 = 0xFFFF_FFFF
BUFFER_SIZE = 256 * 1024
"""Our receive buffer per connection in bytes: the default of Linux sockets."""
LOW_WINDOW = 64 * 1024
"""A sender that sees less than a full packet of room may wait for more (as Linux reckons)."""


@dataclass(slots=True)
class SendCredit:
    """How much may still be sent to the peer.

    `limit` bounds what may be under way whatever the peer announces: it is kept in our memory until the peer
    takes it. `sent`, `peer_fwd_cnt` and `peer_buf_alloc` are u32.
    """

    limit: int = BUFFER_SIZE
    sent: int = 0
    peer_buf_alloc: int = 0
    peer_fwd_cnt: int = 0

    def update(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Take what a packet from the peer says."""
        self.peer_buf_alloc = buf_alloc
        self.peer_fwd_cnt = fwd_cnt

    @property
    def in_flight(self) -> int:
        """Bytes sent that the peer has not passed on; huge when the peer claims more than it was sent."""
        return (self.sent - self.peer_fwd_cnt) & U32

    @property
    def free(self) -> int:
        """Bytes that may be sent now; 0 also when the peer shrank its buffer below what is under way."""
        return max(0, min(self.peer_buf_alloc, self.limit) - self.in_flight)

    def spend(self, count: int) -> None:
        """Count bytes as sent; raises VsockError beyond `free`."""
        if not 0 <= count <= self.free:
            raise VsockError(f"{count} bytes are more than the peer's credit of {self.free}")
        self.sent = (self.sent + count) & U32


@dataclass(slots=True)
class ReceiveCredit:
    """How much the peer may still send to us. All counters are u32.

    `advertised` is the `forwarded` that the peer was last told.
    """

    buf_alloc: int = BUFFER_SIZE
    received: int = 0
    forwarded: int = 0
    advertised: int = 0

    @property
    def buffered(self) -> int:
        """Bytes received and not yet passed on."""
        return (self.received - self.forwarded) & U32

    @property
    def free(self) -> int:
        """Room left in the buffer."""
        return self.buf_alloc - self.buffered

    def accept(self, count: int) -> bool:
        """Count received bytes; False, and nothing counted, when the peer had no credit for them."""
        if count > self.free:
            return False
        self.received = (self.received + count) & U32
        return True

    def forward(self, count: int) -> None:
        """Count bytes as passed on to the consumer; raises VsockError beyond `buffered`."""
        if not 0 <= count <= self.buffered:
            raise VsockError(f"{count} bytes passed on, but only {self.buffered} were waiting")
        self.forwarded = (self.forwarded + count) & U32

    def advertise(self) -> tuple[int, int]:
        """The pair (buf_alloc, fwd_cnt) for the packet that leaves now."""
        self.advertised = self.forwarded
        return self.buf_alloc, self.advertised

    @property
    def update_due(self) -> bool:
        """Whether the peer should be told: it was told of much less room than there is, or sees too little."""
        untold = (self.forwarded - self.advertised) & U32
        if untold == 0:
            return False
        room_as_told = self.buf_alloc - ((self.received - self.advertised) & U32)
        return untold >= self.buf_alloc // 4 or room_as_told < LOW_WINDOW
