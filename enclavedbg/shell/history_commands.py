"""Commands about what has happened: the console, the kernel's log, the events."""

from __future__ import annotations

from typing import TypeVar

from enclavedbg.machine.console import printable
from enclavedbg.machine.events import Record
from enclavedbg.shell.machine_commands import COMMANDS, number
from enclavedbg.shell.render import KINDS, event_line
from enclavedbg.shell.session import LIVE, Session
from enclavedbg.shell.table import CommandError
from enclavedbg.shell.text import Text, counted, joined, lines

_T = TypeVar("_T")

DEFAULT_LINES = 20

_LEVEL_STYLES = {0: "bad", 1: "bad", 2: "bad", 3: "bad", 4: "warn"}
"""By the level of a message in the kernel's log: errors and warnings stand out."""


@COMMANDS.add("console", usage="[N|all]", completes="all")
async def console(session: Session, words: list[str]) -> Text:
    """Show the last lines of the serial console.

    20 lines, N or all; each with the guest's time when it came.
    """
    records = session.enclave.events.history("console")
    if not records:
        return lines("The console is empty so far.")
    return joined(event_line(record, whole=True) for record in _last(records, words))


@COMMANDS.add("dmesg", "log", usage="[N|all]", completes="all")
async def dmesg(session: Session, words: list[str]) -> Text:
    """Show the kernel's log, read from its memory.

    20 messages, N or all; also those that the console's level kept back. The machine must be stopped.
    """
    from enclavedbg.kernel.log import read_log

    session.target.state()  # says at once that a running machine must be stopped
    records = read_log(session.target.read_virtual, await session.symbols(), await session.types())
    rows: list[Text] = []
    for record in _last(records, words):
        style = _LEVEL_STYLES.get(record.level, "")
        stamp = f"{record.time_ns / 1e9:9.3f} "
        for text in record.text.split("\n"):
            rows.append([("dim", stamp), (style, printable(text.encode()))])
            stamp = " " * len(stamp)
    return joined(rows) if rows else lines("The kernel has logged nothing yet.")


@COMMANDS.add("events", usage="[on|off] [KIND] [N]", completes="event", monitor=False)
async def events(session: Session, words: list[str]) -> Text:
    """Show past events, or choose what is shown live.

    events nsm 5             the last five of a kind
    events on vsock.packet   shown above the prompt from now on
    events off               nothing but stops, warnings and the end
    """
    if words and words[0] in ("on", "off"):
        if len(words) > 2:
            raise CommandError("expected: events on KIND or events off KIND, e.g. events on vsock.packet")
        return _choose(session, words[0], words[1] if len(words) == 2 else None)
    kind = words.pop(0) if words and not words[0].isdigit() else ""
    seen = ", ".join(sorted({record.event.kind for record in session.enclave.events.history()}))
    return history(session, kind, words, f"Nothing of that kind has happened. There were: {seen}")


def _choose(session: Session, how: str, kind: str | None) -> Text:
    if kind is not None and not any(k == kind or k.startswith(kind + ".") for k in KINDS):
        raise CommandError(f"there are no events of kind {kind!r}; there are {', '.join(KINDS)}")
    if kind is not None and how == "on":
        session.live.add(kind)
    elif kind is not None:
        session.live = {k for k in session.live if k != kind and not k.startswith(kind + ".")}
    elif how == "off":
        session.live.clear()
    else:
        session.live |= LIVE
    return lines(f"Shown as they happen: {', '.join(sorted(session.live)) or 'stops, warnings and the end only'}")


def history(session: Session, kind: str, words: list[str], nothing: str) -> Text:
    """The last events of a kind, as many as the word says."""
    return shown_history(session.enclave.events.history(kind), words, nothing)


def shown_history(records: list[Record], words: list[str], nothing: str) -> Text:
    """The last of some events, as many as the word says; `nothing` is what to say where there are none."""
    if not records:
        return lines(nothing)
    last = _last(records, words)
    text = joined(event_line(record) for record in last)
    if len(records) > len(last):
        text = lines(f"({counted(len(records) - len(last), 'earlier event')})", "dim") + text
    return text


def _last(records: list[_T], words: list[str]) -> list[_T]:
    if words == ["all"]:
        return records
    if len(words) > 1:
        raise CommandError("expected one count at most")
    count = number(words[0], "a count") if words else DEFAULT_LINES
    return records[-count:] if count else []
