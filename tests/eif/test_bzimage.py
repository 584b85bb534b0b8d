"""bzImages: what is read from the header, payloads of every compression, and what people put in a kernel's place."""

from __future__ import annotations

import contextlib
import gzip

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.bzimage import parse_bzimage, unpack_kernel
from enclavedbg.errors import EifError
from tests.eif.test_compression import COMPRESSORS
from tests.machine.boot.kernels import KERNEL_BASE, bzimage, elf


def test_header_fields() -> None:
    image = parse_bzimage(bzimage())
    header = image.header
    assert (header.version, header.initrd_addr_max, header.cmdline_size) == (0x20F, 0x7FFF_FFFF, 0x7FF)
    assert (header.pref_address, header.init_size) == (KERNEL_BASE, 0x10_0000)
    assert header.kernel_version == "6.12.0-test (someone) #1"
    assert (len(header.raw), header.raw[0x11:0x15]) == (0x26C - 0x1F1, b"HdrS")
    assert image.compression == "gzip"


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_payloads_of_every_compression(name: str) -> None:
    kernel = elf([(KERNEL_BASE, bytes(range(256)) * 40, 1 << 20)])
    payload = COMPRESSORS[name](kernel)
    if name != "gzip":
        payload += len(kernel).to_bytes(4, "little")
    unpacked = unpack_kernel(parse_bzimage(bzimage(payload)))
    assert (unpacked.elf, unpacked.compression) == (kernel, name.removesuffix("-unsized"))


def test_payload_that_is_not_compressed() -> None:
    unpacked = unpack_kernel(parse_bzimage(bzimage(elf())))
    assert (unpacked.elf, unpacked.compression) == (elf(), "none")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (b"", "no bzImage: 0 bytes"),
        (b"rubbish " * 100, "no bzImage: 800 bytes that begin with b'rubbish '"),
        (bytes(0x38) + b"ARMd" + bytes(1000), "arm64 Image, expected one for x86_64"),
        (elf(), "an ELF file .vmlinux., an enclave boots a bzImage"),
        (bzimage()[:0x260], "no bzImage"),
        (bzimage()[:0x300], "cut short"),
        (bzimage()[:-1], "truncated"),
        (bzimage(payload_length=2**32 - 1), "truncated"),
        (bzimage(payload_length=0), "truncated"),
        (bzimage(version=0x20B), "boot protocol 2.11, at least 2.12"),
        (bzimage(xloadflags=2), "no 64-bit entry"),
        (bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(90)), "lzo compression is not supported; use one of gzip"),
        (bzimage(b"what is this"), "payload: unknown compression"),
        (bzimage(gzip.compress(b"not an ELF")), "expected an ELF file"),
        (bzimage(gzip.compress(elf())[:-9] + bytes(9)), "payload: gzip data is damaged"),
        (bzimage(zstandard.compress(bytes(1 << 26)) + bytes(4)), "more than the 1048576 bytes"),
        (bzimage(gzip.compress(bytes(1 << 26))), "more than the 1048576 bytes"),
    ],
)
def test_refusals(kernel: bytes, message: str) -> None:
    with pytest.raises(EifError, match=message) as caught:
        unpack_kernel(parse_bzimage(kernel))
    assert "\n" not in str(caught.value)


def test_versions_are_fit_for_a_terminal() -> None:
    assert parse_bzimage(bzimage(name=b"6.1\x1b[31m\xff")).header.kernel_version == "6.1?[31m\ufffd"


GOOD = bzimage()


@given(st.integers(0x1F0, 0x270), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_mutated_headers_are_ours(at: int, new: bytes) -> None:
    with contextlib.suppress(EifError):
        unpack_kernel(parse_bzimage(GOOD[:at] + new + GOOD[at + len(new) :]))


@given(st.binary(max_size=0x400))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_ours(data: bytes) -> None:
    for candidate in (data, GOOD[:0x206] + data):
        with contextlib.suppress(EifError):
            unpack_kernel(parse_bzimage(candidate))
