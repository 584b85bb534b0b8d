"""ACPI tables: checksums, pointers, fixed registers, and the AML decoded again by a reader of its own."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.machine.boot import aml
from enclavedbg.machine.boot.acpi import AcpiTables, VirtioWindow, build_tables, virtio_device
from enclavedbg.machine.layout import ACPI_PM_BASE, ACPI_SCI_IRQ, ACPI_TABLES, ACPI_TABLES_END, RSDP

WINDOWS = (VirtioWindow("VSCK", 0xD000_0000, 4096, 5), VirtioWindow("NSM", 0xD000_1000, 4096, 6))


@pytest.fixture
def tables() -> AcpiTables:
    return build_tables(WINDOWS)


def unpack(form: str, data: bytes, offset: int = 0) -> tuple[int, ...]:
    return struct.unpack_from("<" + form, data, offset)


def test_root_pointer_leads_to_every_table(tables: AcpiTables) -> None:
    rsdp = tables.blobs[tables.rsdp]
    assert (tables.rsdp, tables.rsdp % 16, len(rsdp), rsdp[:8], rsdp[15]) == (RSDP, 0, 36, b"RSD PTR ", 2)
    assert sum(rsdp[:20]) % 256 == 0 and sum(rsdp) % 256 == 0
    rsdt, length, xsdt_at = unpack("IIQ", rsdp, 16)
    assert (rsdt, length) == (0, 36)
    xsdt = tables.blobs[xsdt_at]
    assert (xsdt[:4], len(xsdt)) == (b"XSDT", 44)
    (fadt_at,) = unpack("Q", xsdt, 36)
    fadt = tables.blobs[fadt_at]
    facs_at, dsdt_at = unpack("II", fadt, 36)
    assert tables.blobs[dsdt_at][:4] == b"DSDT" and unpack("Q", fadt, 140) == (dsdt_at,)
    facs = tables.blobs[facs_at]
    assert (facs[:4], len(facs), facs_at % 64, unpack("Q", fadt, 132)) == (b"FACS", 64, 0, (0,))


def test_headers_and_checksums(tables: AcpiTables) -> None:
    for address, blob in tables.blobs.items():
        if blob[:4] in (b"XSDT", b"FACP", b"DSDT"):
            assert unpack("I", blob, 4) == (len(blob),)
            assert sum(blob) % 256 == 0
        if address != RSDP:
            assert ACPI_TABLES <= address <= ACPI_TABLES_END - len(blob)
    ranges = sorted((address, address + len(blob)) for address, blob in tables.blobs.items())
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges))


def test_fixed_description(tables: AcpiTables) -> None:
    fadt = next(blob for blob in tables.blobs.values() if blob[:4] == b"FACP")
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 5)
    assert unpack("H", fadt, 46) == (ACPI_SCI_IRQ,)
    assert unpack("I", fadt, 48) == (0,), "no SMI command: always in ACPI mode"
    assert unpack("IIIIIIII", fadt, 56) == (ACPI_PM_BASE, 0, ACPI_PM_BASE + 4, 0, 0, ACPI_PM_BASE + 8, 0, 0)
    assert tuple(fadt[88:94]) == (4, 2, 0, 4, 0, 0)
    boot_flags, flags = unpack("H", fadt, 109)[0], unpack("I", fadt, 112)[0]
    assert not boot_flags & 2, "no 8042"
    assert not flags & 1 << 20, "not hardware-reduced"
    assert flags & 1 << 10
    assert unpack("BBBBQB", fadt, 116) == (1, 8, 0, 1, 0x64, 0xFE)
    for offset, bits, port in ((148, 32, 0), (172, 16, 4), (208, 32, 8)):
        assert unpack("BB", fadt, offset) == (1, bits)
        assert unpack("Q", fadt, offset + 4) == (ACPI_PM_BASE + port,)


def test_no_madt(tables: AcpiTables) -> None:
    assert not any(blob[:4] == b"APIC" for blob in tables.blobs.values())


def test_known_good_device() -> None:
    """Bytes that ACPICA's disassembler and Linux were seen to accept."""
    assert virtio_device(VirtioWindow("V000", 0xD000_0000, 4096, 5), uid=0) == bytes.fromhex(
        "5b82 4104 56303030 085f484944 0d4c4e524f3030303500 085f55494400 085f43434101"
        "085f435253 111a 0a17 86090001 000000d0 00100000 8906000301 05000000 7900"
    )


def test_sleep_state_for_power_off(tables: AcpiTables) -> None:
    dsdt = next(blob for blob in tables.blobs.values() if blob[:4] == b"DSDT")
    assert dsdt[36:].startswith(bytes.fromhex("08 5f53355f 12 07 04 0a05 00 00 00"))


def package_end(data: bytes, at: int) -> tuple[int, int]:
    """Where the body of a package at `at` begins and ends."""
    extra = data[at] >> 6
    if extra == 0:
        return at + 1, at + data[at]
    length = data[at] & 0xF | int.from_bytes(data[at + 1 : at + 1 + extra], "little") << 4
    return at + 1 + extra, at + length


def test_devices_in_the_namespace(tables: AcpiTables) -> None:
    dsdt = next(blob for blob in tables.blobs.values() if blob[:4] == b"DSDT")
    scope = dsdt.index(b"\x10", 36 + 13)
    at, end = package_end(dsdt, scope + 1)
    assert (dsdt[at : at + 5], end) == (b"\\_SB_", len(dsdt))
    at += 5
    found = []
    while at < end:
        assert dsdt[at : at + 2] == b"\x5b\x82"
        start, at = package_end(dsdt, at + 2)
        body = dsdt[start:at]
        memory = body.index(bytes.fromhex("86090001"))
        interrupt = body.index(bytes.fromhex("8906000301"))
        found.append((body[:4], *unpack("II", body, memory + 4), *unpack("I", body, interrupt + 5)))
    assert found == [(b"VSCK", 0xD000_0000, 4096, 5), (b"NSM_", 0xD000_1000, 4096, 6)]


def test_too_many_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="fit"):
        build_tables([VirtioWindow("V", 0, 4096, 1)] * 5000)


@given(st.integers(0, (1 << 28) - 5))
@settings(max_examples=100, deadline=None)
def test_package_lengths_count_themselves(length: int) -> None:
    encoded = aml.package_length(length)
    start, end = package_end(encoded, 0)
    assert (start, end) == (len(encoded), len(encoded) + length)


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_integers_are_read_back(value: int) -> None:
    encoded = aml.integer(value)
    sizes = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}
    if value < 2:
        assert encoded == bytes([value])
    else:
        assert len(encoded) == 1 + sizes[encoded[0]]
        assert int.from_bytes(encoded[1:], "little") == value


def test_what_aml_cannot_say() -> None:
    with pytest.raises(ValueError, match="AML package"):
        aml.package_length(1 << 28)
    with pytest.raises(ValueError, match="AML integer"):
        aml.integer(1 << 64)
