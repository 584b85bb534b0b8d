"""The CPU at the 64-bit entry, its descriptors and its page tables."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.machine.boot.cpustate import CODE, DATA, TSS, descriptor, entry_state, page_tables
from enclavedbg.machine.memory import GuestMemory

TABLES = page_tables(0x9000)


def test_entry_state() -> None:
    memory = GuestMemory(2 << 20)
    state = entry_state(memory, 0x100_0000)
    assert (state.rip, state.rflags, state.cpl, state.paging) == (0x100_0000, 2, 0, True)
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (0x8000_0011, 0x9000, 0x20, 0x500)
    others = {name: value for name, value in state.regs.items() if name not in ("rsi", "rsp")}
    assert (state.regs["rsi"], state.regs["rsp"], set(others.values())) == (0x7000, 0x8FF0, {0})
    assert state.segments["cs"].selector == 0x10 and state.segments["cs"].long_mode_code
    assert {state.segments[n].selector for n in ("ds", "es", "ss", "fs", "gs")} == {0x18}
    assert state.segments["ds"] is not state.segments["ss"]
    gdt = struct.unpack("<4Q", memory.read(state.gdtr.base, state.gdtr.limit + 1))
    assert gdt[2:] == (0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    assert state.tr.attributes & 0x1F == 0xB, "a busy TSS, which VM entry demands"
    assert memory.read(state.cr3, len(TABLES)) == TABLES


def test_descriptors() -> None:
    assert descriptor(CODE) == 0x00AF_9B00_0000_FFFF
    assert descriptor(DATA) == 0x00CF_9300_0000_FFFF
    assert descriptor(TSS) == 0x0000_8B00_0600_0067


@given(st.integers(0, (4 << 30) - 1))
@settings(max_examples=100, deadline=None)
def test_page_tables_map_4_gib_to_itself(address: int) -> None:
    def entry(table: int, index: int) -> int:
        (value,) = struct.unpack_from("<Q", TABLES, table - 0x9000 + 8 * index)
        assert value & 3 == 3
        return int(value)

    pdpt = entry(0x9000, address >> 39 & 511) & ~0xFFF
    directory = entry(pdpt, address >> 30 & 511) & ~0xFFF
    page = entry(directory, address >> 21 & 511)
    assert page & 0x80
    assert (page & ~0x1F_FFFF) + (address & 0x1F_FFFF) == address


def test_nothing_above_4_gib_is_mapped() -> None:
    assert not any(TABLES[8:0x1000]) and not any(TABLES[0x1020:0x2000])
