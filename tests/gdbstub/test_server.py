"""The listening side: addresses, clients that come, are refused, vanish or send rubbish."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterator

import pytest

from enclavedbg.errors import EnclaveDbgError, MachineError, ProtocolError
from enclavedbg.gdbstub.early import LinkedSegment, LinkMap
from enclavedbg.gdbstub.server import GdbServer
from enclavedbg.machine.events import GuestStopped, Record
from tests.gdbstub.elf import symbol_elf
from tests.gdbstub.fake import TEXT, FakeMachine
from tests.gdbstub.serving import Serving, serving
from tests.gdbstub.talk import GDB_13


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving() as it:
        yield it


def wait_stopped(served: Serving) -> None:
    """Let the fake machine's thread come to its stop, and the server hear of it."""
    stopped = asyncio.Event()

    async def wait() -> None:
        def hear(record: Record) -> None:
            if isinstance(record.event, GuestStopped):
                served.loop.call_soon_threadsafe(stopped.set)

        unsubscribe = served.machine.events.subscribe(hear)
        try:
            if served.machine.running:
                await asyncio.wait_for(stopped.wait(), 10)
        finally:
            unsubscribe()

    asyncio.run_coroutine_threadsafe(wait(), served.loop).result(15)
    served.settle()


def released(served: Serving) -> bool:
    """Whether the server has noticed that its client left."""

    async def wait() -> bool:
        for _ in range(1000):
            if not served.server.attached:
                return True
            await asyncio.sleep(0.001)
        return False

    return asyncio.run_coroutine_threadsafe(wait(), served.loop).result(10)


def test_a_free_port_is_taken_and_reported(served: Serving) -> None:
    assert served.host == "127.0.0.1" and served.port > 0
    with served.client() as client:
        assert b"PacketSize=20000" in client.ask(GDB_13)
        assert served.server.attached


def test_a_busy_port_is_one_clear_line() -> None:
    async def start() -> None:
        machine = FakeMachine()
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(MachineError, match=f"port {port} on 127.0.0.1 is in use .* choose another with --gdb"):
                await GdbServer(machine, machine.events).start("127.0.0.1", port)

    asyncio.run(start())


def test_an_address_of_another_host_is_one_clear_line() -> None:
    async def start() -> None:
        machine = FakeMachine()
        with pytest.raises(EnclaveDbgError, match=r"cannot serve gdb on 192\.0\.2\.1:0: "):
            await GdbServer(machine, machine.events).start("192.0.2.1", 0)

    asyncio.run(start())


def test_closing_leaves_the_port_and_the_subscription_free() -> None:
    with serving() as served, served.client() as client:
        client.ask(GDB_13)
        host, port, machine = served.host, served.port, served.machine
        assert machine.events._subscribers
    assert not machine.events._subscribers and not machine.holders
    with pytest.raises(OSError), socket.create_connection((host, port), timeout=5):
        pass


def test_a_second_client_is_refused_with_the_reason(served: Serving) -> None:
    with served.client() as first, served.client() as second:
        first.ask(GDB_13)
        assert second.ask(GDB_13).startswith(b"E.another debugger (127.0.0.1:")
        assert b"detach it first" in second.ask("vMustReplyEmpty")
        with pytest.raises(EOFError):
            second.answer()
        assert first.ask("qC") == b"QCp1.1"


def test_a_connection_that_says_nothing_does_not_shut_others_out(served: Serving) -> None:
    with served.client(), served.client() as second:
        assert second.ask(GDB_13).startswith(b"PacketSize")


def test_a_client_that_vanishes_leaves_a_stopped_machine_without_its_breakpoints(served: Serving) -> None:
    machine = served.machine
    machine.resume()
    with served.client() as client:
        client.ask(GDB_13)
        assert client.ask("?").startswith(b"T05")
        assert client.ask("Z0,10,1") == b"OK"
        assert machine.holders
        client.send("vCont;c")
        served.settle()
    assert released(served)
    wait_stopped(served)
    assert not machine.running and not machine.breakpoints and not machine.holders
    with served.client() as client:
        client.ask(GDB_13)
        assert client.ask("?").startswith(b"T05")


def test_a_client_that_detaches_leaves_a_running_machine(served: Serving) -> None:
    with served.client() as client:
        client.ask(GDB_13)
        assert client.ask("?").startswith(b"T05")
        assert client.ask("D;1") == b"OK"
        with pytest.raises(EOFError):
            client.answer()
        assert served.machine.running
    with served.client() as client:
        client.ask(GDB_13)
        assert client.ask("?").startswith(b"T05")


def test_an_interrupt_stops_a_running_machine(served: Serving) -> None:
    with served.client() as client:
        client.ask(GDB_13)
        client.ask("?")
        client.send("vCont;c")
        client.connection.sendall(b"\x03")
        assert client.answer().startswith(b"T02")


def test_rubbish_is_survived(served: Serving) -> None:
    rng = random.Random(1)
    pieces = [
        rng.randbytes(5000),
        b"$" + b"a" * 400_000,
        b"$m10,",
        b"$" * 1000 + b"#" * 1000,
        b"$g#67" * 3000,
        b"-" * 5000,
        b"\x03" * 5000,
    ]
    for piece in pieces:
        with served.client() as client:
            client.connection.sendall(piece)
            client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert released(served)
    wait_stopped(served)
    with served.client() as client:
        client.ask(GDB_13)
        assert client.ask("?").startswith(b"T05")


def test_a_client_that_does_not_read_is_not_answered_without_end(served: Serving) -> None:
    machine = served.machine
    machine.pages |= {page: bytearray(4096) for page in range(0x400_0000, 0x402_0000, 4096)}
    with served.client() as client:
        client.ask(GDB_13)
        client.ask("?")
        for _ in range(200):
            client.send("mffffffff84000000,10000")
        served.settle()
        (connection,) = served.server._connections
        assert connection._transport is not None
        assert served.on_loop(connection._transport.get_write_buffer_size) < 1 << 20
        for _ in range(200):
            assert len(client.answer()) == 0x20000
        assert client.ask("qC") == b"QCp1.1"


def test_the_kernels_link_addresses_come_from_its_program_headers() -> None:
    elf = symbol_elf(TEXT, 4096, {"start_kernel": TEXT})
    assert LinkMap.from_elf(elf) == LinkMap((LinkedSegment(TEXT, 0x100_0000, 4096),))
    for broken in (b"", elf[:60], b"\x7fELF\x01" + elf[5:], elf[:54] + b"\x01\x00" + elf[56:], elf[:100]):
        with pytest.raises(ProtocolError):
            LinkMap.from_elf(broken)
