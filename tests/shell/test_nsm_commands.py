"""The shell's commands about the secure module, on the running demo enclave."""

from __future__ import annotations

import asyncio
import queue
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclavedbg.errors import NsmError
from enclavedbg.machine.cpu.engine import Caught
from enclavedbg.machine.events import GuestStopped, Record
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.verify import verify
from enclavedbg.shell.table import CommandError
from enclavedbg.vsock.events import Change, VsockConnection
from tests.shell.conftest import SECONDS, Live

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True)
def no_faults_left(live: Live) -> Iterator[None]:
    yield
    for number, _, _ in live.enclave.nsm.faults.listing():
        live.enclave.nsm.faults.remove(number)
    for number, _ in live.enclave.catchpoints.listing():
        live.enclave.catchpoints.remove(number)


async def ask_for_document(live: Live, nonce: bytes) -> tuple[int, bytes]:
    """The demo program's attestation service: status and answer."""
    absent = struct.pack(">I", 0xFFFF_FFFF)
    async with await live.enclave.vsock.connect(5001, label="test") as stream:
        await stream.write(absent + struct.pack(">I", len(nonce)) + nonce + absent)
        status, length = struct.unpack(">BI", await stream.read_exactly(5))
        return status, await stream.read_exactly(length)


def test_the_guests_document_explained_and_saved(live: Live, tmp_path: Path) -> None:
    status, document = live.call(ask_for_document(live, b"a nonce"))
    assert status == 0
    text = live.command("nsm explain")
    assert '"a nonce"' in text
    assert "pass  COSE signature" in text
    assert "pass  expected PCRs            PCR0 is" in text
    assert "pinned root              the development root (not AWS's)" in text
    path = tmp_path / "doc.bin"
    assert f"in {path}" in live.command(f"nsm save {path}")
    assert path.read_bytes() == document
    assert verify(document, roots=[Root.of(live.enclave.nsm.authority.root())], nonce=b"a nonce").valid
    assert text.rstrip().endswith("valid, under the development root (not AWS's)")
    with pytest.raises(CommandError, match="exists; name a new file"):
        live.command(f"nsm save {path}")
    with pytest.raises(CommandError, match="cannot write"):
        live.command(f"nsm save {tmp_path}/no/doc.bin")


def test_the_history_has_a_line_for_each_exchange(live: Live) -> None:
    live.call(ask_for_document(live, b"x"))
    text = live.command("nsm 50")
    assert "nsm.exchange: Attestation user_data=none nonce=1 bytes public_key=none -> document=" in text
    assert "nsm.request" not in text


def test_the_shell_can_make_the_guest_ask(live: Live) -> None:
    text = live.command("vsock send 5001 hex:" + "ff" * 12)
    assert " bytes, the first 64 of them:" in text
    assert "module_id" in text
    assert "user_data=none nonce=none public_key=none -> document=" in live.command("nsm 50")
    before = connections_opened(live)
    with pytest.raises(NsmError, match="expected pairs of hex digits"):
        live.command("vsock send 5001 hex:0g")
    assert connections_opened(live) == before, "the guest hears nothing of it"


def connections_opened(live: Live) -> int:
    """How often the shell asked the guest for a connection. Earlier ones may be closing meanwhile: not counted."""
    events = (record.event for record in live.enclave.events.history("vsock.connection"))
    return sum(isinstance(e, VsockConnection) and (e.change, e.why) == (Change.OPENED, "shell") for e in events)


def test_a_request_that_a_fault_holds_is_let_go_with_it(live: Live) -> None:
    number = live.command("fault Attestation delay 1h").split()[1].rstrip(":")
    answer = asyncio.run_coroutine_threadsafe(ask_for_document(live, b"x"), live.loop)
    live.call(until(live, "[fault: delay 1h]"))
    assert not answer.done()
    live.command(f"fault off {number}")
    assert answer.result(SECONDS)[0] == 0


async def until(live: Live, text: str) -> None:
    """Until an event of the secure module says something."""
    found = asyncio.Event()
    loop = asyncio.get_running_loop()

    def listen(record: Record) -> None:
        if record.event.kind == "nsm.request" and text in record.event.summary():
            loop.call_soon_threadsafe(found.set)

    unsubscribe = live.enclave.events.subscribe(listen, replay=True)
    await found.wait()
    unsubscribe()


