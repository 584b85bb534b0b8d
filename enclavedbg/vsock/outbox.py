"""Packets on their way to the guest: filled by the event loop, emptied by the vCPU thread.

Order is kept, nothing of a live connection is ever dropped, and the size is bounded whatever the guest does:
data by each connection's credit, credit messages by keeping one of a kind per connection, resets by `max_resets`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import replace

from enclavedbg.vsock.credit import ReceiveCredit
from enclavedbg.vsock.packet import MAX_PAYLOAD, Key, Op, Packet

log = logging.getLogger(__name__)

_SINGLE = frozenset({Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.RST})
"""Saying these twice says nothing more."""


class _Entry:
    """A waiting packet; credit fields are filled in when it leaves, as only then they are current."""

    __slots__ = ("credit", "key", "packet", "payload")

    def __init__(self, packet: Packet, credit: ReceiveCredit | None) -> None:
        self.packet = replace(packet, payload=b"") if packet.payload else packet
        self.payload = bytearray(packet.payload)
        self.credit = credit
        self.key = packet.key_to_guest


class Outbox:
    """A queue of packets for the guest, safe between two threads.

    `reset` belongs to the thread that pops. What the loop pushes before it has learnt of the reset
    (`acknowledge_reset`) was meant for the guest's former driver, and is dropped.
    """

    def __init__(self, *, max_resets: int = 2048) -> None:
        self._lock = threading.Lock()
        self._entries: deque[_Entry] = deque()
        self._single: set[tuple[Key, int, Op]] = set()
        self._resets = 0
        self._max_resets = max_resets
        self._epoch = 0
        self._epoch_of_loop = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, packet: Packet, credit: ReceiveCredit | None = None) -> bool:
        """Append a packet; False when nothing new waits now (a duplicate, or dropped as said above)."""
        with self._lock:
            if self._epoch != self._epoch_of_loop:
                return False
            if packet.op in _SINGLE:
                name = (packet.key_to_guest, packet.type, packet.op)
                if name in self._single:
                    if packet.op is Op.CREDIT_REQUEST:
                        # The guest must see it behind the data that used the credit up, or it answers too early.
                        self._move_to_end(*name)
                    return False
                if packet.op is Op.RST:
                    if self._resets >= self._max_resets:
                        log.debug("the guest takes no packets: a reset for %s is dropped", packet.key_to_guest)
                        return False
                    self._resets += 1
                self._single.add(name)
            elif packet.op is Op.RW and self._entries:
                tail = self._entries[-1]
                fits = len(tail.payload) + len(packet.payload) <= MAX_PAYLOAD
                if tail.packet.op is Op.RW and tail.key == packet.key_to_guest and fits:
                    tail.payload += packet.payload
                    return True
            self._entries.append(_Entry(packet, credit))
            return True

    def pop(self, limit: int) -> Packet | None:
        """The next packet with at most `limit` bytes of payload; a longer payload leaves in several packets."""
        with self._lock:
            if not self._entries:
                return None
            entry = self._entries[0]
            payload = b""
            if entry.payload:
                if limit <= 0:
                    return None
                payload = bytes(memoryview(entry.payload)[:limit])
                del entry.payload[:limit]
            if not entry.payload:
                self._entries.popleft()
                self._forget(entry)
            if entry.credit is None:
                return replace(entry.packet, payload=payload) if payload else entry.packet
            buf_alloc, fwd_cnt = entry.credit.advertise()
            return replace(entry.packet, payload=payload, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt)

    def drop(self, key: Key) -> bool:
        """Forget all that waits for a connection that is no more; whether there was anything."""
        with self._lock:
            kept = deque(e for e in self._entries if e.key != key)
            if len(kept) == len(self._entries):
                return False
            for entry in self._entries:
                if entry.key == key:
                    self._forget(entry)
            self._entries = kept
            return True

    def reset(self) -> int:
        """The guest's driver starts anew: forget everything, and what the loop still sends to the former one.

        Returns the number to acknowledge.
        """
        with self._lock:
            self._epoch += 1
            self._entries.clear()
            self._single.clear()
            self._resets = 0
            return self._epoch

    def acknowledge_reset(self, epoch: int) -> None:
        """The loop has dropped its connections for the `reset` that returned `epoch`, and for those before."""
        with self._lock:
            self._epoch_of_loop = epoch

    def _move_to_end(self, key: Key, kind: int, op: Op) -> None:
        for entry in self._entries:
            if entry.key == key and entry.packet.op is op and entry.packet.type == kind:
                self._entries.remove(entry)
                self._entries.append(entry)
                return

    def _forget(self, entry: _Entry) -> None:
        op = entry.packet.op
        if op in _SINGLE:
            self._single.discard((entry.key, entry.packet.type, op))
            if op is Op.RST:
                self._resets -= 1
