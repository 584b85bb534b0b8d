from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.vsock.credit import ReceiveCredit
from enclavedbg.vsock.outbox import Outbox
from enclavedbg.vsock.packet import MAX_PAYLOAD, Key, Op, Packet


def packet(op: Op, *, port: int = 1, payload: bytes = b"") -> Packet:
    return Packet(3, 16, 9000, port, op, payload=payload)


def drain(outbox: Outbox, limit: int = MAX_PAYLOAD) -> list[Packet]:
    found = []
    while (one := outbox.pop(limit)) is not None:
        found.append(one)
    return found


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.integers(1, 64))
def test_payload_leaves_whole_and_in_order_in_pieces_that_fit(parts: list[bytes], limit: int) -> None:
    outbox = Outbox()
    for part in parts:
        outbox.push(packet(Op.RW, payload=part))
    outbox.push(packet(Op.SHUTDOWN))
    *data, last = drain(outbox, limit)
    assert last.op is Op.SHUTDOWN
    assert b"".join(p.payload for p in data) == b"".join(parts)
    assert all(0 < len(p.payload) <= limit for p in data)


def test_small_writes_are_merged_but_not_past_another_packet_or_64_kib() -> None:
    outbox = Outbox()
    for part in (b"a", b"b"):
        outbox.push(packet(Op.RW, payload=part))
    outbox.push(packet(Op.RW, port=2, payload=b"c"))
    outbox.push(packet(Op.RW, payload=b"d"))
    outbox.push(packet(Op.RW, payload=bytes(MAX_PAYLOAD)))
    assert [p.payload[:4] for p in drain(outbox)] == [b"ab", b"c", b"d", bytes(4)]


def test_no_room_for_payload_keeps_the_packet() -> None:
    outbox = Outbox()
    outbox.push(packet(Op.RW, payload=b"x"))
    assert outbox.pop(0) is None
    assert len(outbox) == 1


def test_credit_is_that_of_the_moment_when_the_packet_leaves() -> None:
    outbox = Outbox()
    credit = ReceiveCredit()
    credit.accept(100)
    outbox.push(packet(Op.RW, payload=b"x"), credit)
    credit.forward(100)
    assert credit.advertised == 0
    leaving = outbox.pop(10)
    assert leaving is not None
    assert (leaving.buf_alloc, leaving.fwd_cnt) == (credit.buf_alloc, 100)
    assert credit.advertised == 100


def test_credit_messages_wait_once() -> None:
    outbox = Outbox()
    assert outbox.push(packet(Op.CREDIT_UPDATE), ReceiveCredit())
    for _ in range(1000):
        assert not outbox.push(packet(Op.CREDIT_UPDATE), ReceiveCredit())
    assert outbox.push(packet(Op.CREDIT_UPDATE, port=2), ReceiveCredit())
    assert len(drain(outbox)) == 2
    assert outbox.push(packet(Op.CREDIT_UPDATE), ReceiveCredit())


def test_a_repeated_credit_request_goes_behind_the_data() -> None:
    outbox = Outbox()
    outbox.push(packet(Op.CREDIT_REQUEST))
    outbox.push(packet(Op.RW, payload=b"x"))
    assert not outbox.push(packet(Op.CREDIT_REQUEST))
    assert [p.op for p in drain(outbox)] == [Op.RW, Op.CREDIT_REQUEST]


def test_resets_of_a_guest_that_takes_none_are_bounded() -> None:
    outbox = Outbox(max_resets=10)
    accepted = [outbox.push(packet(Op.RST, port=n)) for n in range(1000)]
    assert sum(accepted) == 10
    assert len(outbox) == 10
    drain(outbox)
    assert outbox.push(packet(Op.RST, port=5000))


def test_dropping_a_connection_touches_no_other() -> None:
    outbox = Outbox()
    for port in (1, 2):
        outbox.push(packet(Op.RW, port=port, payload=b"x"))
        outbox.push(packet(Op.CREDIT_UPDATE, port=port))
    assert outbox.drop(Key(3, 9000, 1))
    assert not outbox.drop(Key(3, 9000, 1))
    assert [p.dst_port for p in drain(outbox)] == [2, 2]
    assert outbox.push(packet(Op.CREDIT_UPDATE, port=1))


def test_what_the_loop_sends_before_it_knows_of_a_reset_is_dropped() -> None:
    outbox = Outbox()
    outbox.push(packet(Op.RW, payload=b"old"))
    former = outbox.reset()
    epoch = outbox.reset()
    assert outbox.pop(10) is None
    assert not outbox.push(packet(Op.RW, payload=b"for the old driver"))
    outbox.acknowledge_reset(former)
    assert not outbox.push(packet(Op.RW, payload=b"for the one after"))
    outbox.acknowledge_reset(epoch)
    assert outbox.push(packet(Op.RW, payload=b"new"))
    assert [p.payload for p in drain(outbox)] == [b"new"]


def test_two_threads_lose_and_reorder_nothing() -> None:
    outbox = Outbox()
    sent = bytes(n & 0xFF for n in range(20_000))
    got = bytearray()
    ready = threading.Semaphore(0)

    def vcpu() -> None:
        while len(got) < len(sent):
            assert ready.acquire(timeout=10)
            while (one := outbox.pop(37)) is not None:
                got.extend(one.payload)

    thread = threading.Thread(target=vcpu)
    thread.start()
    for at in range(0, len(sent), 50):
        outbox.push(packet(Op.RW, payload=sent[at : at + 50]))
        ready.release()
    thread.join(10)
    assert bytes(got) == sent
