from __future__ import annotations

import struct
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import GuestFault, SymbolError
from enclavedbg.kernel.btf import Btf
from enclavedbg.kernel.image import KernelImage
from enclavedbg.kernel.kallsyms import read_kallsyms
from enclavedbg.kernel.log import LogRecord, read_log
from enclavedbg.kernel.symbols import KernelSymbols
from tests.kernel.builders import DATA, TEXT, BtfWriter, ElfWriter, KallsymsWriter, many_symbols

RING, DESCRIPTORS, INFOS, TEXTS = DATA + 0x100, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000
COUNT_BITS, SIZE_BITS = 2, 7
FINAL, REUSABLE = 2 << 62, 3 << 62


@cache
def symbols() -> KernelSymbols:
    elf = ElfWriter()
    elf.add(".text", TEXT, bytes(0x10000), flags=6)
    elf.add(".data", DATA, bytes(0x4000), flags=3)
    table = read_kallsyms(KallsymsWriter([*many_symbols(300), ("d", "prb", DATA)]).encode())
    return KernelSymbols(KernelImage(elf.encode()), table)


@cache
def btf(descriptor_size: int = 24, info_size: int = 24) -> Btf:
    writer = BtfWriter()
    u64, u32 = writer.integer("u64", 8), writer.integer("u32", 4)
    u16, u8 = writer.integer("u16", 2), writer.integer("u8", 1)
    place = writer.struct("prb_data_blk_lpos", 16, ("begin", u64, 0), ("next", u64, 64))
    writer.struct("prb_desc", descriptor_size, ("state_var", u64, 0), ("text_blk_lpos", place, 64))
    writer.struct(
        "printk_info", info_size, ("seq", u64, 0), ("ts_nsec", u64, 64), ("text_len", u16, 128), ("facility", u8, 144),
        ("flags", u8, 152, 5), ("level", u8, 157, 3),
    )  # fmt: skip
    descriptors = writer.struct(
        "prb_desc_ring", 40, ("count_bits", u32, 0), ("descs", u64, 64), ("infos", u64, 128), ("head_id", u64, 192),
        ("tail_id", u64, 256),
    )  # fmt: skip
    data = writer.struct("prb_data_ring", 16, ("size_bits", u32, 0), ("data", u64, 64))
    writer.struct("printk_ringbuffer", 56, ("desc_ring", descriptors, 0), ("text_data_ring", data, 320))
    return Btf.parse(writer.encode())


class Ring:
    """A log of four records and 128 bytes of text, as guest memory."""

    def __init__(self, *, head: int, tail: int) -> None:
        self.memory = bytearray(0x4000)
        self.put(DATA, struct.pack("<Q", RING))
        self.put(RING, struct.pack("<IxxxxQQQQ", COUNT_BITS, DESCRIPTORS, INFOS, head, tail))
        self.put(RING + 40, struct.pack("<IxxxxQ", SIZE_BITS, TEXTS))

    def put(self, address: int, data: bytes) -> None:
        self.memory[address - DATA : address - DATA + len(data)] = data

    def record(self, record_id: int, text: bytes, *, begin: int, end: int, state: int = FINAL, level: int = 6) -> None:
        slot = record_id & (1 << COUNT_BITS) - 1
        self.put(DESCRIPTORS + 24 * slot, struct.pack("<QQQ", state | record_id, begin, end))
        info = struct.pack("<QQHBB", record_id + 10, record_id * 1000, len(text), 3, level << 5)
        self.put(INFOS + 24 * slot, info)
        if not begin & 1:
            size = 1 << SIZE_BITS
            at = begin % size if begin // size == end // size else 0
            self.put(TEXTS + at, struct.pack("<Q", record_id) + text)

    def read(self, address: int, length: int) -> bytes:
        if not DATA <= address < DATA + len(self.memory):
            raise GuestFault(f"{address:#x} is not mapped", address=address)
        return bytes(self.memory[address - DATA :][:length])


def texts(ring: Ring) -> list[str]:
    return [r.text for r in read_log(ring.read, symbols(), btf())]


def test_records_come_oldest_first_with_their_fields() -> None:
    ring = Ring(head=6, tail=4)
    ring.record(4, b"first", begin=0, end=16)
    ring.record(5, b"second", begin=16, end=32, level=3)
    ring.record(6, b"", begin=1, end=1)
    assert read_log(ring.read, symbols(), btf()) == [
        LogRecord(14, 4000, 6, 3, "first"),
        LogRecord(15, 5000, 3, 3, "second"),
        LogRecord(16, 6000, 6, 3, ""),
    ]


def test_a_text_that_would_wrap_lies_at_the_start() -> None:
    ring = Ring(head=1, tail=0)
    ring.record(0, b"before", begin=96, end=112)
    ring.record(1, b"around the end", begin=112, end=128 + 24)
    assert texts(ring) == ["before", "around the end"]


def test_records_in_work_or_overwritten_are_left_out() -> None:
    ring = Ring(head=3, tail=0)
    ring.record(0, b"gone", begin=0, end=16, state=REUSABLE)
    ring.record(1, b"there", begin=16, end=32)
    ring.record(2, b"half", begin=32, end=48, state=0)
    assert texts(ring) == ["there"]


def test_a_text_of_nonsense_positions_is_empty() -> None:
    ring = Ring(head=0, tail=0)
    ring.record(0, b"x", begin=8 * 128, end=0)
    assert texts(ring) == [""]


def test_a_ring_of_absurd_size_is_refused() -> None:
    ring = Ring(head=0, tail=0)
    ring.put(RING, struct.pack("<I", 31))
    with pytest.raises(SymbolError, match="claims 2\\^31 records"):
        texts(ring)


@pytest.mark.parametrize("sizes", [(0, 24), (23, 24), (24, 0), (24, 18)])
def test_types_whose_fields_lie_outside_are_refused(sizes: tuple[int, int]) -> None:
    ring = Ring(head=0, tail=0)
    ring.record(0, b"text", begin=0, end=16)
    with pytest.raises(SymbolError, match="a member that ends at"):
        read_log(ring.read, symbols(), btf(*sizes))


def test_a_ring_that_is_not_mapped_is_a_fault() -> None:
    ring = Ring(head=0, tail=0)
    ring.put(DATA, bytes(8))
    with pytest.raises(GuestFault):
        texts(ring)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_ring_reads_or_is_refused(data: st.DataObject) -> None:
    ring = Ring(head=3, tail=0)
    for i in range(4):
        ring.record(i, b"text", begin=16 * i, end=16 * i + 16)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.one_of(st.integers(0x100, 0x140), st.integers(0x1000, 0x1060), st.integers(0, 0x3FFF)))
        ring.memory[at] = data.draw(st.integers(0, 255))
    try:
        records = read_log(ring.read, symbols(), btf())
    except (SymbolError, GuestFault):
        return
    assert len(records) <= 1 << 18
