"""The EIF reader: the reference vector, every refusal, and arbitrary damage."""

from __future__ import annotations

import contextlib
import json
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import EifImage, SectionType, file_size, measure, read_eif, write_eif
from enclavedbg.eif.format import CRC_OFFSET, HEADER_SIZE, SECTION_HEADER
from enclavedbg.eif.writer import assemble
from enclavedbg.errors import EifError

VECTOR_METADATA = json.loads(
    '{"ImageName":"t","ImageVersion":"1","BuildMetadata":{"BuildTime":"2024-01-01T00:00:00+00:00","BuildTool":"x",'
    '"BuildToolVersion":"0","OperatingSystem":"Linux","KernelVersion":"6.6.79"},"DockerInfo":null,'
    '"CustomMetadata":null}'
)
KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType


def vector() -> bytes:
    return write_eif(
        kernel=b"KERNEL", cmdline=b"console=ttyS0", ramdisks=[b"RAMDISK0", b"RAMDISK1"], metadata=VECTOR_METADATA
    )


def parts(image: EifImage) -> tuple[bytes, bytes, list[bytes]]:
    return bytes(image.kernel), image.cmdline, [bytes(r) for r in image.ramdisks]


def with_crc(file: bytes | bytearray) -> bytes:
    """The file with a right CRC, so that a test reaches what lies behind it."""
    crc = zlib.crc32(file[HEADER_SIZE:], zlib.crc32(file[:CRC_OFFSET]))
    return bytes(file[:CRC_OFFSET]) + crc.to_bytes(4, "big") + bytes(file[HEADER_SIZE:])


def patched(file: bytes, offset: int, new: bytes) -> bytes:
    return with_crc(file[:offset] + new + file[offset + len(new) :])


def test_reference_vector() -> None:
    image = read_eif(vector())
    assert image.header.offsets == (548, 566, 591, 827, 847)
    assert image.header.sizes == (6, 13, 224, 8, 8)
    assert (image.size, image.header.crc32) == (867, 0x2EECFDD4)
    assert (image.header.version, image.header.default_memory, image.header.default_cpus) == (4, 1 << 30, 2)
    assert [s.type for s in image.sections] == [KERNEL, CMDLINE, METADATA, RAMDISK, RAMDISK]
    assert parts(image) == (b"KERNEL", b"console=ttyS0", [b"RAMDISK0", b"RAMDISK1"])
    assert (image.metadata, image.signature, image.architecture) == (VECTOR_METADATA, None, "x86_64")
    assert file_size(vector()[:HEADER_SIZE]) == 867


def test_reading_copies_nothing_and_a_file_is_read_as_bytes_are(tmp_path: Path) -> None:
    data = vector()
    image = read_eif(data)
    assert image.kernel.obj is data
    path = tmp_path / "x.eif"
    path.write_bytes(data)
    from_file = read_eif(path)
    path.write_bytes(b"")  # built anew over the old one, as happens
    assert measure(from_file) == measure(image)


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavedbg.eif.reader.MAPPED_FROM", 1)
    path = tmp_path / "x.eif"
    path.write_bytes(vector())
    image = read_eif(path)
    assert type(image.data.obj).__name__ == "mmap"
    assert parts(image)[2] == [b"RAMDISK0", b"RAMDISK1"]


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_architecture(architecture: str) -> None:
    file = write_eif(kernel=b"k", cmdline=b"", ramdisks=[], architecture=architecture)
    assert read_eif(file).architecture == architecture


def test_old_versions_have_no_metadata() -> None:
    for version in (2, 3):
        image = read_eif(assemble([(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b"r")], version=version))
        assert (image.metadata, image.header.version) == (None, version)


def test_order_is_free_but_for_ramdisks() -> None:
    image = read_eif(assemble([(METADATA, b"null"), (KERNEL, b"k"), (RAMDISK, b"r"), (CMDLINE, b"c")]))
    assert parts(image) == (b"k", b"c", [b"r"])


