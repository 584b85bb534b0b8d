"""Events as lines for a person."""

from __future__ import annotations

import re

from enclavedbg.machine.events import Event, Record
from enclavedbg.shell.text import Text, seconds

_STYLES = {
    "console": "",
    "boot": "good",
    "warning": "warn",
    "stop": "value",
    "resume": "dim",
    "verdict": "value",
    "nsm": "name",
    "vsock": "code",
}

ALWAYS = ("stop", "resume", "warning", "verdict")
"""Kinds that are shown live whatever the person chose."""


KINDS = (
    "boot",
    "console",
    "nsm.exchange",
    "nsm.pcr",
    "nsm.request",
    "resume",
    "stop",
    "verdict",
    "vsock.connection",
    "vsock.heartbeat",
    "vsock.packet",
    "warning",
)
"""All kinds of events, to choose from; their beginnings (`nsm`) mean all below."""

_KERNEL_TIME = re.compile(r"\[ *[0-9]+\.[0-9]{6}\] ")


def event_line(record: Record, *, whole: bool = False, name: str | None = None) -> Text:
    """`   1.234 kind: what happened`, in the colour of its kind.

    The kernel's own time on a console line would be there twice; it is left out unless the line is to be `whole`.
    `name` is what lies at the address of a stop.
    """
    kind = record.event.kind
    style = _STYLES.get(kind.partition(".")[0], "")
    if kind == "verdict":
        style = "good" if getattr(record.event, "exit_status", 1) == 0 else "bad"
    label = "" if kind == "console" else f"{kind}: "
    # A summary may hold what the guest sent; the console's own escaping does not cover the other kinds.
    text = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in _summary(record))
    if kind == "console" and not whole:
        text = _KERNEL_TIME.sub("", text, count=1) if text.startswith("[") else text
    if name is not None:
        text += f" ({name})"
    return [("dim", f"{seconds(record.guest_ns)} "), (style, f"{label}{text}")]


def _summary(record: Record) -> str:
    return record.event.summary().rstrip("\n")


def wanted(event: Event, kinds: set[str]) -> bool:
    """Whether an event is to be shown live: its kind or a beginning of that (`vsock`) was chosen.

    Linux fetches random numbers every second; those exchanges are in the history, but not worth a line each.
    """
    kind = event.kind
    unremarkable = not getattr(event, "error", None) and not getattr(event, "fault", "")
    if getattr(event, "name", "") == "GetRandom" and unremarkable:
        return False
    return kind in ALWAYS or any(kind == chosen or kind.startswith(chosen + ".") for chosen in kinds)
