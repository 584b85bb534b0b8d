"""Measurements against the reference vector and against the specification's formula written out."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import SectionType, measure, read_eif, write_eif
from enclavedbg.eif.writer import assemble

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType


def spec(*parts: bytes) -> bytes:
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(parts)).digest()).digest()


def test_reference_vector() -> None:
    image = read_eif(write_eif(kernel=b"KERNEL", cmdline=b"console=ttyS0", ramdisks=[b"RAMDISK0", b"RAMDISK1"]))
    values = measure(image)
    assert values.pcr0.hex() == (
        "61fd2b06210a933b3db5e15c5752e394894bb097f7f1d96ad1f55a7525d0d7aa2c63b235f44420b12d8376cc392bdefb"
    )
    assert values.pcr1.hex() == (
        "a6d35ce3e7ba80048a2b23da9b15063726a7cea90e16e9d6934e92a15aa1896fd54de706310e2fbc585d9c37db9c1805"
    )
    assert values.pcr2.hex() == (
        "5f699ae4300525c628f5c96fc521729dd6ca1a2c07cb07b69e7ae9e3fa935cfd7cc83b3e26d89201a486d9db2405c562"
    )
    assert values.pcr8 is None
    assert values.as_mapping() == {0: values.pcr0, 1: values.pcr1, 2: values.pcr2}


def test_pcr2_without_second_ramdisk_is_the_extended_empty_digest() -> None:
    values = measure(read_eif(write_eif(kernel=b"k", cmdline=b"c", ramdisks=[b"r"])))
    assert values.pcr0 == values.pcr1
    assert values.pcr2.hex() == (
        "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
    )


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(0, 6), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_file_order_decides(ramdisks: list[bytes], cmdline_at: int, metadata_at: int) -> None:
    sections: list[tuple[int, bytes]] = [(KERNEL, b"kernel"), *((RAMDISK, r) for r in ramdisks)]
    sections.insert(cmdline_at, (CMDLINE, b"cmdline"))
    sections.insert(metadata_at, (METADATA, b"{}"))
    values = measure(read_eif(assemble(sections)))
    all_parts = [data for kind, data in sections if kind != METADATA]
    later = ramdisks[1:]
    seen = 0
    boot_parts = []
    for kind, data in sections:
        seen += kind == RAMDISK
        if kind in (KERNEL, CMDLINE) or (kind == RAMDISK and seen == 1):
            boot_parts.append(data)
    assert (values.pcr0, values.pcr1, values.pcr2) == (spec(*all_parts), spec(*boot_parts), spec(*later))
