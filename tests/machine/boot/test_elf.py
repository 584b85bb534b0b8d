"""Loading the kernel's ELF file by physical address."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import EifError, MachineError
from enclavedbg.machine.boot.elf import load_kernel, parse_kernel_elf
from enclavedbg.machine.memory import GuestMemory
from tests.machine.boot.kernels import KERNEL_BASE, elf

MIB = 1 << 20


def test_segments_go_to_their_physical_address_and_the_rest_is_zeroed() -> None:
    kernel = parse_kernel_elf(elf([(0x110_0000, b"data", 0x3000), (KERNEL_BASE, b"text", 4)]))
    assert (kernel.start, kernel.end, kernel.entry) == (KERNEL_BASE, 0x110_3000, KERNEL_BASE)
    memory = GuestMemory(32 * MIB)
    memory.write(0x110_0000, b"\xff" * 0x4000)
    load_kernel(kernel, memory)
    assert memory.read(KERNEL_BASE, 4) == b"text"
    assert memory.read(0x110_0000, 0x3000) == b"data" + bytes(0x2FFC)
    assert memory.read(0x110_3000, 1) == b"\xff"


def test_segments_must_be_free_ram() -> None:
    memory = GuestMemory(32 * MIB)
    for gpa in (31 * MIB, 32 * MIB, 0xD000_0000, 2**64 - 4096, 0x9_0000, 0):
        with pytest.raises(MachineError, match="not free RAM; give it more with --memory"):
            load_kernel(parse_kernel_elf(elf([(gpa, b"x", 2 * MIB)], entry=gpa)), memory)


def test_nothing_is_written_when_one_segment_does_not_fit() -> None:
    memory = GuestMemory(32 * MIB)
    with pytest.raises(MachineError):
        load_kernel(parse_kernel_elf(elf([(KERNEL_BASE, b"text", 4), (64 * MIB, b"x", 1)])), memory)
    assert memory.read(KERNEL_BASE, 4) == bytes(4)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"\x7fELF", "has 4 bytes"),
        (elf(elf_class=1), "class 1"),
        (elf(machine=183), "machine 183"),
        (elf(phentsize=32), "program headers of 32 bytes"),
        (elf()[:100], "program headers"),
        (elf()[:-1], "the file ends"),
        (elf([(KERNEL_BASE, b"12345", 4)]), "5 bytes .* and 4 in memory"),
        (elf([(KERNEL_BASE, b"x", 8192), (KERNEL_BASE + 4096, b"x", 1)]), "overlap"),
        (elf([], entry=0), "entry point 0x0 is in none"),
        (elf(entry=0x1234), "entry point 0x1234 is in none"),
        (elf([(KERNEL_BASE, b"x", 4096)], entry=KERNEL_BASE + 1), "is in none"),
        (elf([(KERNEL_BASE + n * 4096, b"x", 1) for n in range(64)]), "65 program headers"),
    ],
)
def test_refusals(file: bytes, message: str) -> None:
    with pytest.raises(EifError, match=message):
        parse_kernel_elf(file)


GOOD = elf([(KERNEL_BASE, b"text", 4), (KERNEL_BASE + 4096, b"data", 4096)])


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_mutations_load_inside_ram_or_are_ours(at: int, new: bytes) -> None:
    memory = GuestMemory(20 * MIB)
    with contextlib.suppress(EifError, MachineError):
        kernel = parse_kernel_elf(GOOD[:at] + new + GOOD[at + len(new) :])
        load_kernel(kernel, memory)
        assert MIB <= kernel.start <= kernel.entry < kernel.end <= 20 * MIB
