from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.vsock.packet import HEADER, HEADER_SIZE, MAX_PAYLOAD, Key, Op, Packet, PacketError

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, (1 << 64) - 1)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    op = draw(st.sampled_from(list(Op)))
    return Packet(
        draw(u64), draw(u64), draw(u32), draw(u32), op, draw(u16),
        draw(st.integers(0, 3)) if op is Op.SHUTDOWN else draw(u32),
        draw(u32), draw(u32), draw(st.binary(max_size=200)) if op is Op.RW else b"",
    )  # fmt: skip


def test_the_header_has_44_bytes_in_the_published_order() -> None:
    packet = Packet(16, 3, 1024, 9000, Op.RW, buf_alloc=0x40000, fwd_cnt=7, payload=b"\xb7")
    assert packet.encode() == (
        bytes.fromhex(
            "1000000000000000 0300000000000000 00040000 28230000 01000000 0100 0500 00000000 00000400 07000000"
        )
        + b"\xb7"
    )
    assert HEADER_SIZE == 44


@given(packets(), st.binary(max_size=8))
def test_what_is_encoded_parses_to_the_same(packet: Packet, more: bytes) -> None:
    assert Packet.parse(packet.encode()) == packet
    assert Packet.parse(packet.encode() + more) == packet


@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_an_error(data: bytes) -> None:
    try:
        packet = Packet.parse(data)
    except PacketError as error:
        assert "\n" not in str(error)
    else:
        assert packet.encode() == data[: HEADER_SIZE + len(packet.payload)]


@given(u64, u64, u32, u32, u32, st.integers(0, 3), st.integers(0, 9), st.integers(0, 5), st.integers(0, 64))
def test_header_fields_are_checked(
    src: int, dst: int, sport: int, dport: int, length: int, kind: int, op: int, flags: int, tail: int
) -> None:
    data = HEADER.pack(src, dst, sport, dport, length, kind, op, flags, 0, 0) + bytes(tail)
    legal = 1 <= op <= 7 and (length == 0 or (op == Op.RW and length <= tail))
    if op == Op.SHUTDOWN and flags > 3:
        legal = False
    if legal:
        assert len(Packet.parse(data).payload) == length
    else:
        with pytest.raises(PacketError):
            Packet.parse(data)


@pytest.mark.parametrize(
    ("op", "length", "flags", "text"),
    [
        (0, 0, 0, "operation 0 is unknown"),
        (8, 0, 0, "operation 8 is unknown"),
        (5, MAX_PAYLOAD + 1, 0, "at most 65536"),
        (5, 11, 0, "announces 11 bytes but only 10 follow"),
        (6, 4, 0, "CREDIT_UPDATE announces 4 bytes of payload"),
        (4, 0, 4, "SHUTDOWN has flags 0x4"),
    ],
)
def test_the_error_says_what_is_wrong(op: int, length: int, flags: int, text: str) -> None:
    data = HEADER.pack(16, 3, 5, 6, length, 1, op, flags, 0, 0) + bytes(10)
    with pytest.raises(PacketError, match=text) as caught:
        Packet.parse(data)
    if 1 <= op <= 7:
        assert caught.value.header is not None
        assert caught.value.header.key_from_guest == Key(3, 6, 5)
    else:
        assert caught.value.header is None


def test_a_short_header_names_both_sizes() -> None:
    with pytest.raises(PacketError, match="43 bytes are too short for a packet header, expected 44"):
        Packet.parse(bytes(43))


@pytest.mark.parametrize(("kind", "answered"), [(1, 1), (2, 2), (0, 1), (77, 1)])
def test_a_reset_swaps_the_ends_and_copies_a_known_type(kind: int, answered: int) -> None:
    reply = Packet(16, 3, 1024, 7000, Op.RW, kind, 3, 100, 100, b"abc").reset_reply()
    assert reply == Packet(3, 16, 7000, 1024, Op.RST, answered, 0, 0, 0, b"")
