"""The prompt: reads commands, shows what they answer, and the machine's events above it as they happen."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from enclavedbg.errors import EnclaveDbgError
from enclavedbg.machine.events import Record
from enclavedbg.shell.completion import ShellCompleter
from enclavedbg.shell.enclave_commands import COMMANDS, state_text
from enclavedbg.shell.render import event_line, wanted
from enclavedbg.shell.session import Session
from enclavedbg.shell.text import STYLES, Text, joined, lines, plain, styled

log = logging.getLogger(__name__)

BURST = 200
"""Events shown at a time; a guest that prints more between two looks is not shown line by line."""


BATCH_SECONDS = 0.02
"""Events of so long are drawn at once, as each drawing moves the prompt."""


class Interrupted(Exception):
    """The person pressed Ctrl-C on an empty line."""


def history_file(environ: Mapping[str, str]) -> Path:
    """Where typed lines are kept: $XDG_STATE_HOME/enclavedbg/history, by default under ~/.local/state."""
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path(environ.get("HOME", "~")).expanduser() / ".local/state"
    return base / "enclavedbg" / "history"


def open_history(environ: Mapping[str, str]) -> History:
    """The history file, or one in memory where no file can be written."""
    path = history_file(environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a"):
            pass
    except OSError as error:
        log.info("no history is kept: %s", error)
        return InMemoryHistory()
    return FileHistory(str(path))


class Shell:
    """The interactive shell over one session.

    Input, output and `show` can be given, for tests and recordings: `show` takes every text for the person.
    `greeting` comes first.
    """

    def __init__(
        self,
        session: Session,
        *,
        input: Input | None = None,
        output: Output | None = None,
        history: History | None = None,
        show: Callable[[Text], None] | None = None,
        greeting: str = "",
    ) -> None:
        self._session = session
        self._greeting = greeting
        self._style = Style.from_dict(STYLES)
        self._show = show or self._print
        self._patched = show is None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Record] = deque(maxlen=BURST)
        self._missed = 0
        self._scheduled = False
        self._prompt: PromptSession[str] = PromptSession(
            history=history or open_history(os.environ),
            completer=ShellCompleter(session, COMMANDS),
            complete_while_typing=False,
            bottom_toolbar=self._toolbar,
            refresh_interval=0.5,
            style=self._style,
            key_bindings=_bindings(),
            input=input,
            output=output,
        )

    async def run(self) -> None:
        """Read and run commands until `quit` or the end of input; raises Interrupted on Ctrl-C."""
        self._loop = asyncio.get_running_loop()
        unsubscribe = self._session.enclave.events.subscribe(self._hear, replay=True)
        patched: AbstractContextManager[Any] = patch_stdout(raw=True) if self._patched else nullcontext()
        try:
            with patched:
                self._show(lines(self._greeting, "dim"))
                while not self._session.ended.is_set():
                    await self._once()
        finally:
            unsubscribe()
            self._flush()

    async def _once(self) -> None:
        try:
            line = await self._prompt.prompt_async(
                [("class:name", "enclavedbg"), ("", "> ")],
                handle_sigint=False,  # whoever runs us has a handler, and keeps it
            )
        except EOFError:
            self._session.ended.set()
            return
        except KeyboardInterrupt:
            raise Interrupted from None
        try:
            text = await COMMANDS.run(self._session, line)
        except EnclaveDbgError as error:
            text = lines(str(error), "bad")
        if text:
            self._show(text)

    # --- events

    def _hear(self, record: Record) -> None:
        """On the publishing thread: keep the event for the loop, which shows several at a time."""
        if not wanted(record.event, self._session.live):
            return
        if len(self._waiting) == BURST:
            self._missed += 1
        self._waiting.append(record)
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._loop.call_later, BATCH_SECONDS, self._flush)
            except RuntimeError:
                log.debug("the event loop is closed; %s is not shown", record.event.kind)

    def _flush(self) -> None:
        self._scheduled = False
        missed, self._missed = self._missed, 0
        records = []
        while self._waiting:
            records.append(self._waiting.popleft())
        text = joined(event_line(record) for record in records)
        if missed:
            text = lines(f"({missed} events are not shown here; `events` and `console` have them)", "dim") + text
        if text:
            self._show(text)

    # --- the screen

    def _print(self, text: Text) -> None:
        if plain(text[-1:]).endswith("\n"):
            text = [*text[:-1], (text[-1][0], text[-1][1][:-1])]
        print_formatted_text(FormattedText(styled(text)), style=self._style)

    def _toolbar(self) -> FormattedText:
        enclave = self._session.enclave
        parts: Text = [("", " "), *state_text(self._session)]
        parts.append(("", f"  {enclave.clock.guest_ns() / 1e9:.1f} s  PCR0 {enclave.measurements.pcr0.hex()[:12]}"))
        parts.append(("", f"  vsock {len(enclave.vsock.connections())}"))
        if "gdb" in self._session.notes:
            parts.append(("", f"  gdb {self._session.notes['gdb']}"))
        return FormattedText(styled(parts))


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        # A half-typed line is thrown away first; on an empty one Ctrl-C means what it means everywhere.
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return bindings
