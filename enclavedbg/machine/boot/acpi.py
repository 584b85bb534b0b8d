"""ACPI tables for kernels that cannot be told of virtio-mmio devices on their command line.

There is no MADT: the kernel then stays with the 8259, which is all that the soft engine has. The tables are not
"hardware-reduced", since Linux takes that as having neither 8259 nor 8254. Source: ACPI specification 6.5,
chapter 5.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from enclavedbg.machine.boot import aml
from enclavedbg.machine.layout import ACPI_PM_BASE, ACPI_SCI_IRQ, ACPI_TABLES, ACPI_TABLES_END, RSDP

OEM_ID = b"ENCDBG"
OEM_TABLE_ID = b"ENCLAVE "
CREATOR_ID = b"EDBG"

PM1_EVENT_LENGTH, PM1_CONTROL_LENGTH, PM_TIMER_LENGTH = 4, 2, 4
PM1_CONTROL_OFFSET, PM_TIMER_OFFSET = 4, 8

I8042_COMMAND_PORT, I8042_RESET = 0x64, 0xFE

# FADT flags
WBINVD = 1 << 0
PROC_C1 = 1 << 2
NO_POWER_BUTTON = 1 << 4
NO_SLEEP_BUTTON = 1 << 5
NO_RTC_WAKE = 1 << 6
RESET_REG_SUPPORTED = 1 << 10
# IA-PC boot architecture flags. That bit 1 (8042) is clear saves half a second of probing a keyboard controller
# of which only the reset line exists.
LEGACY_DEVICES = 1 << 0
NO_VGA = 1 << 2

C2_UNSUPPORTED, C3_UNSUPPORTED = 0x65, 0x3E9
SLEEP_TYPE_S5 = 5

_SYSTEM_IO = 1
_FACS_SIZE = 64


@dataclass(frozen=True, slots=True)
class VirtioWindow:
    """A virtio-mmio device as the kernel must be told of it: name in the ACPI namespace, window, interrupt line."""

    name: str
    base: int
    size: int
    irq: int


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """All tables, ready to be copied: `blobs` maps guest physical addresses to bytes, `rsdp` is the root's address."""

    rsdp: int
    blobs: dict[int, bytes]


def build_tables(windows: Sequence[VirtioWindow]) -> AcpiTables:
    """RSDP at layout.RSDP, and FACS, DSDT, FADT and XSDT from layout.ACPI_TABLES on."""
    facs_at = -(-ACPI_TABLES // _FACS_SIZE) * _FACS_SIZE
    dsdt_at = facs_at + _FACS_SIZE
    dsdt_table = dsdt(windows)
    fadt_at = _aligned(dsdt_at + len(dsdt_table))
    fadt_table = fadt(dsdt=dsdt_at, facs=facs_at)
    xsdt_at = _aligned(fadt_at + len(fadt_table))
    xsdt_table = table(b"XSDT", 1, struct.pack("<Q", fadt_at))
    if xsdt_at + len(xsdt_table) > ACPI_TABLES_END:
        raise ValueError(f"{len(windows)} devices do not fit the ACPI area")
    blobs = {facs_at: facs(), dsdt_at: dsdt_table, fadt_at: fadt_table, xsdt_at: xsdt_table, RSDP: rsdp(xsdt_at)}
    return AcpiTables(RSDP, blobs)


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with the standard header of 36 bytes, whose bytes add up to 0."""
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1
    )
    data = bytearray(header + body)
    data[9] = checksum(data)
    return bytes(data)


def checksum(data: bytes | bytearray) -> int:
    """What must be added to make the bytes' sum 0 modulo 256."""
    return -sum(data) & 0xFF


def rsdp(xsdt: int) -> bytes:
    """The root pointer, revision 2, with both of its checksums."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, 36, xsdt, 0))
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


def facs() -> bytes:
    """The firmware control structure: nothing sleeps here, but its absence is an error to the kernel."""
    return struct.pack("<4sIIIIIQB", b"FACS", _FACS_SIZE, 0, 0, 0, 0, 0, 2).ljust(_FACS_SIZE, b"\0")


def fadt(*, dsdt: int, facs: int) -> bytes:
    """The fixed description table, revision 6: PM1a registers and timer, reset through port 0x64."""
    event, control, timer = ACPI_PM_BASE, ACPI_PM_BASE + PM1_CONTROL_OFFSET, ACPI_PM_BASE + PM_TIMER_OFFSET
    body = bytearray(276 - 36)

    def put(offset: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, body, offset - 36, *values)

    put(36, "II", facs, dsdt)
    put(46, "H", ACPI_SCI_IRQ)
    # SMI_CMD (48) stays 0: the machine is in ACPI mode from the start.
    put(56, "I", event)
    put(64, "I", control)
    put(76, "I", timer)
    put(88, "BBBB", PM1_EVENT_LENGTH, PM1_CONTROL_LENGTH, 0, PM_TIMER_LENGTH)
    put(96, "HH", C2_UNSUPPORTED, C3_UNSUPPORTED)
    put(109, "H", LEGACY_DEVICES | NO_VGA)
    put(112, "I", WBINVD | PROC_C1 | NO_POWER_BUTTON | NO_SLEEP_BUTTON | NO_RTC_WAKE | RESET_REG_SUPPORTED)
    put(116, "BBBBQ", _SYSTEM_IO, 8, 0, 1, I8042_COMMAND_PORT)
    put(128, "B", I8042_RESET)
    put(131, "B", 5)
    # X_FIRMWARE_CTRL (132) stays 0: only one of the two FACS addresses may be given.
    put(140, "Q", dsdt)
    put(148, "BBBBQ", _SYSTEM_IO, 8 * PM1_EVENT_LENGTH, 0, 2, event)
    put(172, "BBBBQ", _SYSTEM_IO, 8 * PM1_CONTROL_LENGTH, 0, 2, control)
    put(208, "BBBBQ", _SYSTEM_IO, 8 * PM_TIMER_LENGTH, 0, 3, timer)
    return table(b"FACP", 6, bytes(body))


def dsdt(windows: Sequence[VirtioWindow]) -> bytes:
    r"""The namespace: \_S5 for power-off, and each device as LNRO0005, which Linux's virtio_mmio driver binds to."""
    s5 = aml.name("_S5", aml.package(aml.integer(SLEEP_TYPE_S5), *(aml.integer(0) for _ in range(3))))
    devices = (virtio_device(window, uid=uid) for uid, window in enumerate(windows))
    return table(b"DSDT", 2, s5 + aml.scope("\\_SB", *devices))


def virtio_device(window: VirtioWindow, *, uid: int) -> bytes:
    """One virtio-mmio transport with its window and its edge-triggered interrupt."""
    return aml.device(
        window.name,
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CCA", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(aml.memory_resource(window.base, window.size), aml.interrupt_resource(window.irq)),
        ),
    )


def _aligned(address: int) -> int:
    return -(-address // 16) * 16
