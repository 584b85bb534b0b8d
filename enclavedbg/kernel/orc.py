"""ORC: how to find the caller's frame from any address of the kernel's code.

Sources: arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c of Linux 5.2 to 6.12. `.orc_unwind_ip` is a
sorted table of addresses (32 bits, relative to their own place), `.orc_unwind` has six bytes for each. Three layouts
of the last two bytes exist and nothing in the older ones says which; they differ in what most entries, plain calls,
look like, so the table itself tells.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from operator import add, le

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.image import KERNEL_BASE, KernelImage

ENTRY = struct.Struct("<hhH")
MAX_ENTRIES = 1 << 23
"""A distribution kernel has under half a million."""


class OrcRegister(IntEnum):
    """ORC_REG_*: what a stack pointer is computed from."""

    UNDEFINED = 0
    PREV_SP = 1
    DX = 2
    DI = 3
    BP = 4
    SP = 5
    R10 = 6
    R13 = 7
    BP_INDIRECT = 8
    SP_INDIRECT = 9


class OrcType(IntEnum):
    """ORC_TYPE_* of Linux 6.4 and later: what lies where the computed stack pointer points."""

    UNDEFINED = 0
    """No description: data, padding, or code that cannot be unwound."""
    END_OF_STACK = 1
    CALL = 2
    """A return address just below it."""
    REGS = 3
    """A struct pt_regs."""
    REGS_PARTIAL = 4
    """The hardware's interrupt frame alone: rip, cs, rflags, rsp, ss."""


class OrcLayout(IntEnum):
    """The layouts of the flag bits, by the first kernel that has them."""

    V4_14 = 1
    """type in bits 8-9, end in bit 10."""
    V6_3 = 2
    """type in bits 8-9 (call 0, regs 1, partial 2), signal in bit 10, end in bit 11."""
    V6_4 = 3
    """type in bits 8-10, signal in bit 11."""


@dataclass(frozen=True, slots=True)
class OrcEntry:
    """How to unwind from a range of addresses. Offsets in bytes; `signal`: the caller was interrupted, not calling."""

    sp_register: OrcRegister
    sp_offset: int
    bp_register: OrcRegister
    bp_offset: int
    type: OrcType
    signal: bool

    @property
    def usable(self) -> bool:
        """Whether it leads to a caller's frame."""
        return self.type >= OrcType.CALL


UNDEFINED = OrcEntry(OrcRegister.UNDEFINED, 0, OrcRegister.UNDEFINED, 0, OrcType.UNDEFINED, False)
FRAME_POINTER = OrcEntry(OrcRegister.BP, 16, OrcRegister.PREV_SP, -16, OrcType.CALL, False)
"""For code without a table that keeps a frame pointer, as BPF programs and much of user space do."""
NULL_CALL = OrcEntry(OrcRegister.SP, 8, OrcRegister.UNDEFINED, 0, OrcType.CALL, False)
"""For a call through a null pointer, where nothing has been pushed yet."""


