"""The byte level: whatever comes in whichever pieces, whole packets come out and nothing breaks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.gdbstub.framing import (
    PACKET_SIZE,
    BadPacket,
    Decoder,
    Frame,
    Packet,
    Signal,
    encode,
    escape,
    expand_runs,
    unescape,
)

bodies = st.binary(max_size=300)
junk = st.binary(max_size=8).map(lambda b: bytes(c for c in b if c not in b"$+-\x03"))


def decode(data: bytes, *, limit: int = PACKET_SIZE) -> list[Frame]:
    return list(Decoder(limit).feed(data))


@given(bodies)
def test_any_bytes_survive_the_trip(body: bytes) -> None:
    assert decode(encode(body)) == [Packet(body)]


@given(bodies, st.data())
def test_a_stream_may_be_cut_anywhere(body: bytes, data: st.DataObject) -> None:
    stream = b"+" + encode(body) + b"\x03" + encode(b"g")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = Decoder()
    frames: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames += decoder.feed(stream[start:end])
    assert frames == [Signal.ACK, Packet(body), Signal.INTERRUPT, Packet(b"g")]


@given(st.lists(st.tuples(junk, bodies), max_size=5))
def test_junk_between_packets_is_passed_over(parts: list[tuple[bytes, bytes]]) -> None:
    stream = b"".join(rubbish + encode(body) for rubbish, body in parts)
    assert decode(stream) == [Packet(body) for _, body in parts]


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_no_bytes_at_all_break_the_decoder(pieces: list[bytes]) -> None:
    decoder = Decoder(limit=16)
    for piece in pieces:
        for frame in decoder.feed(piece):
            assert isinstance(frame, Packet | BadPacket | Signal)
            assert not isinstance(frame, Packet) or len(frame.body) <= 16
    # However bad that was, the next packet after a new beginning is understood.
    assert list(decoder.feed(b"$g#67"))[-1] == Packet(b"g")


def test_an_interrupt_inside_a_body_is_data() -> None:
    assert decode(encode(b"X0,1:\x03")) == [Packet(b"X0,1:\x03")]


def test_interrupts_glued_to_packets_are_heard() -> None:
    assert decode(b"\x03$c#63\x03") == [Signal.INTERRUPT, Packet(b"c"), Signal.INTERRUPT]


def test_signals_outside_packets() -> None:
    assert decode(b"+-+") == [Signal.ACK, Signal.NAK, Signal.ACK]


def test_any_escape_is_undone() -> None:
    raw = b"X0,2:}\x61\x7d\x5d"
    assert decode(b"$%b#%02x" % (raw, sum(raw) & 0xFF)) == [Packet(b"X0,2:A}")]


def test_checksums_cover_the_bytes_as_sent() -> None:
    assert encode(b"}") == b"$}]#da"


def test_wrong_checksums_are_bad_packets() -> None:
    for stream in (b"$g#68", b"$g#zz", b"$g#6", b"$g#+7", b"$g# 7", b"$g#\xff\xfe"):
        frames = decode(stream + b"$g#67")
        assert frames[-1] == Packet(b"g")
        assert all(isinstance(frame, BadPacket) for frame in frames[:-1])


def test_a_packet_that_ends_in_an_escape_is_bad() -> None:
    assert isinstance(decode(b"$a}#de")[0], BadPacket)


def test_a_new_beginning_inside_a_packet_replaces_it() -> None:
    assert decode(b"$m1234$g#67") == [Packet(b"g")]
    assert decode(b"$m1234#$g#67") == [Packet(b"g")]


def test_too_long_a_packet_is_discarded_to_its_end() -> None:
    frames = decode(b"$" + b"a" * 17 + b"#51$g#67", limit=16)
    assert [type(frame) for frame in frames] == [BadPacket, Packet]
    decoder = Decoder(limit=16)
    for _ in range(1000):
        assert list(decoder.feed(b"$" + b"a" * 1000)) == []
    assert len(decoder._body) <= 16


@given(st.lists(st.tuples(st.sampled_from(b"0ax#$}*\x00 "), st.integers(1, 210)), max_size=12))
def test_run_lengths_come_out_the_same_and_never_longer(parts: list[tuple[int, int]]) -> None:
    body = b"".join(bytes((byte,)) * count for byte, count in parts)
    packet = encode(body, run_length=True)
    raw, checksum = packet[1:-3], packet[-2:]
    assert int(checksum, 16) == sum(raw) & 0xFF
    assert unescape(expand_runs(raw)) == body
    assert len(raw) <= len(escape(body))
    counts = [raw[at + 1] for at, byte in enumerate(raw) if byte == ord("*")]
    assert all(32 <= count <= 126 and count not in b"#$+-" for count in counts)


def test_run_lengths_pay_for_zeros() -> None:
    assert len(encode(b"0" * 1600, run_length=True)) < 60
