"""What the secure module tells the event stream."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from enclavedbg.nsm.wire import ErrorAnswer, ExtendedPcr, Locked, PcrDescription, Request, Response


def _brief(value: object) -> str:
    """A field for one line: byte strings by length only, as they may hold what should not be shown."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case bytes():
            return f"{len(value)} bytes"
        case tuple():
            return str(len(value))
        case _:
            return str(value)


def _listing(message: Request | Response) -> str:
    if isinstance(message, PcrDescription | ExtendedPcr):
        # A register's value is public; its start is enough to tell it from others.
        lock = f"lock={_brief(message.lock)} " if isinstance(message, PcrDescription) else ""
        return f"{lock}data={message.data.hex()[:16]}..."
    return " ".join(f"{f.name}={_brief(getattr(message, f.name))}" for f in fields(message))


@dataclass(frozen=True, slots=True)
class NsmRequest:
    """A request came and is not answered yet. `request` is None when it did not decode; `size` is in bytes.

    `fault` is what one will do to it.
    """

    kind: ClassVar[str] = "nsm.request"
    request: Request | None
    size: int
    fault: str = ""

    @property
    def name(self) -> str:
        """The request's name on the wire, `?` when it did not decode."""
        return self.request.name if self.request else "?"

    def summary(self) -> str:
        return _asked(self.request, self.size) + _faulty(self.fault)


def _asked(request: Request | None, size: int) -> str:
    return f"{request.name} {_listing(request)}".rstrip() if request else f"{size} bytes"


def _faulty(fault: str) -> str:
    return f" [fault: {fault}]" if fault else ""


@dataclass(frozen=True, slots=True)
class NsmExchange:
    """A request and its answer. `request` is None when it did not decode; `reason` says why an error was given.

    `response` is the answer as the module made it, None when a fault dropped it; `fault` says what one did. Sizes are
    bytes on the virtqueue, `duration_ns` the time that answering took, without a fault's delay.
    """

    kind: ClassVar[str] = "nsm.exchange"
    request: Request | None
    response: Response | None
    reason: str
    request_size: int
    response_size: int
    duration_ns: int
    fault: str = ""

    @property
    def name(self) -> str:
        """The request's name on the wire, `?` when it did not decode."""
        return self.request.name if self.request else "?"

    @property
    def error(self) -> str | None:
        """The error's name on the wire, None when the request was fulfilled."""
        return self.response.code.name if isinstance(self.response, ErrorAnswer) else None

    def summary(self) -> str:
        if self.response is None:
            got = "no answer"
        elif self.error:
            got = f"{self.error} ({self.reason})"
        elif isinstance(self.response, Locked):
            got = "ok"
        else:
            got = _listing(self.response)
        asked = _asked(self.request, self.request_size)
        return f"{asked} -> {got}, {self.duration_ns / 1e6:.1f} ms{_faulty(self.fault)}"


@dataclass(frozen=True, slots=True)
class PcrChange:
    """A register was extended or locked; `value` is what it holds now."""

    kind: ClassVar[str] = "nsm.pcr"
    index: int
    action: str
    """`extended` or `locked`."""
    value: bytes

    def summary(self) -> str:
        return f"PCR{self.index} {self.action}: {self.value.hex()}"


NsmEvent = NsmRequest | NsmExchange | PcrChange
