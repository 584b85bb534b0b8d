"""Where everything lies in the guest's physical address space and I/O space.

The virtio-mmio windows and their interrupt lines are those that a real enclave's kernel prints in its
command line; the rest follows the PC and, for the boot structures, the usual micro-VM layout.
"""

from __future__ import annotations

PAGE_SIZE = 4096

LOW_RAM_LIMIT = 0xC000_0000
HIGH_RAM_BASE = 0x1_0000_0000

# Boot structures, all below 640 KiB
BOOT_GDT = 0x500
BOOT_IDT = 0x520
BOOT_TSS = 0x600
BOOT_PARAMS = 0x7000
BOOT_STACK = 0x8FF0
BOOT_PAGE_TABLES = 0x9000
KERNEL_CMDLINE = 0x20000
ACPI_TABLES = 0x9FC00
ACPI_TABLES_END = 0xE0000
RSDP = 0xE0000
LOW_RAM_END = 0x9FC00
HIGH_MEMORY = 0x10_0000

EIF_LOAD_ADDRESS = 0x80_0000
"""Where the Nitro hypervisor hands the image to the firmware (nitro_enclaves driver: 8 MiB)."""

VIRTIO_WINDOW_SIZE = 0x1000
VSOCK_WINDOW = 0xD000_0000
VSOCK_IRQ = 5
NSM_WINDOW = 0xD000_1000
NSM_IRQ = 6

COM1_PORT = 0x3F8
COM1_IRQ = 4
PIT_IRQ = 0

ACPI_PM_BASE = 0x600
"""Fixed-hardware ACPI registers: PM1a event block (4 bytes), PM1a control (2 bytes at +4), PM timer (4 at +8)."""
ACPI_SCI_IRQ = 9
