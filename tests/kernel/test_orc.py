from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.debugframe import debug_frame
from enclavedbg.kernel.orc import OrcEntry, OrcLayout, OrcRegister, OrcTable, OrcType, decode
from tests.kernel.builders import ORC_BASE, TEXT, ElfWriter, orc_flags, orc_tables, small_kernel

CALL = OrcEntry(OrcRegister.SP, 8, OrcRegister.UNDEFINED, 0, OrcType.CALL, False)


def table(entries: list[tuple[int, int, int, int]]) -> OrcTable:
    places, records = orc_tables(entries, base=ORC_BASE)
    elf = ElfWriter()
    elf.add(".orc_unwind_ip", ORC_BASE, places)
    elf.add(".orc_unwind", ORC_BASE + len(places), records)
    return OrcTable.from_vmlinux(elf.encode())


def test_lookup_finds_the_last_entry_at_or_below() -> None:
    orc = OrcTable.from_vmlinux(small_kernel())
    assert orc.lookup(TEXT - 1) is None
    start = orc.lookup(TEXT)
    assert start is not None and start.type is OrcType.END_OF_STACK and not start.usable
    assert orc.lookup(TEXT + 0x100) == CALL
    inside = orc.lookup(TEXT + 0x17F)
    assert inside == OrcEntry(OrcRegister.SP, 16, OrcRegister.PREV_SP, -16, OrcType.CALL, False)
    regs = orc.lookup(TEXT + 0x320)
    assert regs is not None and regs.type is OrcType.REGS and regs.signal
    assert orc.lookup(TEXT + 0x600) is None
    assert orc.lookup(1 << 64) is None


def test_of_several_entries_for_one_address_the_last_counts() -> None:
    orc = table([(TEXT, 0, 0, 0), (TEXT, 8, 0, orc_flags(5, 0, 2)), (TEXT + 9, 8, 0, orc_flags(5, 0, 2))])
    assert orc.lookup(TEXT + 1) == CALL


def test_an_unsorted_table_is_sorted_with_undefined_entries_losing() -> None:
    call = orc_flags(5, 0, 2)
    orc = table([(TEXT + 0x40, 8, 0, call), (TEXT, 8, 0, call), (TEXT + 0x40, 0, 0, 0), (TEXT + 0x80, 0, 0, 0)])
    assert list(orc.addresses) == [TEXT, TEXT + 0x40, TEXT + 0x40, TEXT + 0x80]
    assert orc.lookup(TEXT + 0x44) == CALL


def test_a_moved_kernel_is_looked_up_where_it_runs() -> None:
    orc = OrcTable.from_vmlinux(small_kernel(), slide=0x100_0000)
    assert orc.lookup(TEXT + 0x100_0100) == CALL
    assert orc.lookup(TEXT + 0x100) is None


OLD_CALL, OLD_REGS, OLD_PARTIAL = 5, 5 | 1 << 8, 5 | 2 << 8


@pytest.mark.parametrize(
    ("records", "layout", "expected"),
    [
        ([OLD_CALL, OLD_REGS, OLD_PARTIAL, 0x400, 0], OrcLayout.V4_14, [
            (OrcType.CALL, False), (OrcType.REGS, True), (OrcType.REGS_PARTIAL, True), (OrcType.END_OF_STACK, False),
            (OrcType.UNDEFINED, False),
        ]),
        ([OLD_CALL, OLD_REGS | 0x400, OLD_PARTIAL, 0x800, 0], OrcLayout.V6_3, [
            (OrcType.CALL, False), (OrcType.REGS, True), (OrcType.REGS_PARTIAL, False), (OrcType.END_OF_STACK, False),
            (OrcType.UNDEFINED, False),
        ]),
        ([orc_flags(5, 0, 2), orc_flags(5, 0, 3, signal=True), orc_flags(5, 0, 4), 1 << 8, 0], OrcLayout.V6_4, [
            (OrcType.CALL, False), (OrcType.REGS, True), (OrcType.REGS_PARTIAL, False), (OrcType.END_OF_STACK, False),
            (OrcType.UNDEFINED, False),
        ]),
    ],
)  # fmt: skip
def test_the_three_layouts_are_told_apart_by_their_calls(
    records: list[int], layout: OrcLayout, expected: list[tuple[OrcType, bool]]
) -> None:
    orc = table([(TEXT + 16 * i, 8, 0, flags) for i, flags in enumerate([*records, 0])])
    assert orc.layout is layout
    found = [orc.lookup(TEXT + 16 * i) for i in range(len(records))]
    assert [(e.type, e.signal) for e in found if e is not None] == expected


def test_entries_that_make_no_sense_are_undefined() -> None:
    for flags in (orc_flags(15, 0, 2), orc_flags(5, 9, 2), orc_flags(5, 0, 7), orc_flags(1, 0, 2), orc_flags(0, 0, 3)):
        assert decode((8, 0, flags), OrcLayout.V6_4).type is OrcType.UNDEFINED


@pytest.mark.parametrize(
    ("places", "entries", "base", "message"),
    [
        (b"", b"", ORC_BASE, "no ORC tables"),
        (bytes(4), bytes(12), ORC_BASE, "do not belong together"),
        (bytes(4), bytes(6), 0x1000, "outside the kernel"),
        (struct.pack("<i", -(1 << 31)), bytes(6), ORC_BASE, "outside the kernel"),
        (struct.pack("<i", (1 << 31) - 1), bytes(6), 0xFFFF_FFFF_F000_0000, "beyond the address space"),
    ],
)
def test_damaged_tables_are_named(places: bytes, entries: bytes, base: int, message: str) -> None:
    elf = ElfWriter()
    elf.add(".orc_unwind_ip", base, places)
    elf.add(".orc_unwind", ORC_BASE + 0x1000, entries)
    with pytest.raises(SymbolError, match=message):
        OrcTable.from_vmlinux(elf.encode())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(TEXT, TEXT + 0x1F_FFFF),
            st.integers(-(1 << 15), (1 << 15) - 1),
            st.integers(-(1 << 15), (1 << 15) - 1),
            st.integers(0, 0xFFFF),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_any_table_decodes_and_becomes_frame_information(entries: list[tuple[int, int, int, int]]) -> None:
    orc = table(entries)
    for address, *_ in entries:
        found = orc.lookup(address)
        assert found is None or isinstance(found.type, OrcType)
    data = debug_frame(orc, callers=[(TEXT, TEXT + 0x1000)])
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
    assert at == len(data)