class OrcTable:
    """The unwind table of a kernel image. `slide` is the distance by which the running kernel was moved."""

    def __init__(self, addresses: array[int], records: list[tuple[int, int, int]], *, slide: int = 0) -> None:
        self.addresses = addresses
        """Start of each range, as linked, ascending."""
        self.records = records
        """(sp offset, bp offset, flag bits) for each, as stored."""
        self.slide = slide
        self.layout = _layout(records)

    @classmethod
    def from_vmlinux(cls, elf: bytes, *, slide: int = 0) -> OrcTable:
        """Read the table of an unpacked kernel; raises SymbolError when it was built without CONFIG_UNWINDER_ORC."""
        return cls.from_image(KernelImage(elf), slide=slide)

    @classmethod
    def from_image(cls, image: KernelImage, *, slide: int = 0) -> OrcTable:
        places, entries = image.contents(".orc_unwind_ip"), image.contents(".orc_unwind")
        if places is None or entries is None:
            raise SymbolError("the kernel has no ORC tables: it was built without CONFIG_UNWINDER_ORC")
        count = len(places) // 4
        if len(places) % 4 or len(entries) != count * ENTRY.size or count > MAX_ENTRIES:
            raise SymbolError(f"ORC tables of {len(places)} and {len(entries)} bytes do not belong together")
        section = image.section(".orc_unwind_ip")
        assert section is not None
        relative = struct.unpack(f"<{count}i", places)
        base = section.address
        if base >> 31 != 0x1FFFFFFFF:
            raise SymbolError(f"the ORC tables lie at {base:#x}, outside the kernel")
        try:
            addresses = array("Q", map(add, range(base, base + 4 * count, 4), relative))
        except OverflowError:
            raise SymbolError("the ORC tables name addresses beyond the address space") from None
        records: list[tuple[int, int, int]] = list(ENTRY.iter_unpack(entries))
        if not all(map(le, addresses, addresses[1:])):
            # The build sorts since 5.6; before, the kernel does so while booting. "Undefined" entries end
            # sections and must lose against a real entry at the same address.
            order = sorted(range(count), key=lambda i: (addresses[i], bool(records[i][2] & 15)))
            addresses = array("Q", [addresses[i] for i in order])
            records = [records[i] for i in order]
        if count and addresses[0] < KERNEL_BASE:
            raise SymbolError(f"the ORC tables name {addresses[0]:#x}, outside the kernel")
        return cls(addresses, records, slide=slide)

    def __len__(self) -> int:
        return len(self.addresses)

    def lookup(self, ip: int) -> OrcEntry | None:
        """The entry for an address, or None outside the table. For a return address, ask for the byte before it."""
        at = bisect_right(self.addresses, ip - self.slide) - 1
        if at < 0 or (at == len(self.addresses) - 1 and not self.records[at][2] & 15):
            return None
        return decode(self.records[at], self.layout)


@lru_cache(maxsize=1 << 14)
def decode(record: tuple[int, int, int], layout: OrcLayout) -> OrcEntry:
    """An entry from its three stored fields, in the terms of the newest layout; undefined where it makes no sense."""
    sp_offset, bp_offset, flags = record
    try:
        sp, bp = OrcRegister(flags & 15), OrcRegister(flags >> 4 & 15)
        if layout is OrcLayout.V6_4:
            entry = OrcEntry(sp, sp_offset, bp, bp_offset, OrcType(flags >> 8 & 7), bool(flags & 0x800))
        else:
            kind = OrcType(OrcType.CALL + (flags >> 8 & 3))
            ends = flags & (0x400 if layout is OrcLayout.V4_14 else 0x800)
            # Before 6.3 an entry with registers was always one of an interrupt.
            signal = flags & 0x400 if layout is OrcLayout.V6_3 else kind is not OrcType.CALL
            if sp is OrcRegister.UNDEFINED:
                kind, signal = OrcType.END_OF_STACK if ends else OrcType.UNDEFINED, False
            entry = OrcEntry(sp, sp_offset, bp, bp_offset, kind, bool(signal))
    except ValueError:
        return UNDEFINED
    if entry.usable and (
        sp <= OrcRegister.PREV_SP or bp not in (OrcRegister.UNDEFINED, OrcRegister.PREV_SP, OrcRegister.BP)
    ):
        return replace(entry, type=OrcType.UNDEFINED)
    return entry


def _layout(records: list[tuple[int, int, int]]) -> OrcLayout:
    flags = Counter([record[2] for record in records])
    calls = {
        kind: sum(n for f, n in flags.items() if f & 15 == OrcRegister.SP and f >> 8 & 7 == kind) for kind in (0, 2)
    }
    if calls[2] > calls[0]:
        return OrcLayout.V6_4
    return OrcLayout.V6_3 if any(f & 0x800 for f in flags) else OrcLayout.V4_14
