"""The cpio writer and reader, against each other and against anything."""

from __future__ import annotations

import contextlib
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif.cpio import NAME_MAX, TRAILER, CpioEntry, iter_newc, read_newc, write_newc
from enclavedbg.errors import EifError

NUMBERS = st.integers(0, 2**32 - 1)
NAMES = (
    st.binary(min_size=1, max_size=40)
    .filter(lambda raw: 0 not in raw and raw != TRAILER.encode())
    .map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
ENTRIES = st.builds(
    CpioEntry,
    name=NAMES,
    mode=NUMBERS,
    data=st.binary(max_size=64),
    uid=NUMBERS,
    gid=NUMBERS,
    mtime=NUMBERS,
    nlink=NUMBERS,
    rdev=st.tuples(NUMBERS, NUMBERS),
)


@given(st.lists(ENTRIES, max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(entries: list[CpioEntry]) -> None:
    archive = write_newc(entries)
    assert len(archive) % 4 == 0
    assert read_newc(archive) == entries


def test_known_bytes() -> None:
    archive = write_newc([CpioEntry("init", 0o100755, b"hi", mtime=1)])
    assert archive[:110] == (
        b"070701" b"00000001" b"000081ED" b"00000000" b"00000000" b"00000001" b"00000001" b"00000002"
        b"00000000" b"00000000" b"00000000" b"00000000" b"00000005" b"00000000"
    )  # fmt: skip
    assert archive[110:120] == b"init\0\0hi\0\0"
    assert archive.endswith(b"TRAILER!!!\0\0\0\0")


def test_kinds_of_entries() -> None:
    directory, link, device = read_newc(
        write_newc(
            [
                CpioEntry("dev", stat.S_IFDIR | 0o755),
                CpioEntry("sh", stat.S_IFLNK | 0o777, b"busybox"),
                CpioEntry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1)),
            ]
        )
    )
    assert directory.is_directory and link.is_symlink and not device.is_file
    assert (bytes(link.data), device.rdev) == (b"busybox", (5, 1))


def test_concatenated_archives_with_zeros_between() -> None:
    one = [CpioEntry("a", 0o100644, b"1")]
    two = [CpioEntry("b", 0o100644, b"22")]
    assert read_newc(write_newc(one) + bytes(512) + write_newc(two) + bytes(3)) == one + two
    with pytest.raises(EifError, match="multiple of 4"):
        read_newc(write_newc(one) + bytes(3) + write_newc(two))


def test_contents_are_views_not_copies() -> None:
    archive = bytearray(write_newc([CpioEntry("a", 0o100644, b"old!")]))
    (entry,) = iter_newc(archive)
    archive[archive.index(b"old!")] = ord("c")
    assert bytes(entry.data) == b"cld!"


def test_checksummed_format() -> None:
    archive = bytearray(write_newc([CpioEntry("a", 0o100644, b"\x01\x02")]))
    archive[0:6] = b"070702"
    archive[102:110] = b"00000003"
    assert bytes(read_newc(archive)[0].data) == b"\x01\x02"
    archive[102:110] = b"00000004"
    with pytest.raises(EifError, match="checksum"):
        read_newc(archive)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (CpioEntry("", 0), "name"),
        (CpioEntry("a\0b", 0), "NUL"),
        (CpioEntry("x" * NAME_MAX, 0), "name"),
        (CpioEntry("\ud800", 0), "cannot be written"),
        (CpioEntry(TRAILER, 0), "rename"),
        (CpioEntry("a", 2**32), "32 bits"),
        (CpioEntry("a", 0, mtime=-1), "32 bits"),
    ],
)
def test_what_cannot_be_written(entry: CpioEntry, message: str) -> None:
    with pytest.raises(EifError, match=message):
        write_newc([entry])


def test_damage_is_named() -> None:
    archive = write_newc([CpioEntry("a", 0o100644, b"data")])
    for damaged, message in [
        (archive[:50], "truncated"),
        (archive[:114], "are left"),
        (archive[:-124], "truncated"),
        (b"x" + archive[1:], "expected 070701"),
        (archive[:6] + b"+0000001" + archive[14:], "hex digits"),
        (archive[:94] + b"FFFFFFFF" + archive[102:], "name"),
        (archive[:54] + b"FFFFFFFF" + archive[62:], "are left"),
        (archive[:110] + b"\0" + archive[111:], "NUL"),
    ]:
        with pytest.raises(EifError, match=message):
            read_newc(damaged)


def test_number_of_entries_is_bounded() -> None:
    archive = write_newc([CpioEntry(str(n), 0o100644) for n in range(4)])
    assert len(read_newc(archive, limit=4)) == 4
    with pytest.raises(EifError, match="more than 3"):
        read_newc(archive, limit=3)


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_entries_or_our_error(data: bytes) -> None:
    with contextlib.suppress(EifError):
        read_newc(data)


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_archives_give_entries_or_our_error(entries: list[CpioEntry], data: st.DataObject) -> None:
    archive = bytearray(write_newc(entries))
    at = data.draw(st.integers(0, len(archive) - 1))
    archive[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    with contextlib.suppress(EifError):
        read_newc(archive)
