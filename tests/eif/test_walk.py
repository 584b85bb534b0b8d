"""The two ways through a file, on sound files, on files that split them, and on anything."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import SectionType, read_eif
from enclavedbg.eif.format import HEADER_SIZE, OFFSETS_AT, SIZES_AT
from enclavedbg.eif.source import open_source
from enclavedbg.eif.walk import Reader, Walk, walk_eif
from enclavedbg.eif.writer import assemble
from enclavedbg.errors import EifError

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType
SECTIONS = [(KERNEL, b"KERNEL"), (CMDLINE, b"c"), (METADATA, b"null"), (RAMDISK, b"R0"), (RAMDISK, b"R1")]
SOUND = assemble(SECTIONS)


def walk(file: bytes) -> Walk:
    with open_source(file) as source:
        return walk_eif(source)


def ids(file: bytes) -> list[str]:
    return [problem.id for problem in walk(file).problems]


def patched(at: int, value: bytes, file: bytes = SOUND) -> bytes:
    return file[:at] + value + file[at + len(value) :]


def test_a_sound_file_is_the_same_for_both() -> None:
    found = walk(SOUND)
    assert found.problems == () and found.agree and found.same_measured and found.trailing == 0
    assert [(s.type, s.offset, s.size) for s in found.walked.sections] == [
        (s.type, s.offset, s.size) for s in read_eif(SOUND).sections
    ]
    assert [s.name for s in found.table.measured] == ["kernel", "cmdline", "ramdisk", "ramdisk"]


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.eif").write_bytes(SOUND)
    with open_source(tmp_path / "a.eif") as source:
        assert walk_eif(source) == walk(SOUND)
        assert b"".join(source.chunks(5, 600)) == SOUND[5:605] == source.read(5, 600)
        assert source.read(len(SOUND) - 2, 10) == SOUND[-2:] and source.read(1 << 70, 10) == b""
        with pytest.raises(EifError, match="ends at"):
            list(source.chunks(10, len(SOUND)))
    for bad in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        with pytest.raises(EifError):
            open_source(bad)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (patched(0, b"XXXX"), ["magic"]),
        (patched(4, b"\0\5"), ["version"]),
        (patched(6, b"\0\3"), ["header-flags"]),
        (patched(0x18, b"\0\1"), ["reserved"]),
        (patched(0x1A, b"\0\4"), ["table-spare", "unlisted", "views-differ"]),
        (patched(0x1A, b"\xff\xff"), ["section-count", "table-size"]),
        (patched(OFFSETS_AT + 8, struct.pack(">Q", 1 << 63)), ["table-offset"]),
        (patched(SIZES_AT, struct.pack(">Q", 7)), ["table-size"]),
        (patched(HEADER_SIZE + 2, b"\0\1"), ["section-flags"]),
        (SOUND + b"tail", ["unlisted", "trailing"]),
        (assemble([*SECTIONS, (9, b"")]), ["section-type"]),
        (SOUND[:-1], ["truncated", "table-truncated"]),
        (assemble(SECTIONS[1:]), ["no-kernel", "ramdisk-early"]),
        (assemble([*SECTIONS, SECTIONS[0]]), ["second-kernel"]),
        (assemble(SECTIONS[:3]), ["no-ramdisk"]),
        (assemble(SECTIONS, version=3), ["version-old", "metadata-early"]),
        (assemble([*SECTIONS[:2], *SECTIONS[3:]]), ["no-metadata"]),
        (assemble([*SECTIONS, (SIGNATURE, bytes(32769))]), ["signature-size"]),
    ],
)
def test_what_is_reported(file: bytes, expected: list[str]) -> None:
    assert ids(file) == expected


def test_an_image_that_loaders_start_and_nitro_cli_does_not_see() -> None:
    """A second kernel inside a ramdisk, to which only the table points: what describe-eif measures never runs."""
    hidden = struct.pack(">HHQ", KERNEL, 0, 4) + b"EVIL"
    file = assemble([*SECTIONS[:3], (RAMDISK, hidden), SECTIONS[4]])
    offset = walk(file).walked.sections[3].data_offset
    file = patched(OFFSETS_AT, struct.pack(">Q", offset), patched(SIZES_AT, struct.pack(">Q", 4), file))
    found = walk(file)
    assert not found.agree and not found.same_measured
    assert "views-differ" in ids(file) and "overlap" in ids(file)
    assert found.walked.refusal is None and found.table.refusal is None


def test_sections_listed_in_another_order() -> None:
    table = [struct.unpack_from(">Q", SOUND, at + 8 * i)[0] for at in (OFFSETS_AT, SIZES_AT) for i in range(5)]
    swapped = struct.pack(">5Q", *table[:3], table[4], table[3])
    assert ids(patched(OFFSETS_AT, swapped)) == ["gap", "out-of-order", "views-differ"]


def test_nitro_cli_refuses_what_its_reader_refuses() -> None:
    refusal = walk(SOUND[:-1]).walked.refusal
    assert refusal is not None and Reader.NITRO_CLI in refusal.stops
    assert refusal.error().offset == refusal.offset == len(SOUND) - 14 + 4
    with pytest.raises(EifError, match="547 bytes"):
        walk(SOUND[:547])
    assert walk(SOUND[:548]).walked.sections == ()


def test_the_walk_is_bounded() -> None:
    file = SOUND + struct.pack(">HHQ", RAMDISK, 0, 0) * 70_000
    refusal = walk(file).walked.refusal
    assert refusal is not None and refusal.id == "too-many"


@given(
    st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=30)), max_size=32),
    st.lists(st.tuples(st.integers(0, 800), st.binary(min_size=1, max_size=9)), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_any_file_is_gone_through(sections: list[tuple[int, bytes]], changes: list[tuple[int, bytes]]) -> None:
    file = assemble(sections)
    for at, new in changes:
        file = patched(min(at, len(file)), new, file)
    found = walk(file)
    for view in (found.walked, found.table):
        assert all(section.offset >= 0 and section.end <= len(file) for section in view.sections)
    # The strict reader checks contents too, so it may refuse more, never less.
    with contextlib.suppress(EifError):
        read_eif(file)
        assert found.agree and not [p for p in found.problems if Reader.FORMAT in p.stops]
