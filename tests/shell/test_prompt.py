"""The shell as a person uses it: keys in, texts out, no terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from enclavedbg.machine.events import ConsoleLine, GuestWarning
from enclavedbg.shell import prompt
from enclavedbg.shell.commands import COMMANDS
from enclavedbg.shell.completion import ShellCompleter
from enclavedbg.shell.prompt import BURST, Interrupted, Shell, history_file, open_history
from enclavedbg.shell.session import Session
from enclavedbg.shell.text import Text, plain

from .conftest import Live

pytestmark = pytest.mark.live


class Screen:
    """What the person saw, and a way to wait for it."""

    def __init__(self) -> None:
        self.text = ""
        self._changed = asyncio.Event()

    def show(self, text: Text) -> None:
        self.text += plain(text)
        self._changed.set()

    async def until(self, words: str, *, after: int = 0) -> None:
        """Wait for words; `after` leaves out so many characters, as earlier events are replayed."""
        while words not in self.text[after:]:
            self._changed.clear()
            await self._changed.wait()


def use(live: Live, script: Callable[[Screen, PipeInput, Shell], object], *, history: object = None) -> str:
    """Run a shell; `script` is an async function that types. Returns all that was shown."""

    async def go() -> str:
        screen = Screen()
        session = Session(live.enclave)
        with create_pipe_input() as keys:
            shell = Shell(
                session,
                input=keys,
                output=DummyOutput(),
                history=history or InMemoryHistory(),  # type: ignore[arg-type]
                show=screen.show,
                greeting="Good day.",
            )
            running = asyncio.create_task(shell.run())
            typing = asyncio.ensure_future(script(screen, keys, shell))  # type: ignore[call-overload]
            try:
                await asyncio.wait_for(asyncio.gather(running, typing), 20)
            finally:
                running.cancel()
                typing.cancel()
                session.close()
        return screen.text

    return live.call(go())


def test_a_mistake_in_a_command_does_not_end_the_shell(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = COMMANDS.run

    async def faulty(session: Session, line: str) -> Text:
        if line == "pcrs":
            raise IndexError("a mistake")
        return await run(session, line)

    monkeypatch.setattr(COMMANDS, "run", faulty)

    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("pcrs\r")
        await screen.until("internal error")
        keys.send_text("status\r")
        await screen.until("guest time")
        keys.send_text("quit\r")

    use(live, script)
    assert "IndexError" in caplog.text


def test_commands_and_quit(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        await screen.until("Good day.\n")
        keys.send_text("pcrs\r")
        await screen.until("PCR2")
        keys.send_text("nonsense\r")
        await screen.until("there is no command 'nonsense'")
        keys.send_text("quit\r")

    use(live, script)


def test_end_of_input_leaves(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("\x04")

    use(live, script)


def test_ctrl_c_clears_the_line_first_and_then_ends(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("half a li\x03\x03")

    with pytest.raises(Interrupted):
        use(live, script)


def test_ctrl_c_that_comes_after_a_command_has_ended_is_not_the_end(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "LATE_SECONDS", 60.0)

    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("status\r\x03")
        await screen.until("The command had ended; Ctrl-C again ends the enclave.")
        keys.send_text("status\r")
        await screen.until("guest time", after=len(screen.text))
        # The same as a signal, as it comes while no prompt is there.
        assert shell.interrupt()
        assert not shell.interrupt()
        keys.send_text("\x03")

    with pytest.raises(Interrupted):
        use(live, script)


def test_ctrl_c_long_after_a_command_ends_the_enclave(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "LATE_SECONDS", 0.0)

    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("status\r\x03")

    with pytest.raises(Interrupted):
        use(live, script)


def test_events_appear_while_nobody_types(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        live.enclave.publish(GuestWarning("test", "look here"))
        await screen.until("warning: test: look here")
        keys.send_text("events off\r")
        await screen.until("stops, warnings and the end only")
        live.enclave.publish(ConsoleLine("not to be shown"))
        live.enclave.publish(GuestWarning("test", "always shown"))
        await screen.until("always shown")
        keys.send_text("quit\r")

    assert "not to be shown" not in use(live, script)


def test_a_flood_is_cut_and_said(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        for number in range(BURST * 3):
            live.enclave.publish(ConsoleLine(f"flood {number}"))
        await screen.until(f"flood {BURST * 3 - 1}")
        keys.send_text("quit\r")

    text = use(live, script)
    assert "events are not shown here" in text
    assert "flood 0\n" not in text


def test_stop_shows_the_event_and_the_toolbar_follows(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        assert "running" in plain(shell.toolbar(100))
        keys.send_text("stop\r")
        await screen.until("stop: interrupted")
        await screen.until("=> ")
        toolbar = plain(shell.toolbar(200))
        assert "stopped: interrupted" in toolbar
        assert live.enclave.measurements.pcr0.hex()[:12] in toolbar
        shown = len(screen.text)
        keys.send_text("c\r")
        await screen.until("resume: running", after=shown)
        keys.send_text("quit\r")

    use(live, script)


def test_the_toolbar_fits_any_terminal(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        shell._session.notes["gdb"] = "127.0.0.1:1234"
        for columns in range(10, 120):
            assert len(plain(shell.toolbar(columns))) < columns
        assert "gdb 127.0.0.1:1234" in plain(shell.toolbar(40)) and "PCR0" not in plain(shell.toolbar(40))
        keys.send_text("quit\r")

    use(live, script)


def test_a_step_is_quiet_and_enter_repeats_it(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("stop\r")
        await screen.until("=> ")
        before = screen.text.count("=> ")
        shown = len(screen.text)
        keys.send_text("step\r\r\r")
        while screen.text.count("=> ") < before + 3:
            await asyncio.sleep(0)
        assert "stop:" not in screen.text[shown:] and "resume:" not in screen.text[shown:]
        keys.send_text("status\r\rc\r")
        await screen.until("resume: running", after=shown)
        keys.send_text("quit\r")
        assert screen.text.count("guest time") == 1  # only what is meant for it is repeated

    use(live, script)


def test_an_answer_that_a_breakpoint_holds_back_comes_later(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("status\r")
        await screen.until("guest time")
        shown = len(screen.text)
        keys.send_text("break __x64_sys_poll\rvsock send 5000 patience\r")
        await screen.until("stopped before port 5000 answered")
        assert "resume:" not in screen.text[shown:]  # the moment that the breakpoint took
        assert "(__x64_sys_poll)" in screen.text  # the stop says where, and comes first
        assert "\npatience\n" not in screen.text
        keys.send_text("delete\rc\r")
        await screen.until("\npatience\n")
        keys.send_text("quit\r")

    use(live, script)


def test_ctrl_c_gives_up_a_command_that_works(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        assert not shell.interrupt()
        shown = len(screen.text)
        keys.send_text("stop\rstep 10000\r")
        await screen.until("=> ")
        while shell._working is None:
            await asyncio.sleep(0)
        assert shell.interrupt()
        await screen.until("Given up")
        keys.send_text("c\r")
        await screen.until("resume: running", after=shown)
        keys.send_text("quit\r")

    use(live, script)


def test_what_gdb_holds_is_not_resumed_here(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        shell._session.debugger = lambda: True
        shell._session.notes["gdb"] = "127.0.0.1:1234"
        keys.send_text("stop\rc\r")
        await screen.until("gdb is attached, and would not know")
        shown = len(screen.text)
        assert not live.enclave.debug.running
        assert "gdb attached" in plain(shell.toolbar(100))
        shell._session.debugger = lambda: False
        keys.send_text("c\r")
        await screen.until("resume: running", after=shown)
        keys.send_text("quit\r")

    use(live, script)


def test_tab_completes(live: Live) -> None:
    async def script(screen: Screen, keys: PipeInput, shell: Shell) -> None:
        keys.send_text("pcr\t\r")
        await screen.until("PCR2")
        keys.send_text("quit\r")

    use(live, script)


def completions(live: Live, line: str) -> list[str]:
    async def ask() -> list[str]:
        await live.session.symbols()
        completer = ShellCompleter(live.session, COMMANDS)
        return [c.text for c in completer.get_completions(Document(line), CompleteEvent())]

    return live.call(ask())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("st", {"status", "stop", "step"}),
        ("dis start_kern", {"start_kernel"}),
        ("break start_kernel+$r1", {f"start_kernel+$r1{n}" for n in range(6)}),
        ("help con", {"continue", "console"}),
        ("vsock p", {"packets"}),
        ("events on nsm", {"nsm.exchange", "nsm.pcr", "nsm.request"}),
        ("fault Att", {"Attestation"}),
        ("fault Attestation d", {"delay", "drop"}),
        ("fault Attestation error InvalidI", {"InvalidIndex"}),
        ("catch n", {"nsm"}),
        ("catch  n", {"nsm"}),
        ("catch nsm af", {"after"}),
        ("catch nsm after ExtendPCR i", {"if"}),
        ("nonsense x", set()),
        ("quit ", set()),
        ("dis ", set()),
    ],
)
def test_what_tab_offers(live: Live, line: str, expected: set[str]) -> None:
    assert set(completions(live, line)) == expected


def test_history_is_kept_in_the_state_folder(tmp_path: Path) -> None:
    path = history_file({"XDG_STATE_HOME": str(tmp_path)})
    assert path == tmp_path / "enclavedbg" / "history"
    assert isinstance(open_history({"XDG_STATE_HOME": str(tmp_path)}), FileHistory)
    assert path.exists()
    assert history_file({"HOME": "/home/me"}) == Path("/home/me/.local/state/enclavedbg/history")
    assert history_file({"HOME": "/home/me", "XDG_STATE_HOME": "relative"}).is_relative_to("/home/me")


def test_history_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "enclavedbg").write_text("a file where the folder should be")
    assert isinstance(open_history({"XDG_STATE_HOME": str(tmp_path)}), InMemoryHistory)