@given(
    kernel=st.binary(max_size=100),
    cmdline=st.binary(max_size=30).filter(lambda c: 0 not in c),
    ramdisks=st.lists(st.binary(max_size=50), max_size=4),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(
    kernel: bytes, cmdline: bytes, ramdisks: list[bytes], metadata: dict[str, object] | None
) -> None:
    try:
        file = write_eif(kernel=kernel, cmdline=cmdline, ramdisks=ramdisks, metadata=metadata)
    except EifError:
        assert any("\ud800" <= c <= "\udfff" for c in str(metadata))  # not text that UTF-8 can hold
        return
    image = read_eif(file)
    assert (*parts(image), image.metadata) == (kernel, cmdline, ramdisks, metadata)


V = vector()
REFUSALS = [
    (b"", "nothing in it", 0),
    (b"\x7fELF" + bytes(600), "an ELF program", 0),
    (bytes(0x1FE) + b"\x55\xaa" + bytes(100), "kernel or a disk image", 0),
    (bytes(257) + b"ustar" + bytes(300), "tar archive", 0),
    (b"garbage" * 100, r"begins with b'garb', expected b'\.eif'", 0),
    (V[:300], "a header alone has 548", 300),
    (patched(V, 4, b"\0\1"), "version 1", 4),
    (patched(V, 4, b"\0\5"), "version 5", 4),
    (patched(V, 6, b"\0\2"), "flags 0x2", 6),
    (patched(V, 0x1A, b"\0\1"), "1 sections", 0x1A),
    (patched(V, 0x1A, b"\0\x21"), "33 sections", 0x1A),
    (patched(V, 0x1A, b"\0\4"), "20 bytes after the last section", 847),
    (patched(V, 0x1A, b"\0\6"), "section 5 begins at 0x0 and overlaps", 0x1C + 40),
    (patched(V, 0x1C, b"\xff" * 8), "leaves a gap", 0x1C),
    (patched(V, 0x1C + 8, (565).to_bytes(8, "big")), "overlaps", 0x1C + 8),
    (patched(V, 0x11C + 32, b"\xff" * 8), "section 4 ends at 0x1000000000000035a", 0x11C + 32),
    (V[:-1], "truncated: section 4", 0x11C + 32),
    (V + b"x", "1 bytes after the last section", 867),
    (patched(V, 548, b"\0\0"), "type 0, expected 1 kernel", 548),
    (patched(V, 566, b"\0\6"), "type 6", 566),
    (patched(V, 550, b"\0\1"), "flags 0x1", 550),
    (patched(V, 552, bytes(7) + b"\7"), r"\(kernel\) says 7 bytes, the file's header 6", 552),
    (V[:-1] + b"x", "CRC-32", CRC_OFFSET),
    (assemble([(CMDLINE, b""), (METADATA, b"null")]), "no kernel section", None),
    (assemble([(KERNEL, b""), (METADATA, b"null")]), "no cmdline section", None),
    (assemble([(KERNEL, b""), (CMDLINE, b"")]), "no metadata section", None),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"null")], version=3), "metadata section in version 3", 572),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (CMDLINE, b""), (METADATA, b"null")]), "second cmdline", 572),
    (assemble([(RAMDISK, b""), (KERNEL, b""), (CMDLINE, b""), (METADATA, b"null")]), "ramdisk before the kernel", 548),
    (assemble([(KERNEL, b""), (CMDLINE, b"a\0b"), (METADATA, b"null")]), "NUL", 573),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"{")]), "metadata is not JSON", 584),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"\xff")]), "metadata is not JSON", 584),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"[" * 100_000)]), "metadata is not JSON", 584),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"7" * 5000)]), "metadata is not JSON", 584),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"[]")]), "JSON list, expected an object", 584),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, bytes(5 << 20))]), "5242880 bytes of metadata", 576),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"{}"), (SIGNATURE, bytes(32769))]), "at most 32768", 590),
    (assemble([(KERNEL, b""), (CMDLINE, b""), (METADATA, b"{}"), (SIGNATURE, b"\xff")]), "not CBOR", 598),
]


@pytest.mark.parametrize(("file", "message", "offset"), REFUSALS, ids=[message for _, message, _ in REFUSALS])
def test_refusals_say_what_where_and_what_to_do(file: bytes, message: str, offset: int | None) -> None:
    with pytest.raises(EifError, match=message) as caught:
        read_eif(file)
    text = str(caught.value)
    assert caught.value.offset == offset
    assert "\n" not in text and ";" in text
    assert any(cure in text for cure in ("again", "give", "build"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"No such file.*check the path"):
        read_eif(tmp_path / "missing.eif")
    with pytest.raises(EifError, match=r"directory|regular file"):
        read_eif(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(EifError, match="not a regular file"):
        read_eif(fifo)
    with pytest.raises(EifError, match="null byte"):
        read_eif(Path("a\0b"))


@given(st.binary(max_size=700))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_refused_as_ours(data: bytes) -> None:
    for candidate in (data, b".eif" + data, V[:40] + data, V[:HEADER_SIZE] + data):
        with contextlib.suppress(EifError):
            read_eif(with_crc(candidate) if len(candidate) > HEADER_SIZE else candidate)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_images_give_an_image_or_our_error(data: st.DataObject) -> None:
    file = bytearray(V)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    if len(file) > HEADER_SIZE and data.draw(st.booleans()):
        file = bytearray(with_crc(file))
    with contextlib.suppress(EifError):
        image = read_eif(bytes(file))
        assert sum(s.size + SECTION_HEADER.size for s in image.sections) + HEADER_SIZE == len(file)
        measure(image)


def test_every_single_bit_is_covered() -> None:
    """No bit of an image can change unnoticed."""
    for bit in random.Random(1).sample(range(len(V) * 8), 400):
        file = bytearray(V)
        file[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EifError):
            read_eif(bytes(file))
