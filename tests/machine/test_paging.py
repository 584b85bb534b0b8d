"""Page walks: every format and page size, where they end, and that the CPU engine walks alike."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import GuestFault
from enclavedbg.machine.bus import Bus
from enclavedbg.machine.cpu.soft.engine import SoftEngine
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.paging import LARGE, NO_EXECUTE, PRESENT, USER, WRITABLE, Translation, translate
from tests.machine.cpu.bare import NoInterrupts
from tests.machine.tables import ALL, FORMATS, TableBuilder

RAM = 4 << 20
TABLES = 0x10_0000

formats = pytest.mark.parametrize("name", FORMATS)
PAGES = [
    (name, 1 << shift)
    for name, form in FORMATS.items()
    for shift, _ in form.levels
    if shift <= 30 and not (name == "PAE" and shift == 30)
]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(RAM)
    yield memory
    memory.close()


def walk(memory: GuestMemory, state: CpuState, va: int) -> Translation:
    return translate(state, va, read_u64=memory.read_u64, read_u32=memory.read_u32)


def high(name: str) -> int:
    """An address in the upper half, as sign-extended as the format wants it."""
    bits = FORMATS[name].bits
    return (1 << 64) - (1 << (bits - 1)) if bits > 32 else 0xC000_0000


@pytest.mark.parametrize(("name", "size"), PAGES)
def test_a_page_of_every_size(memory: GuestMemory, name: str, size: int) -> None:
    tables = TableBuilder(memory, FORMATS[name], first=TABLES)
    tables.map(high(name), 3 * size, size=size)
    state = FORMATS[name].state(TABLES)
    for offset in (0, 1, size // 2 + 5, size - 1):
        found = walk(memory, state, high(name) + offset)
        assert found == Translation(3 * size + offset, size, True, True, True)
        assert found.remaining == size - offset
    with pytest.raises(GuestFault):
        walk(memory, state, high(name) + size)


@formats
def test_rights_are_those_of_all_levels(memory: GuestMemory, name: str) -> None:
    form = FORMATS[name]
    tables = TableBuilder(memory, form, first=TABLES)
    tables.map(0x5000, 0x7000)
    state = form.state(TABLES)
    for level in range(len(form.levels)):
        if name == "PAE" and level == 0:
            continue
        slot = tables.slot(0x5000, level)
        entry = tables.read(slot)
        tables.write(slot, entry & ~WRITABLE)
        assert walk(memory, state, 0x5000) == Translation(0x7000, 4096, False, True, True)
        tables.write(slot, entry & ~USER)
        assert walk(memory, state, 0x5000) == Translation(0x7000, 4096, True, False, True)
        if form.entry == 8:
            tables.write(slot, entry | NO_EXECUTE)
            assert walk(memory, state, 0x5000) == Translation(0x7000, 4096, True, True, False)
        tables.write(slot, entry)


@formats
def test_a_fault_names_level_and_entry(memory: GuestMemory, name: str) -> None:
    form = FORMATS[name]
    names = ("PML5E", "PML4E", "PDPTE", "PDE", "PTE")[-len(form.levels) :]
    tables = TableBuilder(memory, form, first=TABLES)
    tables.map(0x5000, 0x7000)
    for level in reversed(range(len(form.levels))):
        tables.write(tables.slot(0x5000, level), 0xABC0)
        with pytest.raises(GuestFault) as caught:
            walk(memory, form.state(TABLES), 0x5000)
        fault = caught.value
        assert (fault.address, fault.level, fault.entry) == (0x5000, names[level], 0xABC0)
        assert str(fault) == f"0x5000 is not mapped: {names[level]} is 0xabc0"
        # Back to a table, so that the next level up can be reached.
        tables.write(tables.slot(0x5000, level), 0)


@pytest.mark.parametrize("name", ["4-level", "5-level"])
def test_addresses_that_are_not_canonical(memory: GuestMemory, name: str) -> None:
    bits = FORMATS[name].bits
    for va in (1 << (bits - 1), (1 << 64) - (1 << (bits - 1)) - 1, 1 << 63):
        with pytest.raises(GuestFault) as caught:
            walk(memory, FORMATS[name].state(TABLES), va)
        assert caught.value.level == "canonical"


@formats
def test_tables_outside_memory(memory: GuestMemory, name: str) -> None:
    with pytest.raises(GuestFault) as caught:
        walk(memory, FORMATS[name].state(0x8000_0000), 0x5000)
    assert caught.value.level == "physical"


def test_large_pages_of_32_bit_tables_reach_beyond_4_gib(memory: GuestMemory) -> None:
    memory.write_u32(TABLES, 0x00C0_0000 | 0x12 << 13 | LARGE | ALL)
    state = FORMATS["32-bit"].state(TABLES)
    assert walk(memory, state, 0x1234).gpa == 0x12_00C0_1234


def test_without_its_bit_in_cr4_a_32_bit_table_has_no_large_pages(memory: GuestMemory) -> None:
    memory.write_u32(TABLES, TABLES + 0x1000 | LARGE | ALL)
    memory.write_u32(TABLES + 0x1000 + 4, 0x9000 | PRESENT)
    state = FORMATS["32-bit"].state(TABLES)
    state.cr4 = 0
    assert walk(memory, state, 0x1234) == Translation(0x9234, 4096, False, False, True)


def test_without_paging_addresses_are_physical(memory: GuestMemory) -> None:
    assert walk(memory, CpuState(), 0x1_2345_6789).gpa == 0x2345_6789


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(FORMATS)),
    cr3=st.integers(0, (1 << 64) - 1),
    va=st.integers(0, (1 << 64) - 1),
    seed=st.integers(0, 99),
)
def test_any_tables_give_a_translation_or_a_fault(name: str, cr3: int, va: int, seed: int) -> None:
    memory = GuestMemory(1 << 20)
    try:
        memory.write(0, random.Random(seed).randbytes(1 << 20))
        state = FORMATS[name].state(cr3 if seed % 2 else cr3 & 0xF_F000)
        found = walk(memory, state, va)
        assert found.gpa < 1 << 52
        assert 0 < found.remaining <= found.page_size
    except GuestFault as fault:
        assert "\n" not in str(fault)
    finally:
        memory.close()


class _Walker:
    """The CPU engine's own walk, which changes nothing."""

    def __init__(self) -> None:
        self.memory = GuestMemory(RAM)
        self.engine = SoftEngine(self.memory, Bus(), interrupts=NoInterrupts())

    def __call__(self, va: int) -> int | None:
        core = self.engine._core
        attributes = (ctypes.c_uint32 * 4)()
        found = core.lib.x86_cpu_get_phys_page_attrs_debug(core.cpu, va & ~0xFFF, attributes)
        return None if found == 0xFFFF_FFFF_FFFF_FFFF else found | (va & 0xFFF)

    def close(self) -> None:
        self.engine.close()
        self.memory.close()


