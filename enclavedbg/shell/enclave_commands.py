"""Commands about the enclave: its state, measurements, secure module, vsock, console and events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from enclavedbg.machine.console import printable
from enclavedbg.machine.events import Record
from enclavedbg.shell.machine_commands import COMMANDS, number, where
from enclavedbg.shell.render import event_line
from enclavedbg.shell.session import Session
from enclavedbg.shell.table import CommandError
from enclavedbg.shell.text import Text, fields, joined, lines, seconds, size

if TYPE_CHECKING:
    from enclavedbg.nsm.verify import VerifiedDocument

DEFAULT_LINES = 20
ANSWER_SECONDS = 1.0
ANSWER_LIMIT = 1 << 16
ANSWER_LINES = 100


@COMMANDS.add("status", "info")
async def status(session: Session, words: list[str]) -> Text:
    """Show what runs, for how long, and what it has done."""
    enclave = session.enclave
    rows: list[tuple[str, str | Text]] = [
        ("enclave", state_text(session)),
        ("guest time", f"{enclave.clock.guest_ns() / 1e9:.3f} s"),
        ("image", f"{size(enclave.image.size)}, {enclave.image.architecture}, {len(enclave.image.sections)} sections"),
        ("PCR0", enclave.measurements.pcr0.hex()),
        ("memory", size(enclave.memory.size)),
        ("vsock", f"CID {enclave.vsock.guest_cid}, {counted(len(enclave.vsock.connections()), 'connection')} open"),
        ("secure module", counted(len(enclave.events.history("nsm.exchange")), "exchange")),
        ("console", counted(enclave.console.text().count("\n"), "line")),
        *session.notes.items(),
    ]
    text = fields(rows)
    if not session.target.running and enclave.verdict is None:
        text += await where(session)
    return text


@COMMANDS.add("pcrs", usage="[all]", completes="all")
async def pcrs(session: Session, words: list[str]) -> Text:
    """Show the measurements as the secure module holds them, against those of the image file."""
    if words not in ([], ["all"]):
        raise CommandError("expected: pcrs [all]")
    bank = session.enclave.nsm.bank
    measured = session.enclave.measurements.as_mapping()
    rows: list[Text] = []
    for index, value in enumerate(bank.values()):
        if not words and not any(value) and index not in measured:
            continue
        locked, _ = bank.describe(index)
        row: Text = [("name", f"PCR{index:<2} "), ("", value.hex()), ("dim", " locked" if locked else " open  ")]
        if index in measured:
            same = measured[index] == value
            row.append(
                ("good", "  = file") if same else ("bad", f"  the file has {measured[index].hex()[:16]}...")
            )
        rows.append(row)
    return joined(rows)


@COMMANDS.add("nsm", usage="[COUNT]")
async def nsm(session: Session, words: list[str]) -> Text:
    """Show the last exchanges with the secure module."""
    return _history(session, "nsm", words, "No program has talked to the secure module yet.")


@COMMANDS.add("attest", usage="[USER-DATA] [NONCE]")
async def attest(session: Session, words: list[str]) -> Text:
    """Ask for an attestation document and show it decoded and verified."""
    if len(words) > 2:
        raise CommandError("expected: attest [USER-DATA] [NONCE]; quote what has spaces")
    fields_ = [word.encode() for word in words] + [None, None]
    document, verified = await asyncio.to_thread(_attest, session, fields_[0], fields_[1])
    return describe_document(document, verified)


def _attest(session: Session, user_data: bytes | None, nonce: bytes | None) -> tuple[bytes, VerifiedDocument]:
    from enclavedbg.nsm.verify import verify

    module = session.enclave.nsm
    document = module.attest(user_data=user_data, nonce=nonce)
    verified = verify(
        document, root=module.authority.root(), user_data=user_data, nonce=nonce, allow_debug=module.debug_mode
    )
    return document, verified


def describe_document(raw: bytes, verified: VerifiedDocument) -> Text:
    """A verified attestation document, field by field."""
    document = verified.document
    rows: list[tuple[str, str | Text]] = [
        ("module id", document.module_id),
        ("time", f"{document.timestamp:%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"),
        ("digest", document.digest),
    ]
    zeros = [f"{index}" for index, value in document.pcrs.items() if not any(value)]
    rows += [(f"PCR{index}", value.hex()) for index, value in document.pcrs.items() if any(value)]
    if zeros:
        rows.append(("zero PCRs", ", ".join(zeros)))
    for name in ("public_key", "user_data", "nonce"):
        value: bytes | None = getattr(document, name)
        rows.append((name.replace("_", " "), "none" if value is None else f"{size(len(value))}: {_excerpt(value)}"))
    rows.append(
        ("chain", f"{len(document.cabundle)} certificates and the leaf, root {verified.root_fingerprint.hex()}")
    )
    rows.append(("size", size(len(raw))))
    rows.append(("verified", [("good", "signature, chain and times hold, against the development root (not AWS's)")]))
    return fields(rows)


def _excerpt(value: bytes) -> str:
    text = value.decode("ascii", "replace")
    return text if text.isprintable() and "\ufffd" not in text and len(text) <= 60 else value[:32].hex()


@COMMANDS.add("vsock", usage="[packets [COUNT] | send PORT TEXT]", completes="packets|send")
async def vsock(session: Session, words: list[str]) -> Text:
    """Show connections and services or the last packets; or send a line to a port of the guest, and its answer."""
    if words and words[0] == "packets":
        return _history(session, "vsock.packet", words[1:], "No packet has crossed yet.")
    if len(words) >= 2 and words[0] == "send":
        return await _send(session, number(words[1], "a port"), " ".join(words[2:]))
    if words:
        raise CommandError("expected: vsock, vsock packets [COUNT] or vsock send PORT TEXT")
    switch = session.enclave.vsock
    rows: list[Text] = [[("name", "guest     host         state         by        from guest  to guest  endpoint")]]
    for c in switch.connections():
        ends = f"{c.guest_port:<10}{c.host_cid}:{c.host_port:<11}"
        counts = f"{c.bytes_from_guest:>10}  {c.bytes_to_guest:>8}"
        rows.append([("", f"{ends}{c.state.value:<14}{c.opened_by.value:<10}{counts}  {c.endpoint}")])
    if len(rows) == 1:
        rows = [[("", "No connection is open.")]]
    served = ", ".join(f"{port} ({name})" for port, name in switch.services().items())
    rows.append([("dim", f"The parent serves: {served or 'nothing'}")])
    past = session.enclave.events.history("vsock.connection")
    rows += [event_line(record) for record in past[-10:]]
    return joined(rows)


async def _send(session: Session, port: int, line: str) -> Text:
    """Connect to a port, send a line, and show what comes back until the guest pauses."""
    answer = bytearray()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async with await session.enclave.vsock.connect(port, label="shell") as stream:
                await stream.write(line.encode() + b"\n")
                while piece := await stream.read():
                    answer += piece
                    if len(answer) > ANSWER_LIMIT:
                        break
    except TimeoutError:
        if not answer:
            what = "the enclave is stopped" if not session.target.running else "its program does not serve that port"
            raise CommandError(f"port {port} did not answer within {ANSWER_SECONDS:.0f} s; perhaps {what}") from None
    return joined([("", printable(row))] for row in bytes(answer[:ANSWER_LIMIT]).split(b"\n")[:ANSWER_LINES] if row)


@COMMANDS.add("console", usage="[COUNT|all]", completes="all")
async def console(session: Session, words: list[str]) -> Text:
    """Show the last lines of the serial console."""
    count = number(words[0], "a count") if words and words != ["all"] else DEFAULT_LINES
    records = session.enclave.events.history("console")
    if not records:
        return lines("The console is empty so far.")
    return joined(event_line(record) for record in records[-count if words != ["all"] else 0 :] if count)


@COMMANDS.add("events", usage="[on|off] [KIND] [COUNT]", completes="event", monitor=False)
async def events(session: Session, words: list[str]) -> Text:
    """Show past events; on KIND and off KIND choose what appears above the prompt."""
    if words and words[0] in ("on", "off"):
        if len(words) > 2:
            raise CommandError("expected: events on KIND or events off KIND, e.g. events on vsock.packet")
        return _choose(session, words[0], words[1] if len(words) == 2 else None)
    kind = words.pop(0) if words and not words[0].isdigit() else ""
    return _history(session, kind, words, "Nothing of that kind has happened yet.")


def _choose(session: Session, how: str, kind: str | None) -> Text:
    if kind is not None and how == "on":
        session.live.add(kind)
    elif kind is not None:
        session.live = {k for k in session.live if k != kind and not k.startswith(kind + ".")}
    elif how == "off":
        session.live.clear()
    return lines(f"Shown as they happen: {', '.join(sorted(session.live)) or 'stops, warnings and the end only'}")


def _history(session: Session, kind: str, words: list[str], nothing: str) -> Text:
    if len(words) > 1:
        raise CommandError("expected one count at most")
    count = number(words[0], "a count") if words else DEFAULT_LINES
    records: list[Record] = session.enclave.events.history(kind)
    if not records:
        return lines(nothing)
    text = joined(event_line(record) for record in records[-count:] if count)
    if len(records) > count:
        text = lines(f"({counted(len(records) - count, 'earlier event')})", "dim") + text
    return text


def state_text(session: Session) -> Text:
    """Running, stopped or ended, in one phrase."""
    verdict = session.enclave.verdict
    if verdict is not None:
        return [("good" if verdict.exit_status == 0 else "bad", verdict.line)]
    if session.target.running:
        return [("good", "running")]
    stops = session.enclave.events.history("stop")
    return [("warn", f"stopped: {stops[-1].event.summary()}" if stops else "stopped, not started yet")]


def counted(count: int, what: str) -> str:
    """`1 line`, `5 lines`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


__all__ = ["COMMANDS", "counted", "describe_document", "seconds", "state_text"]


@COMMANDS.add("help", "?", usage="[COMMAND]", completes="command", monitor=False)
async def help_(session: Session, words: list[str]) -> Text:
    """List the commands, or show one."""
    return COMMANDS.help(words[0] if words else None)


@COMMANDS.add("quit", "exit", "q", monitor=False)
async def quit_(session: Session, words: list[str]) -> Text:
    """End the enclave and leave."""
    session.ended.set()
    return []
