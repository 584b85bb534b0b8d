"""What is known about one connected client, and the vocabulary that the packet handlers share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import Any, TypeVar

from enclavedbg.errors import EnclaveDbgError, GuestFault, ProtocolError
from enclavedbg.gdbstub.early import LinkMap
from enclavedbg.gdbstub.monitor import MonitorTable
from enclavedbg.gdbstub.packets import PointKind, Request, ThreadId
from enclavedbg.gdbstub.target import DebugTarget, Verdict

PROCESS = 1
"""The machine, as clients see it."""

VCPU = 1
"""Its one thread."""

_FAULT, _INVALID, _FAILED = "14", "22", "01"


class Dialect(Flag):
    """Who is at the other end, told by the first packets; OTHER until then."""

    OTHER = auto()
    GDB = auto()
    LLDB = auto()
    ANY = OTHER | GDB | LLDB


class Deferred(Enum):
    """Instead of a reply: what the session does before, or in place of, one."""

    RUN = auto()
    """The machine goes on; the reply comes with its next stop."""
    STEP = auto()
    """As RUN, for one instruction."""
    SILENCE = auto()
    """No reply at all, and the connection ends."""
    GOODBYE = auto()
    """`OK`, and the connection ends."""


Reply = bytes | Deferred | Awaitable[bytes]
"""A packet's body, or what leads to it."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the server offers to every client besides the machine.

    `symbols` gives the symbol file and raises SymbolError when there is none; None when none is served.
    `end_guest` ends the run for good.
    """

    target: DebugTarget
    commands: MonitorTable
    symbols: Callable[[], Awaitable[bytes]] | None = None
    end_guest: Callable[[], object] | None = None
    link_map: LinkMap | None = None


@dataclass(slots=True)
class Client:
    """The state of one connection, shared by all handlers."""

    services: Services
    owner: str
    """Under this name its breakpoints are kept in the machine."""
    console: Callable[[str], None]
    """Shows text in the client's terminal; allowed only just before a stop reply or a `monitor` reply."""
    dialect: Dialect = Dialect.OTHER
    offered: frozenset[str] = frozenset()
    """What the client wrote in qSupported."""
    acknowledge: bool = True
    error_strings: bool = False
    """LLDB's own way to ask for text in errors."""
    list_threads: bool = False
    told_verdict: bool = False
    verdict: Verdict | None = None
    """As the machine's event brought it."""
    points: dict[PointKind, dict[int, int]] = field(default_factory=lambda: {kind: {} for kind in PointKind})
    """This client's breakpoints and watchpoints: length by address."""
    files: dict[int, bytes] = field(default_factory=dict)
    """Open virtual files by descriptor."""

    @property
    def target(self) -> DebugTarget:
        return self.services.target

    @property
    def multiprocess(self) -> bool:
        """Whether thread ids carry a process."""
        return "multiprocess+" in self.offered

    @property
    def thread(self) -> str:
        """The id of the one thread, as this client wants it."""
        return f"p{PROCESS}.{VCPU}" if self.multiprocess else f"{VCPU}"

    def check_thread(self, thread: ThreadId | None) -> None:
        """ProtocolError unless `thread` (None: the selected one) is the machine's."""
        if thread is not None and not thread.covers(PROCESS, VCPU):
            raise ProtocolError(f"there is no thread {thread.tid} in process {thread.pid}; the only one is 1.1")

    def error(self, error: EnclaveDbgError) -> bytes:
        """The error reply, with its sentence if the client understands that."""
        match error:
            case GuestFault():
                code = _FAULT
            case ProtocolError():
                code = _INVALID
            case _:
                code = _FAILED
        if self.error_strings:
            return f"E{code};{str(error).encode().hex()}".encode()
        if "error-message+" in self.offered:
            return f"E.{error}".encode("utf-8", "replace")
        return f"E{code}".encode()


@dataclass(frozen=True, slots=True)
class Feature:
    """A word of the qSupported reply, and who may be told."""

    text: str
    dialects: Dialect = Dialect.ANY


@dataclass(frozen=True, slots=True)
class Handler:
    """What answers one kind of request. `stopped`: the first of these stops a running machine."""

    run: Callable[[Client, Any], Reply]
    features: tuple[Feature, ...]
    stopped: bool


_R = TypeVar("_R", bound=Request)


class HandlerTable:
    """Handlers by the request that they answer; the decorator is the only way in, so features are never loose."""

    def __init__(self) -> None:
        self.handlers: dict[type, Handler] = {}

    def handles(
        self, request: type[_R], *features: Feature, stopped: bool = False
    ) -> Callable[[Callable[[Client, _R], Reply]], Callable[[Client, _R], Reply]]:
        """Register the decorated function for `request`, and announce `features` because of it."""

        def register(run: Callable[[Client, _R], Reply]) -> Callable[[Client, _R], Reply]:
            self.handlers[request] = Handler(run, features, stopped)
            return run

        return register


def merge(*tables: HandlerTable) -> Mapping[type, Handler]:
    """All handlers of several tables."""
    return {request: handler for table in tables for request, handler in table.handlers.items()}
