"""The zero page, the memory map and the ramdisk's place."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.bzimage import parse_bzimage
from enclavedbg.machine.boot.bootparams import E820Entry, E820Type, Placement, boot_params, memory_map
from enclavedbg.machine.boot.placement import HEADROOM, memory_needed, place_initrd, too_little_memory
from enclavedbg.machine.memory import RamRegion
from tests.machine.boot.kernels import bzimage

MIB, GIB = 1 << 20, 1 << 30
RAM, RESERVED = E820Type.RAM, E820Type.RESERVED
HEADER = parse_bzimage(bzimage()).header


def test_memory_map_of_a_small_and_a_large_machine() -> None:
    low = (E820Entry(0, 0x9FC00, RAM), E820Entry(0x9FC00, 0x60400, RESERVED))
    assert memory_map([RamRegion(0, 64 * MIB, 0)]) == (*low, E820Entry(MIB, 63 * MIB, RAM))
    assert memory_map([RamRegion(0, 3 * GIB, 0), RamRegion(4 * GIB, GIB, 3 * GIB)]) == (
        *low,
        E820Entry(MIB, 3 * GIB - MIB, RAM),
        E820Entry(4 * GIB, GIB, RAM),
    )


def test_fields_of_the_zero_page() -> None:
    page = boot_params(
        HEADER,
        memory=memory_map([RamRegion(0, 64 * MIB, 0)]),
        cmdline=0x20000,
        initrd=Placement(0x3F0_0000, 0x1234),
        rsdp=0xE0000,
    )
    assert len(page) == 4096
    assert page[0x1EF] == 0, "a sentinel that is not 0 makes the kernel wipe the fields around the header"
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert page[0x211] == 0x01, "KASLR flag stays clear"
    assert struct.unpack_from("<I", page, 0x228) == (0x20000,)
    assert struct.unpack_from("<II", page, 0x218) == (0x3F0_0000, 0x1234)
    assert struct.unpack_from("<III", page, 0x0C0) == (0, 0, 0)
    assert struct.unpack_from("<Q", page, 0x070) == (0xE0000,)
    assert page[0x1E8] == 3
    assert struct.unpack_from("<QQI", page, 0x2D0 + 20) == (0x9FC00, 0x60400, 2)
    assert not any(page[:0x70]) and not any(page[0x2D0 + 60 :]) and not any(page[0x26C:0x2D0])


def test_no_ramdisk_and_no_acpi() -> None:
    page = boot_params(HEADER, memory=(), cmdline=0x20000, initrd=None)
    assert struct.unpack_from("<II", page, 0x218) == (0, 0)
    assert struct.unpack_from("<Q", page, 0x070) == (0,)


@given(
    size=st.integers(1, 5 * GIB),
    ram_end=st.integers(MIB, 3 * GIB),
    address_max=st.sampled_from([0x37FF_FFFF, 0x7FFF_FFFF, 0xFFFF_FFFF]),
    kernel_end=st.integers(MIB, 3 * GIB),
)
@settings(max_examples=200, deadline=None)
def test_a_ramdisk_is_aligned_in_ram_and_off_the_kernel(
    size: int, ram_end: int, address_max: int, kernel_end: int
) -> None:
    place = place_initrd(size, ram_end=ram_end, address_max=address_max, kernel_end=kernel_end)
    top = min(ram_end, address_max + 1)
    if place is None:
        assert top - kernel_end < size + 4096
    else:
        assert place.gpa % 4096 == 0 and kernel_end <= place.gpa
        assert place.end <= top < place.end + 4096


def test_memory_needed_is_whole_and_counts_both_forms_of_the_ramdisk() -> None:
    assert memory_needed(kernel_end=32 * MIB, initrd_size=0, unpacked_size=0) == 32 * MIB + HEADROOM
    assert memory_needed(kernel_end=32 * MIB + 1, initrd_size=0, unpacked_size=0) == 33 * MIB + HEADROOM
    assert memory_needed(kernel_end=0, initrd_size=20 * MIB, unpacked_size=10 * MIB) == 30 * MIB + HEADROOM
    # A tmpfs takes half of memory, so what is unpacked needs twice its size.
    assert memory_needed(kernel_end=0, initrd_size=2 * MIB, unpacked_size=10 * MIB) == 20 * MIB + HEADROOM
    assert str(too_little_memory(57 * MIB, 32 * MIB)) == "this image needs at least 57 MiB, --memory gives 32 MiB"
