"""Images opened to look inside, faulty ones too; and whatever else a file may hold."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.contents import Place, open_contents, parse_place
from enclavedbg.eif.cpio import write_newc
from enclavedbg.eif.diff import diff
from enclavedbg.eif.format import SECTION_HEADER, SIZES_AT, SectionType
from enclavedbg.eif.reader import MAPPED_FROM
from enclavedbg.eif.writer import assemble
from enclavedbg.errors import EifError
from tests.eif.test_filesystem import file, folder

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType
ARCHIVE = write_newc([folder("d"), file("d/a", b"text")])
PARTS = [(KERNEL, b"K"), (CMDLINE, b"c"), (METADATA, b"{}"), (RAMDISK, ARCHIVE), (RAMDISK, gzip.compress(ARCHIVE))]


def test_sections_have_names_and_registers() -> None:
    contents = open_contents(assemble([*PARTS, (KERNEL, b"again"), (SIGNATURE, b"")]))
    assert [(s.name, s.pcrs) for s in contents.sections] == [
        ("kernel", (0, 1)), ("cmdline", (0, 1)), ("metadata", ()), ("ramdisk0", (0, 1)), ("ramdisk1", (0, 2)),
        ("kernel.1", (0, 1)), ("signature", (8,)),
    ]  # fmt: skip
    assert bytes(contents.section("kernel.1").data) == b"again"
    assert contents.filesystem().read("/d/a") == b"text"
    assert not contents.notes


def test_what_only_one_reader_accepts_is_opened() -> None:
    image = bytearray(assemble(PARTS))
    image[SIZES_AT + 7] += 1
    image[0x220] ^= 1
    contents = open_contents(bytes(image))
    assert [s.name for s in contents.sections][-1] == "ramdisk1" and "elsewhere" in contents.notes[0]
    # A gap: nitro-cli takes it for a section header, a loader seeks past it.
    whole = assemble(PARTS)
    gap = bytes(SECTION_HEADER.size)
    offsets = [548 + len(gap) + o - 548 for o in open_contents(whole).walk.header.offsets[: len(PARTS)]]
    moved = whole[:0x1C] + b"".join(o.to_bytes(8, "big") for o in offsets) + whole[0x1C + 8 * len(PARTS) : 548]
    contents = open_contents(moved + gap + whole[548:])
    assert contents.filesystem().read("/d/a") == b"text" and "nitro-cli cannot read" in contents.notes[0]
    with pytest.raises(EifError, match="ELF program"):
        open_contents(b"\x7fELF" + bytes(1000))
    with pytest.raises(EifError, match="would end at"):
        open_contents(whole[:-1])
    with pytest.raises(EifError, match="header alone has 548"):
        open_contents(whole[:100])


def test_a_mapped_file_is_like_one_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.eif"
    large = write_newc([file("zeros", bytes(MAPPED_FROM)), file("end", b"!")])
    path.write_bytes(assemble([*PARTS[:3], (RAMDISK, large)]))
    contents = open_contents(path)
    system = contents.filesystem()
    assert (system.read("/end"), system.tree.lookup("/zeros").size) == (b"!", MAPPED_FROM)
    assert sum(len(piece) for piece in system.pieces(system.tree.lookup("/zeros"))) == MAPPED_FROM
    assert diff(contents, open_contents(path.read_bytes())).same


def test_places() -> None:
    assert parse_place("/a:b") == Place(None, None, "/a:b")
    assert parse_place("ramdisk12:/a") == parse_place("ramdisk12:a") == Place(None, 12, "/a")
    assert parse_place("section:kernel") == Place("kernel", None, "")
    for text in ("", "a", "ramdisk:/a", "ramdisk-1:/a", "ramdisk\u00b2:/a", "kernel:", "ramdisk1000000:/"):
        with pytest.raises(EifError, match="expected /path"):
            parse_place(text)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_gives_a_result_or_our_error(data: st.DataObject) -> None:
    image = bytearray(assemble(PARTS))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(image) - 1))
        image[at : at + data.draw(st.integers(0, 12))] = data.draw(st.binary(max_size=12))
    with contextlib.suppress(EifError):
        contents = open_contents(bytes(image))
        with contextlib.suppress(EifError):
            contents.filesystem()
        comparison = diff(open_contents(assemble(PARTS)), contents)
        assert comparison.same == (image == assemble(PARTS))


@given(st.binary(max_size=700))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_a_result_or_our_error(data: bytes) -> None:
    with contextlib.suppress(EifError):
        open_contents(b".eif" + data).filesystem()
