from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.image import KernelImage
from enclavedbg.kernel.symbols import KernelSymbols
from tests.kernel.builders import DATA, TEXT, TEXT_SIZE, ElfWriter, small_kernel

SLIDE = 0x1200_0000


@pytest.fixture(scope="module")
def symbols() -> KernelSymbols:
    return KernelSymbols.from_vmlinux(small_kernel())


def test_names_lead_to_addresses(symbols: KernelSymbols) -> None:
    assert symbols.address("start_kernel") == TEXT + 0x100
    assert symbols.address("cpu_number") == 0x1000
    assert symbols.address("no_such_function") is None
    assert symbols.symbol("no_such_function") is None


def test_addresses_lead_to_names_and_the_kernels_preferred_one_wins(symbols: KernelSymbols) -> None:
    assert symbols.lookup(TEXT) == ("startup_64", 0)
    assert symbols.lookup(TEXT + 0x123) == ("start_kernel", 0x23)
    assert symbols.describe(TEXT + 0x123) == "start_kernel+0x23"
    assert symbols.describe(TEXT + 0x100) == "start_kernel"


@pytest.mark.parametrize(
    "address", [0, 0x1000, 0x40_1000, TEXT - 1, TEXT + TEXT_SIZE, DATA - 1, DATA + 0x2000, 1 << 64]
)
def test_addresses_outside_the_kernels_sections_have_no_name(symbols: KernelSymbols, address: int) -> None:
    assert symbols.lookup(address) is None
    assert symbols.describe(address) == f"{address:#x}"


def test_a_symbol_reaches_to_the_next_or_to_the_end_of_its_section(symbols: KernelSymbols) -> None:
    sizes = {s.name: s.size for s in symbols}
    assert sizes["do_sys_openat2"] == 0x100
    assert sizes["startup_64"] == sizes["_text"] == 0xF0
    assert sizes["filler_299"] == TEXT + TEXT_SIZE - (TEXT + 0x1000 + 16 * 299)
    assert sizes["jiffies"] == 0xF00
    assert sizes["_end"] == 0x1000


def test_a_moved_kernel_has_the_same_names_elsewhere_but_percpu_offsets_stay(symbols: KernelSymbols) -> None:
    moved = symbols.moved(SLIDE)
    assert moved.address("start_kernel") == TEXT + 0x100 + SLIDE
    assert moved.address("cpu_number") == 0x1000
    assert moved.lookup(TEXT + 0x101 + SLIDE) == ("start_kernel", 1)
    assert moved.lookup(TEXT + 0x101) is None
    after = moved.symbol_after(TEXT + SLIDE + 0x101)
    assert after is not None and after.name == "do_sys_openat2"
    assert after.is_function and after.type == "T"


def test_completion_is_sorted_and_limited(symbols: KernelSymbols) -> None:
    assert symbols.complete("entry_") == ["entry_SYSCALL_64", "entry_SYSCALL_64_after_hwframe"]
    assert symbols.complete("filler_", limit=2) == ["filler_000", "filler_001"]
    assert symbols.complete("filler_", limit=0) == []
    assert symbols.complete("zzz") == []


def test_iteration_gives_every_symbol(symbols: KernelSymbols) -> None:
    assert len(list(symbols)) == len(symbols)


def test_sections_are_found_by_name_and_by_address() -> None:
    image = KernelImage(small_kernel())
    text = image.section(".text")
    assert text is not None and text.executable and text.allocated
    assert image.section_at(TEXT + 5) == text
    assert image.section(".nothing") is None
    assert image.contents(".bss") is None
    assert image.executable_ranges() == [(TEXT, TEXT + TEXT_SIZE)]
    assert image.release() is None


def test_the_release_is_read_from_the_banner() -> None:
    elf = ElfWriter()
    elf.add(".rodata", TEXT, b"Linux version 6.12.9-test (someone@somewhere) #1\n\0")
    assert KernelImage(elf.encode()).release() == "6.12.9-test"


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x7fELF\x01", "no 64-bit little-endian ELF"),
        (18, struct.pack("<H", 183), "ELF machine 183"),
        (40, struct.pack("<Q", 1 << 60), "section table"),
        (60, struct.pack("<H", 0), "section table"),
        (62, struct.pack("<H", 500), "section names"),
    ],
)
def test_damaged_headers_are_named(offset: int, value: bytes, message: str) -> None:
    elf = bytearray(small_kernel())
    elf[offset : offset + len(value)] = value
    with pytest.raises(SymbolError, match=message):
        KernelImage(bytes(elf))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_in_the_headers_is_survived(data: st.DataObject) -> None:
    elf = bytearray(small_kernel())
    table = struct.unpack_from("<Q", elf, 40)[0]
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.one_of(st.integers(0, 63), st.integers(table, len(elf) - 1)))
        elf[at] = data.draw(st.integers(0, 255))
    try:
        symbols = KernelSymbols.from_vmlinux(bytes(elf))
    except SymbolError:
        return
    for symbol in symbols:
        assert symbol.size >= 0


@given(st.binary(max_size=300))
def test_any_bytes_are_no_kernel(data: bytes) -> None:
    with pytest.raises(SymbolError):
        KernelImage(data)
