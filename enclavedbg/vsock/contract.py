"""What a connection is to others: its states, its end, its snapshot, and what it needs of both its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from enclavedbg.vsock.credit import ReceiveCredit
from enclavedbg.vsock.events import Change, Side, VsockConnection
from enclavedbg.vsock.packet import Key, Packet

if TYPE_CHECKING:
    from enclavedbg.vsock.connection import Connection


class State(Enum):
    """Where a connection is in its life."""

    CONNECTING = "connecting"
    ESTABLISHED = "established"
    GUEST_FINISHED = "half-closed by the guest"
    PARENT_FINISHED = "half-closed by the parent"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended; `clean` when nothing was lost."""

    change: Change
    who: Side
    why: str

    @property
    def clean(self) -> bool:
        return self.change is Change.CLOSED


class HostSide(Protocol):
    """The parent's end of a connection. It never gets more unread bytes than our advertised buffer."""

    label: str
    """What it is, for people: a path or a service's name."""

    def established(self, connection: Connection) -> None:
        """Data may flow."""
        ...

    def deliver(self, payload: bytes) -> None:
        """Bytes from the guest; report them with `Connection.consumed` when they are really passed on."""
        ...

    def window_open(self) -> None:
        """`Connection.window` was 0 and is no more."""
        ...

    def guest_finished(self) -> None:
        """The guest will send no more than was delivered."""
        ...

    def guest_deaf(self) -> None:
        """The guest will receive no more."""
        ...

    def ended(self, ending: Ending) -> None:
        """The connection is over. Bytes already delivered still belong to the consumer."""
        ...


class Timer(Protocol):
    """A pending time-out."""

    def cancel(self) -> None: ...


class Carrier(Protocol):
    """What a connection needs of the switch."""

    guest_cid: int

    def send(self, packet: Packet, credit: ReceiveCredit | None = None) -> None:
        """Queue a packet for the guest."""
        ...

    def forget(self, connection: Connection) -> None:
        """The connection is over: free its key."""
        ...

    def drop_waiting(self, key: Key) -> bool:
        """Forget packets of a connection that the guest has not taken; whether there were any."""
        ...

    def publish(self, event: VsockConnection) -> object: ...

    def timer(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back after that much of the guest's time."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """A connection at one moment, for people. Sizes in bytes, `age_ns` in the guest's time."""

    host_cid: int
    host_port: int
    guest_cid: int
    guest_port: int
    state: State
    opened_by: Side
    endpoint: str
    bytes_from_guest: int
    bytes_to_guest: int
    unread: int
    """Bytes from the guest that our side has not taken."""
    may_send: int
    """Credit towards the guest."""
    guest_may_send: int
    """Credit that the guest has."""
    age_ns: int