@pytest.fixture(scope="module")
def walker() -> Iterator[_Walker]:
    walker = _Walker()
    yield walker
    walker.close()


def _random_tables(memory: GuestMemory, noise: random.Random, entry: int) -> None:
    """Sixteen pages of entries that mostly lead to one another, some large, some absent."""
    for page in range(16):
        for index in range(0x1000 // entry):
            target = TABLES + 0x1000 * noise.randrange(16) if noise.randrange(4) else noise.randrange(RAM) & ~0xFFF
            bits = PRESENT if noise.randrange(8) else 0
            if not noise.randrange(4):
                target, bits = noise.getrandbits(39) & ~0x3FFF_FFFF & (0xFFFF_FFFF if entry == 4 else -1), bits | LARGE
            value = target | bits | noise.choice((0, 2, 4, 6))
            at = TABLES + 0x1000 * page + entry * index
            if entry == 8:
                memory.write_u64(at, value)
            else:
                memory.write_u32(at, value)


@formats
@pytest.mark.parametrize("seed", range(3))
def test_the_engine_walks_alike(walker: _Walker, name: str, seed: int) -> None:
    noise = random.Random(seed)
    form = FORMATS[name]
    _random_tables(walker.memory, noise, form.entry)
    walker.engine.load_state(state := form.state(TABLES))
    agreed = faults = 0
    for _ in range(400):
        va = noise.getrandbits(form.bits - 1)
        if noise.randrange(2):
            va |= -1 << (form.bits - 1)
        va &= 0xFFFF_FFFF_FFFF_FFFF if form.bits > 32 else 0xFFFF_FFFF
        try:
            mine: int | None = walk(walker.memory, state, va).gpa
        except GuestFault as fault:
            if fault.level == "physical":
                continue
            mine = None
        assert walker(va) == mine, hex(va)
        agreed += mine is not None
        faults += mine is None
    assert agreed > 20
    assert faults > 20
