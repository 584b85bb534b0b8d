"""The virtio socket device (virtio 1.2, section 5.10): moves packets between the rings and the vsock switch.

Streams only: no type bit is offered, which every driver takes as stream. The event queue is accepted and kept;
nothing here changes the guest's CID under it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from enclavedbg.machine.virtio.device import VIRTIO_F_VERSION_1, Transport
from enclavedbg.machine.virtio.queue import Chain, SplitQueue
from enclavedbg.vsock.packet import HEADER_SIZE, MAX_PAYLOAD, Packet, PacketError
from enclavedbg.vsock.switch import VsockSwitch

RX, TX, EVENT = 0, 1, 2
MIN_RX_BUFFER = HEADER_SIZE + 1
"""A smaller one could never carry the data that may be next."""


class VirtioVsock:
    """The device model in front of a VsockSwitch.

    `post` takes a call from any thread and runs it on the vCPU thread soon, waking the guest for it; it is used
    when the switch has packets for a guest that did not just come by itself.
    """

    device_id: ClassVar[int] = 19
    name: ClassVar[str] = "virtio-vsock"
    features: ClassVar[int] = VIRTIO_F_VERSION_1
    queue_sizes: ClassVar[tuple[int, ...]] = (128, 128, 8)

    def __init__(self, switch: VsockSwitch, *, post: Callable[[Callable[[], None]], None]) -> None:
        self._switch = switch
        self._post = post
        self._posted = False
        self._transport: Transport | None = None
        self._generation = 0
        self._queues: tuple[SplitQueue, ...] = ()
        switch.on_pending = self._packets_wait

    # --- virtio device

    def attach(self, transport: Transport) -> None:
        self._transport = transport
        self._generation = transport.generation

    def config(self) -> bytes:
        """`struct virtio_vsock_config`: the guest's CID."""
        return struct.pack("<Q", self._switch.guest_cid)

    def activate(self, queues: tuple[SplitQueue, ...]) -> None:
        self._queues = queues
        self._serve()

    def notify(self, queue: int) -> None:
        if queue != EVENT:
            self._serve()

    def reset(self) -> None:
        self._queues = ()
        self._posted = False
        assert self._transport is not None
        # A broken device is reset by its transport in the same generation, by the driver in a new one.
        broken = self._transport.generation == self._generation
        self._generation = self._transport.generation
        if broken:
            self._switch.guest_reset("the guest broke its vsock device")
        else:
            self._switch.guest_reset()

    def save(self) -> None:
        """Connections have a host end that cannot be saved: after `load` the guest must be told they are gone."""
        return

    def load(self, state: object) -> None:
        """Nothing to take: `reset`, which came before, has dropped every connection."""

    # --- packets

    def _packets_wait(self) -> None:
        """On the loop: have the vCPU thread look. One call is enough until it has begun to look."""
        if not self._posted:
            self._posted = True
            self._post(self._look)

    def _look(self) -> None:
        self._posted = False
        if self._transport is not None:
            self._transport.service(self._serve)

    def _serve(self) -> None:
        """Move what can be moved. The guest's packets come first and need no room in rx, so neither side waits."""
        if not self._queues:
            return
        rx, tx = self._queues[RX], self._queues[TX]
        used = [queue for queue, moved in ((tx, self._drain(tx)), (rx, self._fill(rx))) if moved]
        if used:
            assert self._transport is not None
            self._transport.signal_used(*used)

    def _drain(self, tx: SplitQueue) -> bool:
        used = False
        for _ in range(tx.available()):
            if not self._switch.accepts_packets():
                # The loop is behind; on_pending follows as soon as it has caught up.
                break
            chain = tx.pop()
            if chain is None:
                break
            self._take(chain)
            tx.push(chain, 0)
            used = True
        return used

    def _take(self, chain: Chain) -> None:
        """Parse one packet, once, from a copy; a malformed one is dropped and costs its connection."""
        data = chain.read(HEADER_SIZE + MAX_PAYLOAD)
        try:
            packet = Packet.parse(data)
        except PacketError as error:
            assert self._transport is not None
            self._transport.warn(f"packet dropped: {error}")
            if error.header is not None:
                self._switch.malformed(error.header, str(error))
            return
        self._switch.from_guest(packet)

    def _fill(self, rx: SplitQueue) -> bool:
        used = False
        for _ in range(rx.available()):
            if not self._switch.pending:
                break
            chain = rx.pop()
            if chain is None:
                break
            room = chain.writable_size
            if room < MIN_RX_BUFFER:
                assert self._transport is not None
                self._transport.warn(f"receive buffer of {room} bytes, expected at least {MIN_RX_BUFFER}")
                rx.push(chain, 0)
                used = True
                continue
            packet = self._switch.next_for_guest(room - HEADER_SIZE)
            if packet is None:
                # The loop dropped what waited: its connection was just reset.
                rx.unpop()
                break
            rx.push(chain, chain.write(packet.encode()))
            used = True
        return used
