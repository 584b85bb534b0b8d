"""Unix sockets of real programs on one side, a scripted guest on the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from enclavedbg.errors import VsockError
from enclavedbg.vsock.contract import State
from enclavedbg.vsock.credit import BUFFER_SIZE
from enclavedbg.vsock.events import Change, Side
from enclavedbg.vsock.packet import MAX_PAYLOAD, Op, Shutdown
from enclavedbg.vsock.switch import FIRST_HOST_PORT
from enclavedbg.vsock.unix import UnixEndpoints
from tests.vsock.bench import Bench, GuestSocket, from_guest, run


class Program:
    """A program on the host: a blocking-free Unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        sock.setblocking(False)

    async def recv(self, limit: int = 65536) -> bytes:
        return await self.loop.sock_recv(self.sock, limit)

    async def recv_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self.recv(count - len(data))
            assert part, f"ended after {len(data)} of {count} bytes"
            data += part
        return data

    async def recv_all(self) -> bytes:
        data = b""
        while part := await self.recv():
            data += part
        return data

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    def close(self) -> None:
        self.sock.close()


class Listening:
    """A program that listens on DIR/vsock_PORT."""

    def __init__(self, directory: Path, port: int, *, backlog: int = 8) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.bind(str(directory / f"vsock_{port}"))
        self.sock.listen(backlog)

    async def accept(self) -> Program:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        return Program(sock)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()


async def dial(path: Path, line: bytes = b"") -> Program:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, str(path))
    program = Program(sock)
    await program.send(line)
    return program


async def guest_to_program(bench: Bench, directory: Path, **options: int) -> tuple[GuestSocket, Program]:
    """An established connection of the guest to a program on port 7000."""
    with Listening(directory, 7000) as listening:
        sock = await bench.guest.connect(7000, **options)
        return sock, await listening.accept()


async def program_to_guest(bench: Bench, endpoints: UnixEndpoints, **options: int) -> tuple[GuestSocket, Program]:
    """An established connection of a program to the guest's port 5000."""
    program = await dial(endpoints.path, b"CONNECT 5000\n")
    sock = await bench.guest.accept(5000, **options)
    assert await program.recv_exactly(14) == b"OK %d\n" % FIRST_HOST_PORT
    return sock, program


def opened(bench: Bench, directory: Path, **options: int) -> UnixEndpoints:
    endpoints = UnixEndpoints(directory, bench.switch, **options)
    endpoints.open()
    return endpoints


# --- the guest connects


