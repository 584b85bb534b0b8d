"""Runs the packaged enclave for a test: in an event loop of the test's own, with everything given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from enclavedbg.machine.enclave import Enclave, EnclaveConfig
from enclavedbg.machine.events import ConsoleLine, Record
from enclavedbg.machine.verdict import Verdict

DEMO = Path(__file__).resolve().parents[2] / "enclavedbg" / "data" / "demo.eif"
READY = "demo: ready on vsock"
LIMIT = 120.0
"""Seconds after which a test that waits has failed; nothing here takes a tenth of it on an idle machine."""

BASE = EnclaveConfig(eif=DEMO, memory=128 << 20, ephemeral_authority=True)


class Run:
    """A running enclave with the events seen so far, and ways to wait for more."""

    def __init__(self, enclave: Enclave, loop: asyncio.AbstractEventLoop) -> None:
        self.enclave = enclave
        self.records: list[Record] = []
        self._loop = loop
        self._news = asyncio.Event()
        self._seen = 0
        enclave.events.subscribe(lambda record: loop.call_soon_threadsafe(self._add, record), replay=True)

    def _add(self, record: Record) -> None:
        self.records.append(record)
        self._news.set()

    async def until(self, wanted: Callable[[Record], bool]) -> Record:
        """The next event, counted from the last one waited for, that is `wanted`."""

        async def search() -> Record:
            while True:
                while self._seen < len(self.records):
                    record = self.records[self._seen]
                    self._seen += 1
                    if wanted(record):
                        return record
                self._news.clear()
                await self._news.wait()

        try:
            return await asyncio.wait_for(search(), LIMIT)
        except TimeoutError:
            tail = "\n".join(r.event.summary() for r in self.records[-30:])
            raise AssertionError(f"what was waited for never came; the last events:\n{tail}") from None

    async def until_kind(self, kind: str) -> Record:
        return await self.until(lambda record: record.event.kind == kind)

    async def once(self, kind: str) -> Record:
        """The first event of a kind, past or to come; what is waited for next does not change."""
        seen, self._seen = self._seen, 0
        try:
            return await self.until_kind(kind)
        finally:
            self._seen = seen

    async def until_console(self, text: str) -> str:
        """The next console line that contains `text`."""
        record = await self.until(lambda r: isinstance(r.event, ConsoleLine) and text in r.event.text)
        return record.event.summary()

    async def command(self, line: str) -> bytes:
        """Tell the demo program something on port 5002 and return what it answers first."""
        stream = await self.enclave.vsock.connect(5002)
        await stream.write(line.encode() + b"\n")
        return await stream.read()

    async def verdict(self) -> Verdict:
        return await asyncio.wait_for(self.enclave.wait_ended(), LIMIT)


@contextlib.asynccontextmanager
async def running(config: EnclaveConfig = BASE, *, halted: bool = False, **changes: object) -> AsyncIterator[Run]:
    """An enclave that was started, closed at the end whatever happens."""
    loop = asyncio.get_running_loop()
    enclave = Enclave(replace(config, **changes), loop=loop)  # type: ignore[arg-type]
    run = Run(enclave, loop)
    try:
        enclave.start(halted=halted)
        yield run
    finally:
        await enclave.close()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Run an async test in a loop of its own."""

    async def whole() -> None:
        await scene()

    asyncio.run(whole())
