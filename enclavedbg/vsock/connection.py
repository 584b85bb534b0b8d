"""One vsock connection: its states, its two credit windows, and who ended it.

Everything here runs on the event loop's thread. The guest's side is packets (`handle`), our side is a
`HostSide`: a Unix socket or a stream inside this process. VIRTIO 1.2 section 5.10.6; the life of a connection
follows Linux net/vmw_vsock/virtio_transport_common.c.
"""

from __future__ import annotations

from enclavedbg.vsock.contract import Carrier, ConnectionInfo, Ending, HostSide, State, Timer
from enclavedbg.vsock.credit import ReceiveCredit, SendCredit
from enclavedbg.vsock.events import Change, Side, VsockConnection, count_bytes
from enclavedbg.vsock.packet import Key, Op, Packet, Shutdown, SocketType


class Connection:
    """A stream between a port of the guest and one of ours; made by the switch."""

    def __init__(self, carrier: Carrier, host: HostSide, *, key: Key, opened_by: Side, now: int) -> None:
        self.key = key
        self.opened_by = opened_by
        self.host = host
        self.opened_at = now
        self.bytes_from_guest = 0
        self.bytes_to_guest = 0
        self.ending: Ending | None = None
        self._carrier = carrier
        self._tx = SendCredit()
        self._rx = ReceiveCredit()
        self._connecting = True
        self._guest_said = Shutdown.NONE
        self._host_says = Shutdown.NONE
        self._told = Shutdown.NONE
        self._closer: tuple[Side, str] | None = None
        self._stalled = False
        self._timer: Timer | None = None
        self._close_timeout = 0.0
        self._asked_at_close = False

    # --- opening

    def accept_guest(self, request: Packet, *, close_timeout: float) -> None:
        """Answer the guest's REQUEST with RESPONSE."""
        self._close_timeout = close_timeout
        self._tx.update(request.buf_alloc, request.fwd_cnt)
        self._connecting = False
        self._send(Op.RESPONSE)
        self._publish(Change.ESTABLISHED, Side.GUEST, self.host.label)
        self.host.established(self)

    def request(self, *, connect_timeout: float, close_timeout: float) -> None:
        """Ask the guest for a connection; the host side hears `established` or `ended`."""
        self._close_timeout = close_timeout
        self._publish(Change.OPENED, Side.PARENT, self.host.label)
        self._timer = self._carrier.timer(connect_timeout, lambda: self._no_answer(connect_timeout))
        self._send(Op.REQUEST)

    def _no_answer(self, seconds: float) -> None:
        self._reset_guest()
        self._end(Change.REFUSED, Side.DEBUGGER, f"the guest did not answer within {seconds:g} s of its time")

    # --- what the guest does

    def handle(self, packet: Packet) -> None:
        """Take a packet of this connection from the guest (any but REQUEST)."""
        if self.ending is not None:
            return
        self._tx.update(packet.buf_alloc, packet.fwd_cnt)
        if packet.op is Op.RST:
            self._guest_reset()
        elif self._connecting:
            self._guest_answers(packet)
        else:
            self._guest_says(packet)
        if self.ending is None and self._stalled and self._tx.free > 0:
            self._stalled = False
            self.host.window_open()

    def _guest_answers(self, packet: Packet) -> None:
        if packet.op is not Op.RESPONSE:
            self.reset(Side.DEBUGGER, f"the guest answered REQUEST with {packet.op.name}, expected RESPONSE or RST")
            return
        self._stop_timer()
        self._connecting = False
        self._publish(Change.ESTABLISHED, Side.GUEST, self.host.label)
        self.host.established(self)

    def _guest_says(self, packet: Packet) -> None:
        match packet.op:
            case Op.RW:
                self._guest_data(packet.payload)
            case Op.SHUTDOWN:
                self._guest_shutdown(Shutdown(packet.flags))
            case Op.CREDIT_REQUEST:
                self._send(Op.CREDIT_UPDATE)
            case Op.CREDIT_UPDATE:
                pass
            case _:
                self.reset(Side.DEBUGGER, f"the guest sent {packet.op.name} on an established connection")

    def _guest_data(self, payload: bytes) -> None:
        if self._guest_said & Shutdown.SEND:
            self.reset(Side.DEBUGGER, f"the guest sent {count_bytes(len(payload))} after it said it would send no more")
            return
        free = self._rx.free
        if not self._rx.accept(len(payload)):
            self.reset(Side.DEBUGGER, f"the guest sent {count_bytes(len(payload))} with credit for {free}")
            return
        if not payload:
            return
        self.bytes_from_guest += len(payload)
        if self._host_says & Shutdown.RECEIVE:
            # Under way when it was told to stop: taken and thrown away, as a socket does.
            self.consumed(len(payload))
        else:
            self.host.deliver(payload)

    def _guest_shutdown(self, flags: Shutdown) -> None:
        new = flags & ~self._guest_said
        self._guest_said |= flags
        if not new:
            return
        if self._guest_said == Shutdown.BOTH:
            self._note_closer(Side.GUEST, "")
        elif new & Shutdown.SEND:
            self._publish(Change.HALF_CLOSED, Side.GUEST, "it will send no more")
        else:
            self._publish(Change.HALF_CLOSED, Side.GUEST, "it will receive no more")
        if new & Shutdown.RECEIVE:
            self.host.guest_deaf()
        if new & Shutdown.SEND:
            self.host.guest_finished()
        self._settle()

    def _guest_reset(self) -> None:
        self._carrier.drop_waiting(self.key)
        if self._connecting:
            why = f"nothing listens on its port {self.key.guest_port}"
            self._end(Change.REFUSED, Side.GUEST, why)
        elif self._closer is not None:
            self._end_closed()
        else:
            self._end(Change.RESET, Side.GUEST, "it sent RST")

    # --- what the host side does

    @property
    def window(self) -> int:
        """Bytes that `send` takes now."""
        if self._connecting or self.ending is not None or self._finished_to_guest:
            return 0
        return self._tx.free

    def want_window(self) -> None:
        """The window is 0 and there is more to send: ask the guest, and call `HostSide.window_open` later."""
        if self._connecting or self.ending is not None or self._finished_to_guest or self._stalled:
            return
        # Asked once a stall: a guest that reads tells by itself.
        self._stalled = True
        self._send(Op.CREDIT_REQUEST)

    def send(self, data: bytes) -> None:
        """Queue bytes for the guest, at most `window` of them; raises VsockError beyond."""
        if self.ending is not None or self._finished_to_guest or not data:
            return
        self._tx.spend(len(data))
        self.bytes_to_guest += len(data)
        self._send(Op.RW, payload=data)

    def consumed(self, count: int) -> None:
        """The consumer has really taken `count` bytes of what was delivered."""
        if self.ending is not None:
            return
        self._rx.forward(count)
        self._settle()
        if self.ending is None and not self._guest_said & Shutdown.SEND and self._rx.update_due:
            self._send(Op.CREDIT_UPDATE)

    def finish(self) -> None:
        """Our side will send no more; it still receives."""
        if self.ending is not None or self._host_says & Shutdown.SEND:
            return
        self._host_says |= Shutdown.SEND
        if not self._guest_said & Shutdown.SEND:
            self._publish(Change.HALF_CLOSED, Side.PARENT, "it will send no more")
        self._settle()

    def stop_receiving(self, why: str) -> None:
        """Our side will receive no more; it still sends."""
        if self.ending is not None or self._host_says & Shutdown.RECEIVE:
            return
        self._host_says |= Shutdown.RECEIVE
        if self._host_says == Shutdown.BOTH:
            self._note_closer(Side.PARENT, why)
        else:
            self._publish(Change.HALF_CLOSED, Side.PARENT, why)
        self._settle()

    def close(self, why: str = "") -> None:
        """Our side is gone in good order: what was queued still reaches the guest."""
        if self.ending is not None:
            return
        if self._connecting:
            self.reset(Side.PARENT, why or "gave up")
            return
        self._host_says = Shutdown.BOTH
        if self._rx.buffered:
            unread = f"{count_bytes(self._rx.buffered)} from the guest were never read"
            why = f"{why}; {unread}" if why else unread
        self._note_closer(Side.PARENT, why)
        self._settle()

    def reset(self, who: Side, why: str) -> None:
        """End at once with RST; packets that wait for the guest are dropped."""
        if self.ending is None:
            self._reset_guest()
            self._end(Change.RESET, who, why)

    def abandon(self, change: Change, who: Side, why: str) -> None:
        """End at once without a word to the guest, which knows or is no more."""
        if self.ending is None:
            self._carrier.drop_waiting(self.key)
            self._end(change, who, why)

    # --- what people see

    @property
    def state(self) -> State:
        if self.ending is not None:
            return State.CLOSED
        if self._connecting:
            return State.CONNECTING
        if Shutdown.BOTH in (self._guest_said, self._host_says, self._told):
            return State.CLOSING
        if self._guest_said & Shutdown.SEND:
            return State.GUEST_FINISHED
        if self._host_says & Shutdown.SEND:
            return State.PARENT_FINISHED
        return State.ESTABLISHED

    def info(self, now: int) -> ConnectionInfo:
        """A snapshot; `now` is the guest's time."""
        return ConnectionInfo(
            host_cid=self.key.host_cid,
            host_port=self.key.host_port,
            guest_cid=self._carrier.guest_cid,
            guest_port=self.key.guest_port,
            state=self.state,
            opened_by=self.opened_by,
            endpoint=self.host.label,
            bytes_from_guest=self.bytes_from_guest,
            bytes_to_guest=self.bytes_to_guest,
            unread=self._rx.buffered,
            may_send=self._tx.free,
            guest_may_send=self._rx.free,
            age_ns=now - self.opened_at,
        )

    # --- inner works

    @property
    def _finished_to_guest(self) -> bool:
        return bool(self._host_says & Shutdown.SEND or self._guest_said & Shutdown.RECEIVE)

    @property
    def _finished_from_guest(self) -> bool:
        drained = self._rx.buffered == 0
        return bool(self._host_says & Shutdown.RECEIVE or (self._guest_said & Shutdown.SEND and drained))

    def _settle(self) -> None:
        """Say what follows from both sides' shutdowns."""
        if self.ending is not None:
            return
        if self._guest_said == Shutdown.BOTH and self._finished_from_guest:
            self._reset_guest()
            self._end_closed()
            return
        says = self._host_says
        if self._finished_to_guest and self._finished_from_guest:
            # Neither direction carries anything any more, whoever ended which.
            says = Shutdown.BOTH
            self._note_closer(Side.PARENT, "both sides finished")
        if says != self._told:
            self._told = says
            self._send(Op.SHUTDOWN, flags=says)
        if self._told == Shutdown.BOTH and self._timer is None:
            self._await_reset()

    def _await_reset(self) -> None:
        """The guest answers our goodbye with RST; Linux as the closing side waits 8 s, then resets by itself."""
        unread = self._tx.in_flight

        def overdue() -> None:
            if unread and (self._tx.in_flight != unread or not self._asked_at_close):
                # A reset would take from a slow reader what it has not read: ask how far it is, and go on waiting
                # as long as it gets further.
                self._asked_at_close = True
                self._send(Op.CREDIT_REQUEST)
                self._await_reset()
            else:
                self._reset_guest()
                self._end_closed()

        self._timer = self._carrier.timer(self._close_timeout, overdue)

    def _note_closer(self, who: Side, why: str) -> None:
        if self._closer is None:
            self._closer = (who, why)

    def _end_closed(self) -> None:
        who, why = self._closer or (Side.GUEST, "")
        self._end(Change.CLOSED, who, why)

    def _end(self, change: Change, who: Side, why: str) -> None:
        self._stop_timer()
        self.ending = Ending(change, who, why)
        self._carrier.forget(self)
        self._publish(change, who, why)
        self.host.ended(self.ending)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reset_guest(self) -> None:
        dropped = self._carrier.drop_waiting(self.key)
        if self._connecting and dropped:
            return  # the REQUEST never left: the guest knows nothing of this connection
        self._carrier.send(self._packet(Op.RST))

    def _send(self, op: Op, *, flags: int = 0, payload: bytes = b"") -> None:
        self._carrier.send(self._packet(op, flags, payload), self._rx)

    def _packet(self, op: Op, flags: int = 0, payload: bytes = b"") -> Packet:
        host_cid, host_port, guest_port = self.key
        return Packet(
            host_cid, self._carrier.guest_cid, host_port, guest_port, op, SocketType.STREAM, int(flags), payload=payload
        )

    def _publish(self, change: Change, who: Side, why: str) -> None:
        self._carrier.publish(
            VsockConnection(
                change, *self.key[:2], self._carrier.guest_cid, self.key.guest_port, self.opened_by, who, why,
                self.bytes_from_guest, self.bytes_to_guest,
            )
        )  # fmt: skip
