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
from enclavedbg.machine.events import GuestStopped, Record
from enclavedbg.machine.verdict import Verdict
from enclavedbg.nsm.authority import state_folder
from enclavedbg.shell.commands import COMMANDS
from enclavedbg.shell.completion import ShellCompleter
from enclavedbg.shell.enclave_commands import state_text
from enclavedbg.shell.render import event_line, wanted
from enclavedbg.shell.session import INTERRUPTED, Session
from enclavedbg.shell.text import STYLES, Text, lines, plain, shortened, styled
from enclavedbg.shell.wrap import wrapped

log = logging.getLogger(__name__)

BURST = 200
"""Events shown at a time; a guest that prints more between two looks is not shown line by line."""


BATCH_SECONDS = 0.02
"""Events of so long are drawn at once, as each drawing moves the prompt."""

AFTERWARDS = "Still to be looked at: console, events, dmesg, regs, bt, mem, dis; quit leaves with status {}."


class Interrupted(Exception):
    """The person pressed Ctrl-C on an empty line."""


LATE_SECONDS = 1.0
"""A Ctrl-C so soon after a command was meant for it: it must not cost the enclave."""
QUIET_SECONDS = 0.4
"""The greeting comes when the boot has been quiet for so long,"""

GREETING_SECONDS = 5.0
"""or after this time at the latest: where it came first, the boot would push it off the screen."""


def history_file(environ: Mapping[str, str]) -> Path:
    """Where typed lines are kept, in the user's state folder."""
    return state_folder(environ) / "history"


def open_history(environ: Mapping[str, str]) -> History:
    """The history file, or one in memory where no file can be written."""
    path = history_file(environ)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Owner only: what was sent to the guest and attested stands in it.
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        log.info("no history is kept: %s", error)
        return InMemoryHistory()
    return FileHistory(str(path))


class Shell:
    """The interactive shell over one session.

    Input, output and `show` can be given, for tests and recordings: `show` takes every text for the person.
    `greeting` comes when the boot's events have come to rest.
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
        self._working: asyncio.Task[Text] | None = None
        self._repeat = ""
        self._greet_by = 0.0
        self._heard = 0.0
        self._late_until = 0.0
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
        self._session.tell = self._show
        self._heard = self._loop.time()
        self._greet_by = self._heard + GREETING_SECONDS
        greeting = self._loop.call_later(QUIET_SECONDS, self._greet)
        unsubscribe = self._session.enclave.events.subscribe(self._hear, replay=True)
        patched: AbstractContextManager[Any] = patch_stdout(raw=True) if self._patched else nullcontext()
        try:
            with patched:
                while not self._session.ended.is_set():
                    await self._once()
        finally:
            unsubscribe()
            greeting.cancel()
            self._session.tell = None
            self._flush()

    def interrupt(self) -> bool:
        """Give up the command that works, if one does; False when Ctrl-C was meant for the enclave."""
        if self._working is None:
            return self._came_late()
        self._working.cancel()
        return True

    def _came_late(self) -> bool:
        """Whether Ctrl-C was meant for a command that has just ended by itself; the next one is not."""
        late = self._loop is not None and self._loop.time() < self._late_until
        self._late_until = 0.0
        if late:
            self._show(lines("The command had ended; Ctrl-C again ends the enclave.", "warn"))
        return late

    def _greet(self) -> None:
        """Show the greeting, or come again while there is news."""
        assert self._loop is not None
        now = self._loop.time()
        if now < self._greet_by and now - self._heard < QUIET_SECONDS:
            self._loop.call_later(QUIET_SECONDS, self._greet)
        elif self._greeting and not self._session.ended.is_set():
            self._session.start_symbols()  # for Tab and for the names of stops
            text, self._greeting = self._greeting, ""
            self._show(lines(text, "good"))

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
            if self._came_late():
                return
            raise Interrupted from None
        line = line.strip() or self._repeat
        self._repeat = line if COMMANDS.repeats(line) else ""
        text = await self._answer(line)
        self._late_until = asyncio.get_running_loop().time() + LATE_SECONDS if line else 0.0
        self._flush()  # what the command made happen comes before what it says
        if text:
            self._show(text)

    async def _answer(self, line: str) -> Text:
        """What a command says; its error, or that Ctrl-C ended it."""
        self._working = asyncio.create_task(COMMANDS.run(self._session, line))
        try:
            return await self._working
        except EnclaveDbgError as error:
            return lines(str(error), "bad")
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                self._working.cancel()
                raise
            return lines("Given up; Ctrl-C on an empty line ends the enclave.", "warn")
        except Exception:
            # The outermost place: a mistake in one command must not take the running enclave with it.
            log.exception("the command %r failed", line)
            return lines("internal error, told above; the enclave is as it was", "bad")
        finally:
            self._working = None

    # --- events

    def _hear(self, record: Record) -> None:
        """On the publishing thread: keep the event for the loop, which shows several at a time."""
        if not wanted(record.event, self._session.live):
            return
        if self._session.hushed and record.event.kind in ("stop", "resume"):
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
        text: Text = []
        for record in records:
            text += [*self._event(record), ("", "\n")]
            if isinstance(record.event, Verdict):
                text += lines(AFTERWARDS.format(record.event.exit_status), "dim")
        if records and self._loop is not None:
            self._heard = self._loop.time()
        if missed:
            text = lines(f"({missed} events are not shown here; `events` and `console` have them)", "dim") + text
        if text:
            self._show(text)

    def _event(self, record: Record) -> Text:
        name = None
        if isinstance(record.event, GuestStopped):
            name = self._session.name_of(record.event.rip) or ""
            if record.event.reason == INTERRUPTED and self._session.debugger():
                name = f"{name}; gdb is attached" if name else "gdb is attached"
        return event_line(record, name=name or None)

    # --- the screen

    def _print(self, text: Text) -> None:
        if plain(text[-1:]).endswith("\n"):
            text = [*text[:-1], (text[-1][0], text[-1][1][:-1])]
        text = wrapped(text, self._columns)
        print_formatted_text(FormattedText(styled(text)), style=self._style, output=self._prompt.output)

    @property
    def _columns(self) -> int:
        return self._prompt.output.get_size().columns

    def _toolbar(self) -> FormattedText:
        return FormattedText(styled(self.toolbar(self._columns)))

    def toolbar(self, columns: int) -> Text:
        """The line below the prompt, in that many columns: what has no room is left out, the last first."""
        enclave, notes = self._session.enclave, self._session.notes
        style, state = state_text(self._session)[0]
        parts = [f"{enclave.clock.guest_ns() / 1e9:.1f} s"]
        if "gdb" in notes:
            parts.append(f"gdb {'attached' if self._session.debugger() else notes['gdb']}")
        parts += [
            f"vsock {len(enclave.vsock.connections())}",
            f"PCR0 {enclave.measurements.pcr0.hex()[:12]}",
        ]
        room = columns - 2
        text: Text = [("", " "), (style, shortened(state, room))]
        room -= len(state)
        for part in parts:
            room -= len(part) + 2
            if room < 0:
                break
            text.append(("", f"  {part}"))
        return text


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
