"""Extraction: what it makes, what it only records, and that nothing ever lands outside of the folder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import write_eif
from enclavedbg.eif.contents import open_contents
from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.extract import Extracted, extract
from enclavedbg.eif.filesystem import Limits
from enclavedbg.errors import EifError
from tests.eif.test_filesystem import FILE, file, folder, link


def image(*ramdisks: bytes) -> bytes:
    return write_eif(kernel=b"KERNEL", cmdline=b"console=ttyS0", ramdisks=ramdisks, metadata={"ImageName": "t"})


def taken_apart(target: Path, *entries: CpioEntry) -> Extracted:
    return extract(open_contents(image(write_newc(entries))), target)


def everything(folder: Path) -> dict[str, object]:
    """Each path below a folder with what is there, symbolic links not followed."""
    found: dict[str, object] = {}
    for top, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(top, name)
            status = path.lstat()
            key = str(path.relative_to(folder))
            if stat.S_ISLNK(status.st_mode):
                found[key] = f"-> {path.readlink()}"
            else:
                found[key] = path.read_bytes() if stat.S_ISREG(status.st_mode) else "folder"
    return found


@pytest.fixture
def fenced(tmp_path: Path) -> Iterator[Path]:
    """A folder to extract to, and a check that its neighbours are as they were."""
    neighbour = tmp_path / "neighbour"
    neighbour.mkdir()
    (neighbour / "precious").write_text("kept")
    yield tmp_path / "out"
    assert everything(neighbour) == {"precious": b"kept"}
    assert {path.name for path in tmp_path.iterdir()} <= {"neighbour", "out"}


def test_sections_and_trees(fenced: Path) -> None:
    first = write_newc([folder("dev"), file("init", b"\x7fELF", mode=stat.S_IFREG | 0o4755, mtime=86400, uid=7)])
    second = gzip.compress(write_newc([folder("rootfs", mtime=5), file("rootfs/a", b"1", ino=3, nlink=2),
                                       file("rootfs/b", b"22", ino=3, nlink=2), link("rootfs/l", "a"),
                                       CpioEntry("rootfs/null", stat.S_IFCHR | 0o666, rdev=(1, 3))]))  # fmt: skip
    done = extract(open_contents(image(first, second)), fenced)
    found = everything(fenced)
    manifest = json.loads(found.pop("manifest.json"))  # type: ignore[arg-type]
    assert found == {
        "kernel": b"KERNEL", "cmdline": b"console=ttyS0", "metadata.json": b'{"ImageName":"t"}',
        "ramdisk0": "folder", "ramdisk0/dev": "folder", "ramdisk0/init": b"\x7fELF",
        "ramdisk1": "folder", "ramdisk1/rootfs": "folder", "ramdisk1/rootfs/a": b"22", "ramdisk1/rootfs/b": b"22",
        "ramdisk1/rootfs/l": "-> a",
    }  # fmt: skip
    init = (fenced / "ramdisk0/init").stat()
    assert (stat.S_IMODE(init.st_mode), init.st_mtime) == (0o755, 86400)
    assert (fenced / "ramdisk1/rootfs").stat().st_mtime == 5
    assert (fenced / "ramdisk1/rootfs/a").samefile(fenced / "ramdisk1/rootfs/b")
    assert done.sections == ("kernel", "cmdline", "metadata", "ramdisk0", "ramdisk1")
    assert (done.files, done.outside) == (2, 0)
    assert done.skipped == ("ramdisk1:/rootfs/null: character device; only in the manifest",)
    sections = {section["name"]: section for section in manifest["sections"]}
    assert sections["ramdisk0"]["entries"][1]["mode"] == "4755" and sections["ramdisk0"]["entries"][1]["uid"] == 7
    null = sections["ramdisk1"]["entries"][4]
    assert (null["rdev"], null["not_made"]) == ([1, 3], "character device; only in the manifest")
    assert sections["ramdisk1"]["archives"][0]["compression"] == "gzip"


def test_hostile_names_stay_inside(fenced: Path) -> None:
    outside = str(fenced.parent / "neighbour")
    done = taken_apart(
        fenced,
        file("../neighbour/precious", b"1"),
        file(f"{outside}/precious", b"2"),
        link("out", outside),
        file("out/precious", b"3"),
        link("up", "../../neighbour"),
        file("up/precious", b"4"),
        file("hard", b"5", ino=1, nlink=2),
        link("file", f"{outside}/precious"),
        file("file", b"6"),
        link("dangling", f"{outside}/new"),
        file("dangling/x", b"7"),
        file("a/../../../b", b"8"),
    )
    tree = everything(fenced / "ramdisk0")
    assert tree["neighbour/precious"] == b"4"
    assert tree["file"] == b"6" and tree["b"] == b"8"
    assert tree["up"] == "-> ../../neighbour"
    assert done.outside == 3
    assert (fenced / "ramdisk0" / outside.lstrip("/") / "precious").read_bytes() == b"3"


def test_a_hard_link_cannot_reach_outside(fenced: Path) -> None:
    precious = fenced.parent / "neighbour" / "precious"
    taken_apart(
        fenced,
        link("d", str(precious.parent)),
        file("d/precious", ino=9, nlink=2),
        file("mine", b"overwritten", ino=9, nlink=2),
    )
    assert (fenced / "ramdisk0/mine").read_bytes() == b"overwritten"
    assert not (fenced / "ramdisk0/mine").samefile(precious)


def test_only_some_sections(fenced: Path) -> None:
    contents = open_contents(image(b"no archive"))
    assert extract(contents, fenced, only=["cmdline"]).sections == ("cmdline",)
    assert set(everything(fenced)) == {"cmdline", "manifest.json"}
    with pytest.raises(EifError, match="no section 'initrd'; this image has kernel, cmdline"):
        extract(contents, fenced.parent / "other", only=["initrd"])


def test_nothing_is_left_of_a_failure(fenced: Path) -> None:
    good, bad = write_newc([file("a", bytes(5000))]), gzip.compress(write_newc([file("b")]))[:-3]
    with pytest.raises(EifError, match="ramdisk 1, archive 0 at byte 0x0 of it: gzip data is damaged"):
        extract(open_contents(image(good, bad)), fenced)
    with pytest.raises(EifError, match="more than the 100 bytes"):
        extract(open_contents(image(gzip.compress(good))), fenced, limits=Limits(unpacked=100))
    assert not fenced.exists()


def test_the_folder_must_be_new_or_empty(fenced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = open_contents(image())
    fenced.mkdir()
    extract(contents, fenced)
    with pytest.raises(EifError, match="is not empty"):
        extract(contents, fenced)
    with pytest.raises(EifError, match="is not a folder"):
        extract(contents, fenced / "kernel")
    with pytest.raises(EifError, match="make it first"):
        extract(contents, fenced / "no" / "such")
    with pytest.raises(EifError, match="cannot extract"):
        extract(contents, Path("a\0b"))
    empty = fenced / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(EifError, match="current folder"):
        extract(contents, Path("."))


def test_everything_extracted_can_be_read_and_removed(fenced: Path) -> None:
    taken_apart(fenced, folder("shut", mode=stat.S_IFDIR), file("shut/file", b"x", mode=stat.S_IFREG))
    assert stat.S_IMODE((fenced / "ramdisk0/shut").stat().st_mode) == 0o700
    assert stat.S_IMODE((fenced / "ramdisk0/shut/file").stat().st_mode) == 0o600
    shutil.rmtree(fenced)


def test_paths_too_long_for_this_system(fenced: Path) -> None:
    deep = "/".join(["x" * 200] * 18)
    done = taken_apart(fenced, file(f"{deep}/a", b"1"), link("s", deep), file(f"s/{'y' * 200}/{'z' * 200}/b", b"2"))
    assert [line.rpartition(": ")[2] for line in done.skipped] == ["its path is too long here"] * 2
    assert (fenced / "ramdisk0" / deep / "a").read_bytes() == b"1"


PARTS = st.sampled_from(["a", "b", "..", ".", "", "out", "neighbour", "precious", "x" * 300, "\udcff", "\n"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join).filter(bool)
ENTRIES = st.builds(
    CpioEntry,
    name=NAMES,
    mode=st.sampled_from([FILE, FILE, stat.S_IFDIR, stat.S_IFLNK | 0o777, stat.S_IFLNK, stat.S_IFIFO, 0o170000]),
    data=st.one_of(st.just(b""), NAMES.map(lambda name: name.encode("utf-8", "surrogateescape"))),
    nlink=st.integers(1, 2),
    ino=st.integers(1, 2),
    mtime=st.integers(0, 2**32 - 1),
)


@given(entries=st.lists(ENTRIES, max_size=10))
@settings(max_examples=150, deadline=None)
def test_any_archive_stays_inside(tmp_path_factory: pytest.TempPathFactory, entries: list[CpioEntry]) -> None:
    top = tmp_path_factory.mktemp("fence")
    try:
        (top / "neighbour").mkdir()
        (top / "neighbour" / "precious").write_text("kept")
        contents = open_contents(image(write_newc(entries)))
        done = extract(contents, top / "out")
        assert {path.name for path in top.iterdir()} == {"neighbour", "out"}
        assert everything(top / "neighbour") == {"precious": b"kept"}
        files = [path for path in everything(top / "out" / "ramdisk0").values() if isinstance(path, bytes)]
        assert len(files) >= done.files
        assert json.loads((top / "out" / "manifest.json").read_bytes())["sections"][3]["name"] == "ramdisk0"
    finally:
        shutil.rmtree(top)
