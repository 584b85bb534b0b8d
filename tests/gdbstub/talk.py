"""A client in memory: sends packets to a Session and hands back what it answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from enclavedbg.gdbstub.client import Services
from enclavedbg.gdbstub.early import LinkMap
from enclavedbg.gdbstub.framing import encode, expand_runs, unescape
from enclavedbg.gdbstub.monitor import MonitorCommand, MonitorTable
from enclavedbg.gdbstub.session import Session
from enclavedbg.machine.events import Record
from tests.gdbstub.fake import FakeMachine, FakeVerdict

GDB_13 = (
    "qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;fork-events+;vfork-events+;exec-events+;"
    "vContSupported+;QThreadEvents+;no-resumed+;memory-tagging+;xmlRegisters=i386"
)
GDB_16 = GDB_13.replace("memory-tagging+", "memory-tagging+;QThreadOptions+;error-message+")
LLDB = "qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+;fork-events+;vfork-events+"


class Talk:
    """One session with a fake machine; events of the machine reach it at once."""

    def __init__(
        self,
        machine: FakeMachine | None = None,
        *,
        symbols: Callable[[], Awaitable[bytes]] | None = None,
        commands: Iterable[MonitorCommand] = (),
        end_guest: Callable[[], object] | None = None,
        link_map: LinkMap | None = None,
    ) -> None:
        self.machine = machine or FakeMachine()
        self.raw = bytearray()
        self.hung_up = False
        services = Services(
            self.machine,
            MonitorTable(self.machine, commands),
            symbols=symbols,
            end_guest=end_guest,
            link_map=link_map,
        )
        self.session = Session(services, owner="gdb", write=self._write, hang_up=self._hang_up)
        self.machine.events.subscribe(self._hear)

    def _write(self, data: bytes) -> None:
        self.raw += data

    def _hang_up(self) -> None:
        self.hung_up = True

    def _hear(self, record: Record) -> None:
        event = record.event
        if isinstance(event, FakeVerdict):
            self.session.machine_ended(event)
        elif event.kind == "stop":
            self.session.machine_stopped()

    def send(self, body: str | bytes) -> list[bytes]:
        """Send one packet and take the packets that came back."""
        self.session.feed(encode(body if isinstance(body, bytes) else body.encode()))
        return self.take()

    def ask(self, body: str | bytes) -> bytes:
        """Send one packet that has one answer, and take it."""
        (answer,) = self.send(body)
        return answer

    def take(self) -> list[bytes]:
        """The bodies sent since the last call, acknowledgements left out; checksums are checked."""
        bodies = []
        while (start := self.raw.find(b"$")) >= 0:
            end = self.raw.index(b"#", start)
            body = bytes(self.raw[start + 1 : end])
            assert int(self.raw[end + 1 : end + 3], 16) == sum(body) & 0xFF
            bodies.append(unescape(expand_runs(body)))
            del self.raw[: end + 3]
        self.raw.clear()
        return bodies

    async def ask_later(self, body: str | bytes) -> bytes:
        """Send one packet whose answer takes turns of the event loop."""
        answers = self.send(body)
        for _ in range(20):
            if answers:
                break
            await asyncio.sleep(0)
            answers = self.take()
        (answer,) = answers
        return answer

    def console(self, packets: Iterable[bytes]) -> str:
        """The text of `O` packets."""
        return "".join(bytes.fromhex(p[1:].decode()).decode() for p in packets if p[:1] == b"O" and p != b"OK")

    def resume(self, body: str = "vCont;c:p1.-1") -> list[bytes]:
        """Resume with a packet, let the machine run until it stops, and take what was said of it."""
        assert self.send(body) == []
        self.machine.advance()
        return self.take()


def gdb(talk: Talk | None = None, hello: str = GDB_13) -> Talk:
    """A Talk that has connected as GDB does."""
    talk = talk or Talk()
    talk.ask(hello)
    talk.ask("QStartNoAckMode")
    talk.ask("?")
    return talk


def lldb(talk: Talk | None = None) -> Talk:
    """A Talk that has connected as LLDB does."""
    talk = talk or Talk()
    for packet in ("QStartNoAckMode", LLDB, "QThreadSuffixSupported", "QListThreadsInStopReply", "?"):
        talk.ask(packet)
    return talk