def test_the_guest_reaches_the_program_at_its_port(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        sock.send(Op.RW, payload=b"from the guest")
        assert await program.recv() == b"from the guest"
        await program.send(b"from the host")
        assert await sock.read(13) == b"from the host"
        (info,) = bench.switch.connections()
        assert (info.endpoint, info.opened_by) == (f"{tmp_path}/vsock_7000", Side.GUEST)
        program.close()

    run(scenario)


def test_nothing_there_is_refused_with_the_path(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        bench.guest.send(from_guest(Op.REQUEST, host_port=7000))
        assert (await bench.guest.take()).op is Op.RST
        assert (await bench.changed(Change.REFUSED)).summary() == (
            "guest:1024 -> parent:7000 refused by enclavedbg: "
            f"no listener on port 7000: nothing at {tmp_path}/vsock_7000"
        )

    run(scenario)


def test_a_socket_without_a_listener_is_refused(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        Listening(tmp_path, 7000).sock.close()
        bench.guest.send(from_guest(Op.REQUEST, host_port=7000))
        assert (await bench.guest.take()).op is Op.RST
        assert "is there, but nobody listens on it" in (await bench.changed(Change.REFUSED)).why

    run(scenario)


def test_a_full_backlog_is_refused_not_lost(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        with Listening(tmp_path, 7000, backlog=0):
            port = 0
            while not any(e.change is Change.REFUSED for e in bench.changes()):
                port += 1
                bench.guest.send(from_guest(Op.REQUEST, host_port=7000, guest_port=port))
                await bench.guest.take()
        assert "its backlog is full" in (await bench.changed(Change.REFUSED)).why

    run(scenario)


def test_a_service_comes_before_a_socket_and_a_used_heartbeat_gives_way(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        with Listening(tmp_path, 9000) as listening:
            sock = await bench.guest.connect(9000)
            sock.send(Op.RW, payload=b"\xb7")
            await sock.expect(Op.RW)
            await sock.expect(Op.SHUTDOWN)
            sock.send(Op.RST)
            sock = await bench.guest.connect(9000, port=1025)
            program = await listening.accept()
            sock.send(Op.RW, payload=b"now mine")
            assert await program.recv() == b"now mine"
            program.close()

    run(scenario)


def test_half_close_by_the_guest_reaches_the_program(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        sock.send(Op.RW, payload=b"question")
        sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        assert await program.recv_all() == b"question"
        await program.send(b"answer")
        assert await sock.read(6) == b"answer"
        program.close()
        assert (await sock.expect_skipping(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        await bench.changed(Change.CLOSED)

    run(scenario)


def test_half_close_by_the_program_reaches_the_guest(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        await program.send(b"question")
        program.sock.shutdown(socket.SHUT_WR)
        assert await sock.read(8) == b"question"
        assert (await sock.expect_skipping(Op.SHUTDOWN)).flags == Shutdown.SEND
        assert bench.switch.connections()[0].state is State.PARENT_FINISHED
        sock.send(Op.RW, payload=b"answer")
        sock.send(Op.SHUTDOWN, flags=Shutdown.BOTH)
        assert await program.recv_all() == b"answer"
        await sock.expect(Op.RST)
        program.close()

    run(scenario)


def test_a_program_that_closes_says_so_at_once(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        await program.send(b"last words")
        program.close()
        assert await sock.read(10) == b"last words"
        assert (await sock.expect_skipping(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        assert (await bench.changed(Change.CLOSED)).summary() == (
            "guest:1024 -> parent:7000 closed by the parent: parent closed (0 bytes from the guest, 10 bytes to it)"
        )

    run(scenario)


def test_a_program_that_closes_unread_says_so(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        sock.send(Op.RW, payload=b"ignored")
        while not bench.switch.connections()[0].bytes_from_guest:
            await asyncio.sleep(0)
        program.close()
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        assert "without reading everything" in (await bench.changed(Change.CLOSED)).why

    run(scenario)


def test_data_for_a_program_that_half_closed_and_went_is_accounted_for(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        program.sock.shutdown(socket.SHUT_WR)
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.SEND
        program.close()
        sock.send(Op.RW, payload=b"too late")
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        assert "8 bytes from the guest were not taken" in (await bench.changed(Change.CLOSED)).why

    run(scenario)


def test_a_guest_that_receives_no_more_breaks_the_programs_pipe(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        sock.send(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
        await bench.changed(Change.HALF_CLOSED)
        with pytest.raises(BrokenPipeError):
            await program.send(b"x")
        sock.send(Op.RW, payload=b"still here")
        assert await program.recv() == b"still here"
        program.close()

    run(scenario)


def test_a_guest_reset_ends_the_programs_stream_after_all_data(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        for _ in range(4):
            sock.send(Op.RW, payload=bytes(MAX_PAYLOAD))
        sock.send(Op.RST)
        await bench.changed(Change.RESET)
        assert len(await program.recv_all()) == BUFFER_SIZE
        program.close()

    run(scenario)


# --- backpressure


def test_a_program_that_does_not_read_stops_the_guest(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        sent = bytearray()
        while True:
            # A guest that obeys its credit, and asks when it has none.
            if sock.credit == 0:
                before = sock.peer_fwd_cnt
                sock.send(Op.CREDIT_REQUEST)
                await sock.expect(Op.CREDIT_UPDATE)
                if sock.peer_fwd_cnt == before and sock.credit == 0:
                    break
            part = os.urandom(min(sock.credit, MAX_PAYLOAD))
            sent += part
            sock.send(Op.RW, payload=part)
        (info,) = bench.switch.connections()
        assert info.unread == BUFFER_SIZE, "all that we keep is one buffer"
        taken_by_kernel = len(sent) - BUFFER_SIZE
        assert sock.peer_fwd_cnt == taken_by_kernel
        assert taken_by_kernel < 4 << 20
        assert await program.recv_exactly(len(sent)) == bytes(sent)
        while sock.credit < BUFFER_SIZE:
            sock.send(Op.CREDIT_REQUEST)
            await sock.expect(Op.CREDIT_UPDATE)
        program.close()

    run(scenario)


def test_a_guest_without_credit_stops_the_program(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        sock, program = await program_to_guest(bench, endpoints, buf_alloc=1000)
        data = os.urandom(2_000_000)
        sending = asyncio.create_task(program.send(data))
        assert len((await sock.expect(Op.RW)).payload) == 1000
        await sock.expect(Op.CREDIT_REQUEST)
        assert bench.guest.take_now() == []
        assert not sending.done()
        assert bench.switch.connections()[0].bytes_to_guest == 1000
        got = bytearray(1000)
        sock.buf_alloc = 100_000
        sock.fwd_cnt = 1000
        sock.send(Op.CREDIT_UPDATE)
        got += await sock.read(len(data) - 1000)
        assert bytes(got[1000:]) == data[1000:]
        await sending
        program.close()

    run(scenario)


def test_a_program_that_never_reads_cannot_hold_up_the_end(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        while sock.credit:
            sock.send(Op.RW, payload=bytes(min(sock.credit, MAX_PAYLOAD)))
            sock.send(Op.CREDIT_REQUEST)
            await sock.expect(Op.CREDIT_UPDATE)
        await bench.switch.close(grace=0.02)
        program.close()

    run(scenario)


def test_a_program_that_reads_gets_the_guests_last_bytes_at_the_end(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        while sock.credit:
            sock.send(Op.RW, payload=bytes(min(sock.credit, MAX_PAYLOAD)))
            sock.send(Op.CREDIT_REQUEST)
            await sock.expect(Op.CREDIT_UPDATE)
        reading = asyncio.create_task(program.recv_all())
        await bench.switch.close(grace=10)
        assert len(await reading) == sock.tx_cnt
        program.close()

    run(scenario)


# --- the program connects


def test_a_program_reaches_the_guest(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        sock, program = await program_to_guest(bench, endpoints)
        await program.send(b"ping")
        assert await sock.read(4) == b"ping"
        sock.send(Op.RW, payload=b"pong")
        assert await program.recv() == b"pong"
        assert bench.changes()[0].summary() == (f"parent:{FIRST_HOST_PORT} -> guest:5000 opened ({endpoints.path})")
        program.close()

    run(scenario)


@pytest.mark.parametrize(
    "line", [b"CONNECT 5000\n", b"connect 5000\n", b"Connect  5000 \n", b" CONNECT 5000\r\n", b"CONNECT 0000005000\n"]
)
def test_the_command_in_all_its_forms(tmp_path: Path, line: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        program = await dial(endpoints.path, line)
        await bench.guest.accept(5000)
        assert (await program.recv_exactly(3)) == b"OK "
        program.close()

    run(scenario)


def test_bytes_right_behind_the_command_are_payload(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        program = await dial(endpoints.path, b"CONNECT 5000\nearly" + bytes(1000))
        sock = await bench.guest.accept(5000, buf_alloc=3)
        assert await sock.read(1005) == b"early" + bytes(1000)
        program.close()

    run(scenario)


def test_the_command_may_come_in_pieces(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        program = await dial(endpoints.path)
        for at in range(13):
            await program.send(b"CONNECT 5000\n"[at : at + 1])
            await asyncio.sleep(0)
        await bench.guest.accept(5000)
        assert (await program.recv_exactly(3)) == b"OK "
        program.close()

    run(scenario)


@pytest.mark.parametrize(
    "line",
    [b"HELLO 5000\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967296\n", b"CONNECT 5 6\n", b"\n",
     b"CONNECT 99999999999999999999999999", bytes(40)],
)  # fmt: skip
def test_anything_else_is_closed(tmp_path: Path, line: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        program = await dial(endpoints.path, line)
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert await program.recv() == b""
        assert bench.switch.connections() == ()
        program.close()

    run(scenario)


def test_a_program_that_says_nothing_and_goes_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        (await dial(endpoints.path)).close()
        stays = await dial(endpoints.path, b"CONN")
        while [c._line for c in endpoints._commands] != [b"CONN"]:
            await asyncio.sleep(0)
        await bench.switch.close()
        assert await stays.recv() == b""
        stays.close()

    run(scenario)


def test_a_refused_connect_closes_the_programs_socket(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        program = await dial(endpoints.path, b"CONNECT 5000\n")
        request = await bench.guest.take()
        bench.guest.send(from_guest(Op.RST, host_port=request.src_port, guest_port=5000))
        assert await program.recv() == b""
        program.close()

    run(scenario)


def test_a_guest_that_never_answers_closes_the_programs_socket(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        program = await dial(endpoints.path, b"CONNECT 5000\n")
        assert await program.recv() == b""
        assert "did not answer within" in (await bench.changed(Change.REFUSED)).why
        program.close()

    run(scenario, connect_timeout=0.02)


def test_sockets_are_bounded(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path, max_sockets=2)
        programs = [await dial(endpoints.path) for _ in range(3)]
        assert await programs[2].recv() == b""
        for program in programs:
            program.close()

    run(scenario)


# --- the directory


def test_the_socket_is_for_its_owner_and_removed_at_the_end(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        mode = endpoints.path.stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600

    run(scenario)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_we_made_goes_again(tmp_path: Path) -> None:
    directory = tmp_path / "sockets"

    async def scenario(bench: Bench) -> None:
        opened(bench, directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    run(scenario)
    assert not directory.exists()


def test_a_directory_that_holds_more_stays(tmp_path: Path) -> None:
    directory = tmp_path / "sockets"

    async def scenario(bench: Bench) -> None:
        opened(bench, directory)
        (directory / "mine").write_text("kept")

    run(scenario)
    assert [p.name for p in directory.iterdir()] == ["mine"]


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "vsock"))

    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        _, program = await program_to_guest(bench, endpoints)
        program.close()

    run(scenario)


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        with socket.socket(socket.AF_UNIX) as alive:
            alive.bind(str(tmp_path / "vsock"))
            alive.listen()
            with pytest.raises(VsockError, match="is served by another process"):
                opened(bench, tmp_path)
        assert (tmp_path / "vsock").exists()

    run(scenario)


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vsock").write_text("mine")

    async def scenario(bench: Bench) -> None:
        with pytest.raises(VsockError, match="is there and is no socket"):
            opened(bench, tmp_path)

    run(scenario)
    assert (tmp_path / "vsock").read_text() == "mine"


def test_a_socket_that_another_process_put_there_since_is_not_removed(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        endpoints.path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(endpoints.path))
            await bench.switch.close()
        assert endpoints.path.exists()

    run(scenario)


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 90)

    async def scenario(bench: Bench) -> None:
        with pytest.raises(VsockError, match=r"has \d+ bytes, but a Unix socket's may have 107; use a shorter"):
            UnixEndpoints(directory, bench.switch)

    run(scenario)


def test_a_directory_that_cannot_be_says_why(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(VsockError, match=r"cannot listen on .*/vsock: No such file or directory"):
            opened(bench, tmp_path / "no" / "such")

    run(scenario)


def test_ctrl_c_while_closing_leaves_nothing(tmp_path: Path) -> None:
    """The signal cancels what waits: here the grace for a program that does not read."""

    async def scenario(bench: Bench) -> None:
        endpoints = opened(bench, tmp_path)
        sock, program = await guest_to_program(bench, tmp_path)
        _, other = await program_to_guest(bench, endpoints)
        task = asyncio.create_task(bench.switch.connect(6000))
        await bench.guest.take()
        while sock.credit:
            sock.send(Op.RW, payload=bytes(min(sock.credit, MAX_PAYLOAD)))
            sock.send(Op.CREDIT_REQUEST)
            await sock.expect(Op.CREDIT_UPDATE)
        closing = asyncio.create_task(bench.switch.close(grace=1000))
        while bench.switch.connections():
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, task, return_exceptions=True)
        program.close()
        other.close()
        assert not endpoints.path.exists()

    run(scenario)
