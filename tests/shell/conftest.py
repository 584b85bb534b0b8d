"""The demo enclave, booted once for all tests of the shell, with its event loop on a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from enclavedbg.demo import READY_LINE, image_path
from enclavedbg.machine.enclave import Enclave, EnclaveConfig
from enclavedbg.machine.events import ConsoleLine, Record
from enclavedbg.shell import enclave_commands
from enclavedbg.shell.commands import COMMANDS
from enclavedbg.shell.session import Session
from enclavedbg.shell.text import Text, plain

_T = TypeVar("_T")

SECONDS = 30


class Live:
    """A running enclave and a session on it; `call` runs a coroutine on their loop and waits."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.ready = threading.Event()
        self.call(self._boot())
        assert self.ready.wait(SECONDS), self.enclave.console.text()

    async def _boot(self) -> None:
        def watch(record: Record) -> None:
            if isinstance(record.event, ConsoleLine) and record.event.text.startswith(READY_LINE):
                self.ready.set()

        config = EnclaveConfig(image_path(), ephemeral_authority=True)
        self.enclave = Enclave(config, loop=asyncio.get_running_loop(), observe=watch)
        self.session = Session(self.enclave)
        self.enclave.start()

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def styled(self, line: str) -> Text:
        return self.call(COMMANDS.run(self.session, line))

    def command(self, line: str) -> str:
        """What a command answers, without colours."""
        return plain(self.styled(line))

    def close(self) -> None:
        self.call(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _close(self) -> None:
        self.session.close()
        await self.enclave.close()


@pytest.fixture(scope="package")
def live_enclave() -> Iterator[Live]:
    live = Live()
    yield live
    live.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest may take its time to answer: only the shell's user is impatient."""
    monkeypatch.setattr(enclave_commands, "ANSWER_SECONDS", SECONDS)


@pytest.fixture
def live(live_enclave: Live) -> Iterator[Live]:
    """The running enclave; a test may stop it, and leave it so."""
    yield live_enclave
    if not live_enclave.enclave.debug.running:
        live_enclave.command("delete")
        live_enclave.command("continue")


@pytest.fixture
def stopped(live: Live) -> Live:
    """The enclave, stopped."""
    live.command("stop")
    return live
