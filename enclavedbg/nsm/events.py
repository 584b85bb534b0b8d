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
class NsmExchange:
    """A request and its answer. `request` is None when it did not decode; `reason` says why an error was given.

    Sizes are bytes on the virtqueue, `duration_ns` the time that answering took.
    """

    kind: ClassVar[str] = "nsm.exchange"
    request: Request | None
    response: Response
    reason: str
    request_size: int
    response_size: int
    duration_ns: int

    @property
    def name(self) -> str:
        """The request's name on the wire, `?` when it did not decode."""
        return self.request.name if self.request else "?"

    @property
    def error(self) -> str | None:
        """The error's name on the wire, None when the request was fulfilled."""
        return self.response.code.name if isinstance(self.response, ErrorAnswer) else None

    def summary(self) -> str:
        asked = f"{self.name} {_listing(self.request)}".rstrip() if self.request else f"{self.request_size} bytes"
        if self.error:
            got = f"{self.error} ({self.reason})"
        elif isinstance(self.response, Locked):
            got = "ok"
        else:
            got = _listing(self.response)
        return f"{asked} -> {got}, {self.duration_ns / 1e6:.1f} ms"


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


NsmEvent = NsmExchange | PcrChange
