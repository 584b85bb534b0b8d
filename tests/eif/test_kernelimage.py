"""Kernels looked into: made in code, and the packaged one against its configuration file."""

from __future__ import annotations

import contextlib
import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.kernelimage import kernel_kind, read_config, read_kernel
from enclavedbg.errors import EifError
from tests.eif.lint.images import CONFIG, RELEASE, arm64, config_bytes, kernel
from tests.machine.boot.kernels import bzimage

ROOT = Path(__file__).parents[2]


def test_bzimage() -> None:
    data = kernel(CONFIG, cmdline_size=1000)
    found = read_kernel(data)
    assert kernel_kind(data) == found.architecture == "x86_64"
    assert (found.release, found.compression, found.cmdline_size) == (RELEASE, "gzip", 1000)
    assert found.end == 0x110_0000 and found.text_offset is None
    assert found.option("NSM") == "m" and found.option("ABSENT") == "n"
    assert found.contains(b"virtio-mmio\0") and not found.contains(b"nothing")


def test_arm64_image() -> None:
    data = arm64(text_offset=0x8_0000)
    found = read_kernel(data)
    assert kernel_kind(data) == found.architecture == "aarch64"
    assert (found.release, found.text_offset, found.end, found.big_endian) == (RELEASE, 0x8_0000, 0x18_0000, False)
    assert found.option("VIRTIO_MMIO") == "y" and found.contains(b"nsm-hwrng\0")


def test_the_packaged_kernel_has_the_configuration_it_was_built_with() -> None:
    found = read_kernel((ROOT / "enclavedbg" / "data" / "demo-bzImage").read_bytes())
    text = (ROOT / "guest" / "kernel.config").read_text()
    expected = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE))
    assert found.config == {name: value.strip('"') for name, value in expected.items()}
    for telltale in (b"vmw_vsock_virtio_transport\0", b"virtio-mmio\0", b"virtio_mmio.device\0", b"nsm-hwrng\0"):
        assert found.contains(telltale)


def test_without_a_configuration() -> None:
    found = read_kernel(kernel(None))
    assert found.config is None and found.option("NSM") is None
    assert read_config(b"IKCFG_ST" + b"rubbish" + config_bytes({"A": "y"})) == {"A": "y"}
    assert read_config(b"IKCFG_ST" + gzip.compress(bytes(9 << 20))) is None


def test_a_format_that_is_not_unpacked() -> None:
    found = read_kernel(bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(90)))
    assert found.code is None and found.contains(b"") is None and found.compression == "lzo"


@pytest.mark.parametrize(
    ("data", "architecture", "why"),
    [
        (b"", "x86_64", "no bzImage"),
        (b"", "aarch64", "no arm64 Image"),
        (gzip.compress(arm64()), "aarch64", "compressed with gzip"),
        (arm64()[:60], "aarch64", "no arm64 Image"),
        (bzimage(b"what is this"), "x86_64", "unknown compression"),
    ],
)
def test_refusals(data: bytes, architecture: str, why: str) -> None:
    with pytest.raises(EifError, match=why):
        read_kernel(data, architecture)


GOOD = [kernel(), arm64()]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(GOOD), st.integers(0, 2000), st.binary(max_size=8))
def test_anything(data: bytes, good: bytes, at: int, change: bytes) -> None:
    for candidate in (data, good[:at] + change + good[at + len(change) :]):
        for architecture in ("x86_64", "aarch64"):
            with contextlib.suppress(EifError):
                read_kernel(candidate, architecture)
