"""The switch and its connections against a scripted guest; the host side is a stream in this process."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import VsockError
from enclavedbg.vsock.contract import State
from enclavedbg.vsock.credit import BUFFER_SIZE
from enclavedbg.vsock.events import Change, Side
from enclavedbg.vsock.inproc import VsockStream
from enclavedbg.vsock.outbox import Outbox
from enclavedbg.vsock.packet import MAX_PAYLOAD, Op, Packet, Shutdown
from enclavedbg.vsock.switch import FIRST_HOST_PORT, INBOUND_LIMIT, VsockSwitch
from tests.vsock.bench import GUEST, Bench, from_guest, run


async def echo(stream: VsockStream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def never_reads(stream: VsockStream) -> None:
    await stream.wait_closed()


# --- opening


def test_the_guest_connects_to_a_service_and_is_echoed() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"hello")
        assert await sock.read(5) == b"hello"
        (info,) = bench.switch.connections()
        assert (info.host_cid, info.host_port, info.guest_cid, info.guest_port) == (3, 7, GUEST, 1024)
        assert (info.state, info.opened_by, info.endpoint) == (State.ESTABLISHED, Side.GUEST, "echo")
        assert (info.bytes_from_guest, info.bytes_to_guest, info.unread) == (5, 5, 0)
        assert info.guest_may_send == BUFFER_SIZE

    run(scenario)


def test_the_response_names_our_buffer_and_the_cid_that_was_dialled() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        for cid in (3, 2):
            bench.guest.send(Packet(GUEST, cid, 50, 7, Op.REQUEST, buf_alloc=1000))
            answer = await bench.guest.take()
            assert answer == Packet(cid, GUEST, 7, 50, Op.RESPONSE, buf_alloc=BUFFER_SIZE)
        assert len(bench.switch.connections()) == 2

    run(scenario)


def test_no_listener_is_refused_with_the_reason() -> None:
    async def scenario(bench: Bench) -> None:
        bench.guest.send(from_guest(Op.REQUEST, host_port=7000))
        assert await bench.guest.take() == Packet(3, GUEST, 7000, 1024, Op.RST)
        event = await bench.changed(Change.REFUSED)
        assert event.summary() == (
            "guest:1024 -> parent:7000 refused by enclavedbg: "
            "no listener on port 7000: no parent service, and no socket directory given"
        )

    run(scenario)


@pytest.mark.parametrize("cid", [0, 1, 4, 77, 0xFFFF_FFFF, 1 << 40])
def test_other_cids_are_nobody(cid: int) -> None:
    async def scenario(bench: Bench) -> None:
        bench.guest.send(Packet(GUEST, cid, 50, 9000, Op.REQUEST))
        assert await bench.guest.take() == Packet(cid, GUEST, 9000, 50, Op.RST)
        assert f"nobody has CID {cid} here" in (await bench.changed(Change.REFUSED)).summary()

    run(scenario)


def test_the_host_connects_and_both_sides_know_the_ports() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000, label="shell"))
        sock = await bench.guest.accept(5000)
        stream = await task
        assert (stream.host_port, stream.guest_port) == (FIRST_HOST_PORT, 5000)
        await stream.write(b"ping")
        assert await sock.read(4) == b"ping"
        sock.send(Op.RW, payload=b"pong")
        assert await stream.read_exactly(4) == b"pong"
        lines = [e.summary() for e in bench.changes()]
        assert lines == [
            f"parent:{FIRST_HOST_PORT} -> guest:5000 opened (shell)",
            f"parent:{FIRST_HOST_PORT} -> guest:5000 established (shell)",
        ]

    run(scenario)


def test_the_guest_refuses_a_port_that_nobody_listens_on() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        request = await bench.guest.take()
        bench.guest.send(from_guest(Op.RST, host_port=request.src_port, guest_port=5000))
        with pytest.raises(VsockError, match="refused by guest: nothing listens on its port 5000"):
            await task
        assert bench.switch.connections() == ()
        assert bench.guest.take_now() == [], "a reset is never answered"

    run(scenario)


def test_a_guest_that_never_answers_times_out() -> None:
    async def scenario(bench: Bench) -> None:
        let_pass = bench.timers_by_hand()
        task = asyncio.create_task(bench.switch.connect(5000))
        request = await bench.guest.take()
        assert let_pass() == 2.0
        with pytest.raises(VsockError, match="the guest did not answer within 2 s of its time"):
            await task
        assert await bench.guest.take() == Packet(3, GUEST, request.src_port, 5000, Op.RST)

    run(scenario)


def test_a_request_that_never_left_is_taken_back_without_a_reset() -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(VsockError, match="did not answer"):
            await bench.switch.connect(5000)
        assert bench.guest.take_now() == []

    run(scenario, connect_timeout=0.02)


@pytest.mark.parametrize("op", [Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST])
def test_another_answer_than_response_resets(op: Op) -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        request = await bench.guest.take()
        bench.guest.send(from_guest(op, host_port=request.src_port, guest_port=5000))
        with pytest.raises(VsockError, match=f"answered REQUEST with {op.name}"):
            await task
        assert (await bench.guest.take()).op is Op.RST

    run(scenario)


def test_a_cancelled_connect_leaves_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        await bench.guest.take()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await bench.guest.take()).op is Op.RST
        assert bench.switch.connections() == ()

    run(scenario)


def test_host_ports_go_round() -> None:
    async def scenario(bench: Bench) -> None:
        ports = []
        for _ in range(3):
            task = asyncio.create_task(bench.switch.connect(5000))
            sock = await bench.guest.accept(5000)
            ports.append(sock.peer_port)
            stream = await task
            stream.reset("done")
            assert (await bench.guest.take()).op is Op.RST
        assert ports == [FIRST_HOST_PORT, FIRST_HOST_PORT + 1, FIRST_HOST_PORT + 2]

    run(scenario)


def test_the_table_is_bounded_for_both_sides() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        for port in range(3):
            await bench.guest.connect(7, port=port)
        bench.guest.send(from_guest(Op.REQUEST, host_port=7, guest_port=99))
        assert (await bench.guest.take()).op is Op.RST
        assert "all 3 connections are in use" in (await bench.changed(Change.REFUSED)).why
        with pytest.raises(VsockError, match="all 3 connections are in use"):
            await bench.switch.connect(5000)

    run(scenario, max_connections=3)


@pytest.mark.parametrize("port", [-1, 1 << 32])
def test_ports_are_u32(port: int) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(VsockError, match=f"port {port} is no vsock port"):
            await bench.switch.connect(port)
        with pytest.raises(VsockError, match=f"port {port} is no vsock port"):
            bench.switch.register(port, echo, name="echo")

    run(scenario)


def test_services_are_registered_once_and_listed() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        with pytest.raises(VsockError, match="port 7 is served by echo already"):
            bench.switch.register(7, echo, name="other")
        assert bench.switch.services() == {7: "echo", 9000: "heartbeat"}
        bench.switch.unregister(7)
        bench.guest.send(from_guest(Op.REQUEST, host_port=7))
        assert (await bench.guest.take()).op is Op.RST

    run(scenario)


@pytest.mark.parametrize("cid", [0, 1, 2, 3, 0xFFFF_FFFF, 1 << 32])
def test_an_enclave_cannot_have_a_reserved_cid(cid: int) -> None:
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(VsockError, match=f"CID {cid} cannot be an enclave's"):
            VsockSwitch(cid, loop, publish=lambda event: None, now_ns=lambda: 0)
    finally:
        loop.close()


# --- resets


@pytest.mark.parametrize("op", [Op.RESPONSE, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST])
def test_a_packet_of_no_connection_is_reset(op: Op) -> None:
    async def scenario(bench: Bench) -> None:
        payload = b"x" if op is Op.RW else b""
        bench.guest.send(from_guest(op, host_port=7, payload=payload, fwd_cnt=9))
        assert await bench.guest.take() == Packet(3, GUEST, 7, 1024, Op.RST)

    run(scenario)


def test_a_reset_of_no_connection_is_not_answered() -> None:
    async def scenario(bench: Bench) -> None:
        bench.guest.send(from_guest(Op.RST, host_port=7))
        bench.guest.send(Packet(GUEST, 3, 1, 2, Op.RST, 2))
        bench.guest.send(Packet(99, 3, 1, 2, Op.RST))
        bench.guest.send(from_guest(Op.RW, host_port=8, payload=b"x"))
        assert await bench.guest.take() == Packet(3, GUEST, 8, 1024, Op.RST)
        assert bench.guest.take_now() == []

    run(scenario)


def test_a_foreign_source_cid_is_reset() -> None:
    async def scenario(bench: Bench) -> None:
        bench.guest.send(Packet(99, 3, 1, 9000, Op.REQUEST))
        assert await bench.guest.take() == Packet(3, 99, 9000, 1, Op.RST)
        assert bench.switch.connections() == ()

    run(scenario)


@pytest.mark.parametrize(("kind", "answered"), [(2, 2), (0, 1), (9, 1)])
def test_seqpacket_is_not_offered(kind: int, answered: int) -> None:
    async def scenario(bench: Bench) -> None:
        bench.guest.send(Packet(GUEST, 3, 1024, 9000, Op.REQUEST, kind))
        assert await bench.guest.take() == Packet(3, GUEST, 9000, 1024, Op.RST, answered)
        assert f"socket type {kind} is not offered" in (await bench.changed(Change.REFUSED)).summary()

    run(scenario)


def test_another_type_on_a_connection_ends_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        await bench.guest.connect(7)
        bench.guest.send(Packet(GUEST, 3, 1024, 7, Op.RW, 2, payload=b"x"))
        assert await bench.guest.take() == Packet(3, GUEST, 7, 1024, Op.RST, 2)
        assert (await bench.changed(Change.RESET)).who is Side.DEBUGGER
        assert bench.switch.connections() == ()

    run(scenario)


def test_a_second_request_ends_the_first_connection() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        sock = await bench.guest.connect(7)
        sock.send(Op.REQUEST)
        await sock.expect(Op.RST)
        assert "second REQUEST" in (await bench.changed(Change.RESET)).why
        await bench.guest.connect(7)

    run(scenario)


def test_a_response_on_an_established_connection_is_a_breach() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        sock = await bench.guest.connect(7)
        sock.send(Op.RESPONSE)
        await sock.expect(Op.RST)

    run(scenario)


def test_the_guest_resets_and_the_event_says_so() -> None:
    async def scenario(bench: Bench) -> None:
        outcome: list[str] = []

        async def service(stream: VsockStream) -> None:
            assert await stream.read() == b"abc"
            try:
                await stream.read()
            except VsockError as error:
                outcome.append(str(error))

        bench.switch.register(7, service, name="demo")
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"abc")
        sock.send(Op.RST)
        event = await bench.changed(Change.RESET)
        assert event.summary() == (
            "guest:1024 -> parent:7 reset by the guest: it sent RST (3 bytes from the guest, 0 bytes to it)"
        )
        while not outcome:
            await asyncio.sleep(0)
        assert outcome == ["demo: cannot read: reset by guest: it sent RST"]
        assert bench.guest.take_now() == []

    run(scenario)


def test_a_malformed_packet_costs_its_connection() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        sock = await bench.guest.connect(7)
        bench.switch.malformed(from_guest(Op.RW, host_port=7), "RW announces 70000 bytes")
        await sock.expect(Op.RST)
        assert (await bench.changed(Change.RESET)).why == "RW announces 70000 bytes"

    run(scenario)


def test_a_device_reset_drops_all_connections_and_what_waits() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        await bench.guest.connect(7)
        task = asyncio.create_task(bench.switch.connect(5000))
        await bench.guest.accept(5000)
        stream = await task
        await stream.write(b"for a driver that is no more")
        bench.switch.guest_reset()
        assert not bench.switch.pending
        await stream.wait_closed()
        with pytest.raises(VsockError, match="guest reset the device"):
            await stream.read()
        assert bench.switch.connections() == ()
        assert [e.why for e in bench.changes() if e.change is Change.RESET] == ["guest reset the device"] * 2
        assert bench.guest.take_now() == []
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"again")
        assert await sock.read(5) == b"again"

    run(scenario)


def test_a_driver_that_resets_without_end_fills_no_queue() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        for _ in range(10_000):
            bench.switch.guest_reset()
        assert len(bench.switch._inbound) == 1
        bench.guest.send(from_guest(Op.REQUEST, host_port=7))
        bench.switch.guest_reset()
        assert len(bench.switch._inbound) == 3
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"one")
        assert await sock.read(3) == b"one"
        assert [e.change for e in bench.changes()] == [Change.ESTABLISHED, Change.RESET, Change.ESTABLISHED]

    run(scenario)


def test_a_failing_service_resets_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(stream: VsockStream) -> None:
        await stream.read()
        raise VsockError("gives up")

    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        bench.switch.register(8, broken, name="broken")
        good = await bench.guest.connect(7, port=1)
        bad = await bench.guest.connect(8, port=2)
        bad.send(Op.RW, payload=b"x")
        assert (await bad.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        bad.send(Op.RST)
        good.send(Op.RW, payload=b"y")
        assert await good.read(1) == b"y"

    run(scenario)


# --- closing


def test_the_guest_closes_and_is_answered_with_reset() -> None:
    async def scenario(bench: Bench) -> None:
        got: list[bytes] = []

        async def service(stream: VsockStream) -> None:
            got.append(await stream.read_all())

        bench.switch.register(7, service, name="sink")
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"last words")
        sock.send(Op.SHUTDOWN, flags=Shutdown.BOTH)
        await sock.expect(Op.RST)
        assert got == [b"last words"]
        assert (await bench.changed(Change.CLOSED)).summary() == (
            "guest:1024 -> parent:7 closed by the guest (10 bytes from the guest, 0 bytes to it)"
        )

    run(scenario)


def test_the_reset_that_answers_a_close_waits_for_the_reader() -> None:
    async def scenario(bench: Bench) -> None:
        go = asyncio.Event()

        async def service(stream: VsockStream) -> None:
            await go.wait()
            assert await stream.read_all() == b"abc"

        bench.switch.register(7, service, name="slow")
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"abc")
        sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        sock.send(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
        await bench.changed(Change.HALF_CLOSED)
        (info,) = bench.switch.connections()
        assert (info.state, info.unread) == (State.CLOSING, 3)
        assert bench.guest.take_now() == []
        go.set()
        await sock.expect(Op.RST)

    run(scenario)


def test_half_closed_by_the_guest_the_parent_still_answers() -> None:
    async def scenario(bench: Bench) -> None:
        async def service(stream: VsockStream) -> None:
            question = await stream.read_all()
            await stream.write(question.upper())

        bench.switch.register(7, service, name="shout")
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"question")
        sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        assert (await bench.changed(Change.HALF_CLOSED)).summary() == (
            "guest:1024 -> parent:7 half-closed by the guest: it will send no more"
        )
        assert await sock.read(8) == b"QUESTION"
        assert (await sock.expect_skipping(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        assert (await bench.changed(Change.CLOSED)).who is Side.PARENT

    run(scenario)


def test_half_closed_by_the_parent_the_guest_still_answers() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        sock = await bench.guest.accept(5000)
        stream = await task
        await stream.write(b"question")
        stream.finish()
        assert await sock.read(8) == b"question"
        assert (await sock.expect_skipping(Op.SHUTDOWN)).flags == Shutdown.SEND
        (info,) = bench.switch.connections()
        assert info.state is State.PARENT_FINISHED
        with pytest.raises(VsockError, match="cannot write"):
            await stream.write(b"more")
        sock.send(Op.RW, payload=b"answer")
        sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        assert await stream.read_all() == b"answer"
        # Neither direction carries anything now: the guest is told the rest, and resets as Linux does.
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        await stream.wait_closed()
        assert stream.ending is not None and stream.ending.clean
        assert (await bench.changed(Change.CLOSED)).why == "both sides finished"

    run(scenario)


def test_a_guest_that_receives_no_more_stops_the_writer() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        sock = await bench.guest.accept(5000, buf_alloc=10)
        stream = await task
        writing = asyncio.create_task(stream.write(bytes(100)))
        assert (await sock.expect(Op.RW)).payload == bytes(10)
        sock.send(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
        with pytest.raises(VsockError, match="the guest's end receives no more"):
            await writing
        sock.send(Op.RW, payload=b"but it still sends")
        assert await stream.read() == b"but it still sends"

    run(scenario)


def test_data_after_the_guest_said_it_was_done_is_a_breach() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, never_reads, name="sink")
        sock = await bench.guest.connect(7)
        sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        sock.send(Op.RW, payload=b"x")
        await sock.expect(Op.RST)
        assert "after it said it would send no more" in (await bench.changed(Change.RESET)).why

    run(scenario)


def test_the_parent_closes_and_the_guest_answers_with_reset() -> None:
    async def scenario(bench: Bench) -> None:
        async def bye(stream: VsockStream) -> None:
            await stream.write(b"bye")

        bench.switch.register(7, bye, name="bye")
        sock = await bench.guest.connect(7)
        assert (await sock.expect(Op.RW)).payload == b"bye"
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RW, payload=b"crossed on the way")
        assert [c.state for c in bench.switch.connections()] == [State.CLOSING]
        sock.send(Op.RST)
        event = await bench.changed(Change.CLOSED)
        assert event.summary() == (
            "guest:1024 -> parent:7 closed by the parent (18 bytes from the guest, 3 bytes to it)"
        )

    run(scenario)


def test_a_guest_that_never_confirms_a_close_is_reset() -> None:
    async def scenario(bench: Bench) -> None:
        async def service(stream: VsockStream) -> None:
            pass

        let_pass = bench.timers_by_hand()
        bench.switch.register(7, service, name="nothing")
        sock = await bench.guest.connect(7)
        await sock.expect(Op.SHUTDOWN)
        assert let_pass() == 8.0
        await sock.expect(Op.RST)
        await bench.changed(Change.CLOSED)

    run(scenario)


def test_a_guest_that_still_reads_is_not_cut_off_by_the_close_timeout() -> None:
    async def scenario(bench: Bench) -> None:
        async def service(stream: VsockStream) -> None:
            await stream.write(bytes(300))

        let_pass = bench.timers_by_hand()
        bench.switch.register(7, service, name="bulk")
        sock = await bench.guest.connect(7)
        assert len((await sock.expect(Op.RW)).payload) == 300
        await sock.expect(Op.SHUTDOWN)
        for read in (100, 200):
            let_pass()
            await sock.expect(Op.CREDIT_REQUEST)
            sock.fwd_cnt = read
            sock.send(Op.CREDIT_UPDATE)
            await bench.drained()
        let_pass()
        await sock.expect(Op.CREDIT_REQUEST)
        # No progress since: now it has had its time.
        let_pass()
        await sock.expect(Op.RST)

    run(scenario)


# --- credit


def test_bulk_both_ways_under_small_credit() -> None:
    data = bytes(range(256)) * 2000

    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        sock = await bench.guest.connect(7, buf_alloc=1000)
        back = bytearray()
        sent = 0
        in_flight_seen = 0
        while len(back) < len(data):
            while sent < len(data) and sock.credit >= 4096:
                sock.send(Op.RW, payload=data[sent : sent + 4096])
                sent += 4096
            packet = await bench.guest.take()
            sock.peer_buf_alloc, sock.peer_fwd_cnt = packet.buf_alloc, packet.fwd_cnt
            if packet.op is Op.RW:
                back += packet.payload
                in_flight_seen = max(in_flight_seen, len(back) - sock.fwd_cnt)
                if len(back) - sock.fwd_cnt >= 500:
                    sock.fwd_cnt = len(back)
                    sock.send(Op.CREDIT_UPDATE)
            elif packet.op is Op.CREDIT_REQUEST:
                sock.fwd_cnt = len(back)
                sock.send(Op.CREDIT_UPDATE)
        assert bytes(back) == data
        assert in_flight_seen <= 1000

    run(scenario)


def test_a_reader_that_pauses_stops_the_guest_and_is_told_when_it_may_go_on() -> None:
    async def scenario(bench: Bench) -> None:
        go = asyncio.Event()

        async def service(stream: VsockStream) -> None:
            await go.wait()
            await stream.read_exactly(BUFFER_SIZE)

        bench.switch.register(7, service, name="lazy")
        sock = await bench.guest.connect(7)
        for _ in range(BUFFER_SIZE // MAX_PAYLOAD):
            sock.send(Op.RW, payload=bytes(MAX_PAYLOAD))
        sock.send(Op.CREDIT_REQUEST)
        update = await sock.expect(Op.CREDIT_UPDATE)
        assert (update.buf_alloc, update.fwd_cnt) == (BUFFER_SIZE, 0)
        assert sock.credit == 0
        assert bench.switch.connections()[0].unread == BUFFER_SIZE
        go.set()
        while sock.credit < BUFFER_SIZE // 2:
            await sock.expect(Op.CREDIT_UPDATE)

    run(scenario)


def test_a_byte_beyond_the_credit_resets() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, never_reads, name="lazy")
        sock = await bench.guest.connect(7)
        for _ in range(BUFFER_SIZE // MAX_PAYLOAD):
            sock.send(Op.RW, payload=bytes(MAX_PAYLOAD))
        sock.send(Op.RW, payload=b"x")
        await sock.expect(Op.RST)
        event = await bench.changed(Change.RESET)
        assert (event.who, event.why) == (Side.DEBUGGER, "the guest sent 1 byte with credit for 0")

    run(scenario)


def test_a_stalled_writer_asks_for_credit_once() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        sock = await bench.guest.accept(5000, buf_alloc=100)
        stream = await task
        writing = asyncio.create_task(stream.write(bytes(250)))
        assert len((await sock.expect(Op.RW)).payload) == 100
        await sock.expect(Op.CREDIT_REQUEST)
        for _ in range(3):
            sock.send(Op.CREDIT_UPDATE)  # nothing read yet
        sock.send(Op.CREDIT_REQUEST)
        await sock.expect(Op.CREDIT_UPDATE)
        assert bench.guest.take_now() == []
        sock.fwd_cnt = 100
        sock.send(Op.CREDIT_UPDATE)
        assert len((await sock.expect(Op.RW)).payload) == 100
        await sock.expect(Op.CREDIT_REQUEST)
        sock.fwd_cnt = 200
        sock.send(Op.RW, payload=b"credit comes with data too")
        assert len((await sock.expect(Op.RW)).payload) == 50
        await writing

    run(scenario)


def test_credit_wraps_in_a_long_connection() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        sock = await bench.guest.connect(7)
        (connection,) = bench.switch._connections.values()
        # As after 4 GiB less 3 bytes each way: nobody waits for those in a test.
        for counters, names in ((connection._tx, ("sent", "peer_fwd_cnt")),
                                (connection._rx, ("received", "forwarded", "advertised"))):  # fmt: skip
            for name in names:
                setattr(counters, name, 0xFFFF_FFFD)
        sock.fwd_cnt = sock.tx_cnt = sock.peer_fwd_cnt = 0xFFFF_FFFD
        for _ in range(4):
            sock.send(Op.RW, payload=b"across")
            assert await sock.read(6) == b"across"
        assert sock.credit == BUFFER_SIZE

    run(scenario)


# --- heartbeat


def test_the_heartbeat_is_answered_once_and_published() -> None:
    async def scenario(bench: Bench) -> None:
        sock = await bench.guest.connect(9000)
        sock.send(Op.RW, payload=b"\xb7")
        assert (await sock.expect(Op.RW)).payload == b"\xb7"
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        sock.send(Op.RST)
        assert [h.summary() for h in bench.heartbeats()] == ["heartbeat: the guest reported, and was answered"]
        bench.guest.send(from_guest(Op.REQUEST, host_port=9000))
        assert (await bench.guest.take()).op is Op.RST
        assert "heartbeat takes one connection, and has had it" in (await bench.changed(Change.REFUSED)).why
        bench.switch.guest_reset()
        sock = await bench.guest.connect(9000)
        sock.send(Op.RW, payload=b"\xb7")
        await sock.expect(Op.RW)

    run(scenario)


@pytest.mark.parametrize(
    ("payload", "text"),
    [(b"\x42", "the guest sent 0x42, expected 0xb7"), (b"", "closed the connection before it sent a byte")],
)
def test_a_wrong_heartbeat_is_published(payload: bytes, text: str) -> None:
    async def scenario(bench: Bench) -> None:
        sock = await bench.guest.connect(9000)
        if payload:
            sock.send(Op.RW, payload=payload)
        else:
            sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        assert (await sock.expect(Op.SHUTDOWN)).flags == Shutdown.BOTH
        (heartbeat,) = bench.heartbeats()
        assert not heartbeat.ok and text in heartbeat.detail

    run(scenario)


def test_a_heartbeat_cut_by_a_reset_is_published() -> None:
    async def scenario(bench: Bench) -> None:
        sock = await bench.guest.connect(9000)
        sock.send(Op.RST)
        await bench.until(lambda e: e.kind == "vsock.heartbeat")
        assert "it sent RST" in bench.heartbeats()[0].detail

    run(scenario)


# --- events and ends


def test_packet_events_tell_all_and_keep_64_bytes() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, never_reads, name="sink")
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"GET / HTTP/1.1\r\n" + bytes(100))
        sock.send(Op.SHUTDOWN, flags=Shutdown.SEND)
        await bench.changed(Change.HALF_CLOSED)
        request, response, data, shutdown = bench.packets()
        assert request.summary() == "guest:1024 => parent:7 REQUEST (buffer 262144, taken 0)"
        assert response.to_guest and response.op is Op.RESPONSE
        assert response.summary() == "parent:7 => guest:1024 RESPONSE (buffer 262144, taken 0)"
        assert (data.length, len(data.head)) == (116, 64)
        assert data.summary() == f"guest:1024 => parent:7 RW 116 bytes |GET / HTTP/1.1..{'.' * 48}|..."
        assert shutdown.summary() == "guest:1024 => parent:7 SHUTDOWN (will send no more)"

    run(scenario)


def test_what_came_before_the_end_is_still_delivered() -> None:
    async def scenario(bench: Bench) -> None:
        task = asyncio.create_task(bench.switch.connect(5000))
        sock = await bench.guest.accept(5000)
        stream = await task
        sock.send(Op.RW, payload=b"result")  # the loop has not seen it when the run ends
        await bench.switch.close()
        assert await stream.read_all() == b"result"
        assert stream.ending is not None and stream.ending.why == "the enclave's run is over"
        with pytest.raises(VsockError, match="the enclave's run is over"):
            await bench.switch.connect(5000)
        bench.guest.send(from_guest(Op.REQUEST, host_port=9000))
        await asyncio.sleep(0)
        assert bench.switch.connections() == ()

    run(scenario)


def test_closing_ends_a_service_that_waits() -> None:
    async def scenario(bench: Bench) -> None:
        ended: list[bool] = []

        async def service(stream: VsockStream) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        bench.switch.register(7, service, name="stuck")
        await bench.guest.connect(7)
        await asyncio.sleep(0)
        await bench.switch.close()
        assert ended == [True]

    run(scenario)


def test_a_closed_loop_does_not_break_the_vcpu_thread() -> None:
    async def make() -> VsockSwitch:
        return VsockSwitch(GUEST, asyncio.get_running_loop(), publish=lambda event: None, now_ns=lambda: 0)

    switch = asyncio.run(make())
    switch.from_guest(from_guest(Op.REQUEST, host_port=9000))
    switch.guest_reset()
    assert switch.next_for_guest(100) is None


# --- two threads, hostile guests


def test_the_guest_on_a_thread_of_its_own_gets_every_byte_in_order() -> None:
    data = bytes(range(251)) * 4000

    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        pending = threading.Event()
        bench.switch.on_pending = pending.set
        back: dict[int, bytearray] = {port: bytearray() for port in (1, 2, 3)}
        failures: list[str] = []

        def vcpu() -> None:
            sent = dict.fromkeys(back, 0)
            told = dict.fromkeys(back, 0)
            credit = dict.fromkeys(back, 0)
            for port in back:
                bench.switch.from_guest(from_guest(Op.REQUEST, host_port=7, guest_port=port))
            while True:
                pending.clear()
                while (packet := bench.switch.next_for_guest(4052)) is not None:
                    port = packet.dst_port
                    if packet.op not in (Op.RESPONSE, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST):
                        failures.append(f"{packet.op.name} came")
                        return
                    back[port] += packet.payload
                    credit[port] = packet.buf_alloc + packet.fwd_cnt
                    if packet.op is Op.CREDIT_REQUEST or len(back[port]) - told[port] > 50_000:
                        told[port] = len(back[port])
                        bench.switch.from_guest(
                            from_guest(Op.CREDIT_UPDATE, host_port=7, guest_port=port, fwd_cnt=told[port])
                        )
                if all(len(got) == len(data) for got in back.values()):
                    return
                moved = False
                for port in back:
                    count = min(3000, credit[port] - sent[port], len(data) - sent[port])
                    if count > 0 and bench.switch.accepts_packets():
                        payload = data[sent[port] : sent[port] + count]
                        sent[port] += count
                        moved = True
                        bench.switch.from_guest(
                            from_guest(Op.RW, host_port=7, guest_port=port, payload=payload, fwd_cnt=told[port])
                        )
                if not moved and not bench.switch.pending and not pending.wait(10):
                    failures.append("no kick came")
                    return

        await asyncio.to_thread(vcpu)
        assert failures == []
        assert all(bytes(got) == data for got in back.values())

    run(scenario)


def test_a_guest_faster_than_the_loop_is_held_back_and_woken() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(INBOUND_LIMIT):
            assert bench.switch.accepts_packets()
            bench.guest.send(from_guest(Op.RST, host_port=7))
        assert not bench.switch.accepts_packets()
        assert bench.guest.kicks == 0
        while not bench.guest.kicks:
            await asyncio.sleep(0)
        assert bench.switch.accepts_packets()

    run(scenario)


def test_what_a_guest_that_takes_nothing_can_make_us_keep_is_bounded() -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        for port in range(3000):
            for op in (Op.REQUEST, Op.CREDIT_REQUEST, Op.CREDIT_REQUEST, Op.REQUEST, Op.RW):
                while not bench.switch.accepts_packets():
                    await asyncio.sleep(0)
                bench.guest.send(from_guest(op, host_port=7, guest_port=port, payload=b"x" if op is Op.RW else b""))
        while bench.switch._inbound:
            await asyncio.sleep(0)
        assert len(bench.switch._outbox) <= 2048 + 3 * 1024

    run(scenario)


ports = st.sampled_from([7, 8, 9000, FIRST_HOST_PORT])
hostile = st.builds(
    Packet,
    st.sampled_from([GUEST, GUEST, GUEST, GUEST, 99]),
    st.sampled_from([3, 3, 3, 2, 77]),
    st.sampled_from([1, 2, 5000]),
    ports,
    st.sampled_from(list(Op)),
    st.sampled_from([1, 1, 1, 1, 2, 5]),
    st.integers(0, 3),
    st.sampled_from([0, 10, 262144, 0xFFFF_FFFF]),
    st.sampled_from([0, 1, 5, 0xFFFF_FFFF]),
    st.sampled_from([b"", b"", b"x", bytes(65536)]),
)
steps = st.one_of(hostile, st.sampled_from(["take", "settle", "connect", "reset"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40))
def test_no_sequence_of_packets_breaks_the_switch(script: list[Packet | str]) -> None:
    async def scenario(bench: Bench) -> None:
        bench.switch.register(7, echo, name="echo")
        bench.switch.register(8, never_reads, name="sink")
        connects: list[asyncio.Task[VsockStream]] = []
        for step in script:
            match step:
                case Packet():
                    bench.guest.send(step)
                case "take":
                    for packet in bench.guest.take_now(1000):
                        assert len(packet.payload) <= 1000
                        assert packet.op is Op.RW or not packet.payload
                case "connect":
                    connects.append(asyncio.create_task(bench.switch.connect(5000)))
                case "reset":
                    bench.switch.guest_reset()
                case _:
                    await asyncio.sleep(0)
        await asyncio.sleep(0)  # the last connects begin
        bench.switch.guest_reset()
        while bench.switch._inbound:
            await asyncio.sleep(0)
        assert bench.switch.connections() == ()
        for task in connects:
            task.cancel()
        await asyncio.gather(*connects, return_exceptions=True)
        # Still in order: a well-behaved connection works.
        bench.guest.take_now()
        sock = await bench.guest.connect(7)
        sock.send(Op.RW, payload=b"fine")
        assert await sock.read(4) == b"fine"

    run(scenario)


def test_an_outbox_is_all_that_the_vcpu_thread_needs_to_look_at() -> None:
    """`pending` may be asked at every exit of the guest: it takes no lock."""
    outbox = Outbox()
    with outbox._lock:
        assert len(outbox) == 0
