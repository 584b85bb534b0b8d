"""The CPU as the 64-bit boot protocol wants it, and the tables in memory that it points to.

Source: Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; SDM volume 3, 3.4 and 4.5.
"""

from __future__ import annotations

import struct

from enclavedbg.machine.cpu.state import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, CpuState, DescriptorTable, Segment
from enclavedbg.machine.layout import (
    BOOT_GDT,
    BOOT_IDT,
    BOOT_PAGE_TABLES,
    BOOT_PARAMS,
    BOOT_STACK,
    BOOT_TSS,
    PAGE_SIZE,
)
from enclavedbg.machine.memory import GuestMemory

CR0_ET = 1 << 4
PRESENT_WRITABLE = 0x03
LARGE_PAGE = 0x83
"""Present, writable, 2 MiB."""

TSS_SELECTOR, CODE_SELECTOR, DATA_SELECTOR = 0x08, 0x10, 0x18
CODE = Segment(CODE_SELECTOR, 0, 0xFFFF_FFFF, 0xA09B)
"""Execute/read, accessed, present, 64-bit, 4 KiB granularity."""
DATA = Segment(DATA_SELECTOR, 0, 0xFFFF_FFFF, 0xC093)
TSS = Segment(TSS_SELECTOR, BOOT_TSS, 0x67, 0x008B)
"""A busy 64-bit task state segment, which VM entry insists on; nothing uses it."""


def descriptor(segment: Segment) -> int:
    """A segment's 8-byte descriptor (of a system segment, its lower half)."""
    limit = segment.limit >> 12 if segment.attributes & 0x8000 else segment.limit
    return (
        (limit & 0xFFFF)
        | (segment.base & 0xFF_FFFF) << 16
        | (segment.attributes & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (segment.attributes >> 12 & 0xF) << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def page_tables(address: int) -> bytes:
    """Tables for `address` on that map the first 4 GiB to themselves in pages of 2 MiB: PML4, PDPT, four PDs."""
    pdpt = address + PAGE_SIZE
    directories = [pdpt + PAGE_SIZE * (1 + index) for index in range(4)]
    pages = [
        struct.pack("<Q", pdpt | PRESENT_WRITABLE).ljust(PAGE_SIZE, b"\0"),
        struct.pack("<4Q", *(directory | PRESENT_WRITABLE for directory in directories)).ljust(PAGE_SIZE, b"\0"),
    ]
    pages += [struct.pack("<512Q", *((g << 30 | m << 21) | LARGE_PAGE for m in range(512))) for g in range(4)]
    return b"".join(pages)


def entry_state(memory: GuestMemory, entry: int) -> CpuState:
    """Write GDT, IDT, TSS and page tables into memory and return the CPU about to execute `entry`.

    Interrupts are off, rsi points to boot_params, every other register is 0.
    """
    memory.write(BOOT_GDT, struct.pack("<4Q", 0, descriptor(TSS), descriptor(CODE), descriptor(DATA)))
    memory.write(BOOT_IDT, bytes(8))
    memory.fill_zero(BOOT_TSS, TSS.limit + 1)
    memory.write(BOOT_PAGE_TABLES, page_tables(BOOT_PAGE_TABLES))
    state = CpuState(rip=entry)
    state.regs["rsi"] = BOOT_PARAMS
    state.regs["rsp"] = BOOT_STACK
    state.cr0 = CR0_PE | CR0_PG | CR0_ET
    state.cr3 = BOOT_PAGE_TABLES
    state.cr4 = CR4_PAE
    state.efer = EFER_LME | EFER_LMA
    for name in state.segments:
        template = CODE if name == "cs" else DATA
        state.segments[name] = Segment(template.selector, template.base, template.limit, template.attributes)
    state.tr = Segment(TSS.selector, TSS.base, TSS.limit, TSS.attributes)
    state.gdtr = DescriptorTable(BOOT_GDT, 4 * 8 - 1)
    state.idtr = DescriptorTable(BOOT_IDT, 7)
    return state
