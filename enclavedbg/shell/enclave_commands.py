"""Commands about the enclave: its state, measurements, secure module, vsock, console and events."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from enclavedbg.errors import EnclaveDbgError
from enclavedbg.machine.console import printable
from enclavedbg.machine.events import GuestStopped
from enclavedbg.nsm.encoding import value_bytes
from enclavedbg.shell.history_commands import history
from enclavedbg.shell.machine_commands import COMMANDS, number, where
from enclavedbg.shell.render import event_line
from enclavedbg.shell.session import Session
from enclavedbg.shell.table import CommandError
from enclavedbg.shell.text import Text, counted, fields, hexdump, joined, lines, size

ANSWER_SECONDS = 5.0
"""For the first byte: longer than a delay that a fault is likely to make."""
PAUSE_SECONDS = 0.2
"""The guest's answer is whole when it says nothing more for so long."""

ANSWER_LIMIT = 1 << 16
ANSWER_LINES = 100
DUMPED = 64
"""Bytes shown of an answer that is no text."""

_BYTES = ("hex:", "base64:", "text:")


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


@COMMANDS.add("vsock", usage="[packets|send ...]", completes="packets|send")
async def vsock(session: Session, words: list[str]) -> Text:
    """Show connections or packets; send a line to a port.

    vsock                      connections, and what the parent serves
    vsock packets [N]          the last packets
    vsock send 5000 hello      connects to port 5000 of the guest, and shows what it answers
    vsock send 5001 hex:00ff   the same with bytes, and no line end
    It waits five seconds for an answer; Ctrl-C gives it up before.
    """
    if words and words[0] == "packets":
        return history(session, "vsock.packet", words[1:], "No packet has crossed yet.")
    if len(words) >= 2 and words[0] == "send":
        return await _send(session, number(words[1], "a port"), " ".join(words[2:]))
    if words:
        raise CommandError("expected: vsock, vsock packets [N] or vsock send PORT TEXT")
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
    session.require_alive()
    if not session.target.running:
        raise CommandError(f"the enclave is stopped, and port {port} cannot answer; continue first")
    sent = value_bytes(line) if line.startswith(_BYTES) else line.encode() + b"\n"
    received = bytearray()
    answer = asyncio.create_task(_exchange(session, port, sent, received))
    try:
        with session.stops() as stopped:
            either: set[asyncio.Future[Any]] = {answer, stopped}
            await asyncio.wait(either, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
                return _answer_lines(received)
            if not stopped.done():
                raise CommandError(f"port {port} did not answer within {ANSWER_SECONDS:.0f} s")
            if session.enclave.verdict is not None and received:
                answer.cancel()
                return _answer_lines(received)
            stopped.result()
    except BaseException:
        answer.cancel()
        raise
    session.later(_late_answer(session, answer, received))
    return lines(f"The machine stopped before port {port} answered; its answer comes when it goes on.", "dim")


async def _exchange(session: Session, port: int, sent: bytes, answer: bytearray) -> None:
    """Fill `answer` until the guest ends or pauses."""
    async with await session.enclave.vsock.connect(port, label="shell") as stream:
        await stream.write(sent)
        answer += await stream.read()
        with suppress(TimeoutError):
            while len(answer) < ANSWER_LIMIT and (piece := await asyncio.wait_for(stream.read(), PAUSE_SECONDS)):
                answer += piece


def _answer_lines(answer: bytearray) -> Text:
    text = bytes(answer).decode("utf-8", "backslashreplace")
    if sum(not c.isprintable() and not c.isspace() for c in text) > len(text) // 10:
        more = f", the first {DUMPED} of them:" if len(answer) > DUMPED else ":"
        return lines(f"{counted(len(answer), 'byte')}{more}") + hexdump(0, bytes(answer[:DUMPED]))
    return joined([("", printable(row))] for row in bytes(answer[:ANSWER_LIMIT]).split(b"\n")[:ANSWER_LINES] if row)


async def _late_answer(session: Session, answer: asyncio.Task[None], received: bytearray) -> None:
    try:
        await answer
        text = _answer_lines(received)
    except EnclaveDbgError as error:
        text = lines(str(error), "bad")
    finally:
        answer.cancel()
    if session.tell is not None:
        session.tell(text)


def state_text(session: Session) -> Text:
    """Running, stopped or ended, in one phrase."""
    verdict = session.enclave.verdict
    if verdict is not None:
        return [("good" if verdict.exit_status == 0 else "bad", verdict.line)]
    if session.target.running:
        return [("good", "running")]
    stops = session.enclave.events.history("stop")
    if not stops:
        return [("warn", "stopped before its first instruction")]
    stop = stops[-1].event
    assert isinstance(stop, GuestStopped)
    name = session.name_of(stop.rip)
    return [("warn", f"stopped: {stop.reason} at {name}" if name else f"stopped: {stop.summary()}")]


@COMMANDS.add("help", "?", usage="[COMMAND]", completes="command", monitor=False)
async def help_(session: Session, words: list[str]) -> Text:
    """List the commands, or show one."""
    return COMMANDS.help(words[0] if words else None)


@COMMANDS.add("quit", "exit", "q", monitor=False)
async def quit_(session: Session, words: list[str]) -> Text:
    """End the enclave and leave."""
    session.ended.set()
    return []
