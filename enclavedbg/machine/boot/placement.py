"""How much memory an image needs, and where its ramdisk goes."""

from __future__ import annotations

from enclavedbg.errors import MachineError
from enclavedbg.machine.boot.bootparams import Placement
from enclavedbg.machine.layout import PAGE_SIZE

HEADROOM = 24 << 20
"""What a small kernel takes for itself (page structures, slab, per-CPU) and leaves for a first process."""
MIB = 1 << 20


def memory_needed(*, kernel_end: int, initrd_size: int, unpacked_size: int) -> int:
    """Bytes of RAM, a whole number of MiB, below which Linux cannot unpack its ramdisk and start init.

    `kernel_end` is the kernel's last address; the packed ramdisk lies in memory while it is unpacked into a tmpfs,
    which by default takes at most half of what memory there is.
    """
    room = max(initrd_size + unpacked_size, 2 * unpacked_size)
    return -(-(kernel_end + room + HEADROOM) // MIB) * MIB


def too_little_memory(needed: int, given: int) -> MachineError:
    """The error for an image that does not fit."""
    return MachineError(f"this image needs at least {needed // MIB} MiB, --memory gives {given // MIB} MiB")


def place_initrd(size: int, *, ram_end: int, address_max: int, kernel_end: int) -> Placement | None:
    """A page-aligned place for `size` bytes as high as the kernel allows in low RAM, or None when there is none.

    `ram_end` is the end of low RAM, `address_max` the last address the kernel accepts (initrd_addr_max).
    """
    gpa = (min(ram_end, address_max + 1) - size) // PAGE_SIZE * PAGE_SIZE
    return Placement(gpa, size) if gpa >= kernel_end else None