def test_faults(live: Live) -> None:
    assert "There are no faults" in live.command("fault")
    first = live.command("fault attestation#1 error InternalError")
    number = int(first.split()[1].rstrip(":"))
    assert first == f"Fault {number}: Attestation#1 error InternalError\n"
    assert live.call(ask_for_document(live, b"x")) == (1, b"InternalError")
    assert live.call(ask_for_document(live, b"x"))[0] == 0
    assert "Attestation#1 error InternalError  2 requests like that so far" in live.command("fault")
    assert "[fault: error InternalError]" in live.command("nsm 50")
    live.command("fault any delay 1ms")
    assert live.command(f"fault off {number}") == f"Fault {number} (Attestation#1 error InternalError) is gone\n"
    assert "(any delay 1ms) is gone" in live.command("fault off")
    assert live.command("fault off") == "There are no faults.\n"
    for line in (f"fault off {number}", "fault off x"):
        with pytest.raises(CommandError):
            live.command(line)
    with pytest.raises(NsmError, match="there is no request"):
        live.command("fault Nonsense drop")


class Asking:
    """A request for a document on its way, and the stop that it leads to."""

    def __init__(self, live: Live, nonce: bytes) -> None:
        # Heard from before the request on: the machine stands a moment before its stop is told.
        self._stops: queue.SimpleQueue[GuestStopped] = queue.SimpleQueue()
        self._unsubscribe = live.enclave.events.subscribe(self._hear)
        self._answer = asyncio.run_coroutine_threadsafe(ask_for_document(live, nonce), live.loop)

    def _hear(self, record: Record) -> None:
        if isinstance(record.event, GuestStopped):
            self._stops.put(record.event)

    def stop(self) -> GuestStopped:
        stop = self._stops.get(timeout=SECONDS)
        self._unsubscribe()
        return stop

    def answered(self) -> bool:
        return self._answer.done()

    def answer(self) -> tuple[int, bytes]:
        return self._answer.result(SECONDS)


def test_a_catchpoint_stops_where_the_guest_rings_the_doorbell(live: Live) -> None:
    assert "There are no catchpoints" in live.command("catch")
    assert live.command("catch nsm Attestation if nonce == abc").endswith(": nsm Attestation if nonce == abc\n")
    assert live.call(ask_for_document(live, b"other"))[0] == 0
    asking = Asking(live, b"abc")
    stop = asking.stop()
    assert "Attestation user_data=none nonce=3 bytes public_key=none, not answered yet" in stop.reason
    assert isinstance(live.enclave.debug.stop_reason, Caught)
    trace = live.command("bt")
    assert "vm_notify" in trace.splitlines()[0]
    assert "nsm_" in trace
    asked = live.command("nsm 1")
    assert "nsm.request: Attestation" in asked
    # The doorbell is the last instruction executed: a store, with the queue's index.
    rip = live.enclave.debug.state().rip
    code = live.command("dis vm_notify 30").splitlines()
    place = next(i for i, line in enumerate(code) if f"{rip:016x}" in line)
    assert "mov dword ptr [" in code[place - 1]
    assert not asking.answered()
    live.command("step")
    assert "nsm.exchange: Attestation" in live.command("nsm 1")
    live.command("delete")
    live.command("continue")
    assert asking.answer()[0] == 0


def test_a_catchpoint_after_the_answer(live: Live) -> None:
    live.command("fault Attestation error InvalidArgument")
    number = int(live.command("catch nsm after Attestation if error == InvalidArgument").split()[1].rstrip(":"))
    asking = Asking(live, b"abc")
    assert "-> InvalidArgument (as the fault says)" in asking.stop().reason
    assert "vm_notify" in live.command("bt").splitlines()[0]
    assert f"{number:3}  nsm after Attestation" in live.command("catch")
    assert live.command(f"delete {number}").startswith(f"Catchpoint {number} (nsm after Attestation")
    live.command("continue")
    assert asking.answer() == (1, b"InvalidArgument")


def test_breakpoints_and_catchpoints_share_their_numbers(live: Live) -> None:
    live.command("catch nsm LockPCR")
    live.command("break start_kernel")
    text = live.command("delete")
    assert "Catchpoint" in text and "Breakpoint" in text
    with pytest.raises(CommandError, match="there is no breakpoint 99"):
        live.command("delete 99")


@pytest.mark.parametrize(
    "line",
    [
        "catch nsm",
        "catch vsock",
        "catch nsm Nonsense",
        "catch nsm Attestation soon",
        "catch nsm Attestation if error == InvalidIndex",
        "catch nsm after Attestation if x == 1",
        "nsm save",
        "nsm save a b",
        "nsm explain it",
    ],
)
def test_misuse(live: Live, line: str) -> None:
    with pytest.raises((CommandError, NsmError)) as caught:
        live.command(line)
    assert "\n" not in str(caught.value)
