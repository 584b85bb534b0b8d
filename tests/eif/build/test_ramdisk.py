"""Trees and folders as ramdisks: the layout, and the same bytes from whatever equal input."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from enclavedbg.eif.build.command import (
    encode_command,
    encode_environment,
    parse_environment,
    read_command_file,
    read_environment_file,
    split_command,
)
from enclavedbg.eif.build.contents import InFile, InMemory
from enclavedbg.eif.build.folder import read_folder
from enclavedbg.eif.build.ramdisk import Archive, application_ramdisk, archive, bootstrap_ramdisk
from enclavedbg.eif.build.tree import Tree, file, symlink
from enclavedbg.eif.cpio import CpioEntry, read_newc, write_newc
from enclavedbg.errors import EifError


def contents(ramdisk: Archive) -> bytes:
    data = b"".join(bytes(piece) for piece in ramdisk.pieces())
    assert len(data) == ramdisk.size
    return data


def make(path: Path, *, umask: int, time: int) -> Path:
    before = os.umask(umask)
    try:
        (path / "bin").mkdir(parents=True)
        # Another order of creation for each, and so perhaps of the folder's entries.
        for name in sorted(("b", "a", "é", "A", "a-b"), reverse=bool(umask)):
            (path / name).write_bytes(name.encode() * 3)
        (path / "a.d").mkdir()
        (path / "a.d/big").write_bytes(bytes(range(256)) * 5000)
        (path / "bin/run").write_bytes(b"#!")
        (path / "bin/run").chmod(0o777 & ~umask)
        (path / "link").symlink_to("../../etc/passwd")
        for item in path.rglob("*"):
            os.utime(item, (time, time), follow_symlinks=False)
    finally:
        os.umask(before)
    return path


def test_two_checkouts_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (make(tmp_path / str(mask), umask=mask, time=time) for mask, time in ((0o022, 1000), (0o077, 2**31)))
    archives = [contents(archive(read_folder(path)[0], mtime=7)) for path in (one, two)]
    assert archives[0] == archives[1]
    entries = read_newc(archives[0])
    assert [entry.name for entry in entries] == ["A", "a", "a-b", "a.d", "a.d/big", "b", "bin", "bin/run", "link", "é"]
    assert {(e.uid, e.gid, e.mtime) for e in entries} == {(0, 0, 7)}
    assert [e.ino for e in entries] == list(range(1, 11))
    modes = {e.name: e.mode for e in entries}
    assert (modes["a"], modes["bin"], modes["bin/run"]) == (0o100644, 0o40755, 0o100755)
    assert bytes(entries[8].data) == b"../../etc/passwd"
    kept = {e.name: e.mode for e in read_newc(contents(archive(read_folder(two, keep_modes=True)[0])))}
    assert (kept["a"], kept["bin"], kept["bin/run"]) == (0o100600, 0o40700, 0o100700)


def test_hard_links_in_a_folder_are_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    os.link(tmp_path / "a", tmp_path / "b")
    assert [(e.nlink, bytes(e.data)) for e in read_newc(contents(archive(read_folder(tmp_path)[0])))] == [(1, b"1")] * 2


def test_bits_that_mean_something_stay(tmp_path: Path) -> None:
    (tmp_path / "su").write_bytes(b"")
    (tmp_path / "su").chmod(0o4511)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    modes = {path: oct(node.mode) for path, node in read_folder(tmp_path)[0].walk()}
    assert modes == {"pipe": "0o10644", "su": "0o104755", "tmp": "0o41777"}


def test_sockets_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        tree, notes = read_folder(tmp_path)
    assert list(tree.walk()) == [] and notes == ["s is a device or socket and was left out"]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    before = archive(read_folder(tmp_path)[0])
    for data in (b"1234", b"123456"):
        path.write_bytes(data)
        with pytest.raises(EifError, match="changed while it was read, it had 5 bytes"):
            contents(before)
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(EifError, match="cannot read"):
        list(InFile(path, 5).pieces())


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EifError, match="not a folder"):
        read_folder(tmp_path / "none")


def test_the_archive_is_what_the_cpio_writer_writes() -> None:
    tree = Tree()
    tree.add("d/f", file(InMemory(b"12345"), 0o600))
    tree.add("s", symlink(b"d/f"))
    expected = [
        CpioEntry("d", stat.S_IFDIR | 0o755, nlink=2),
        CpioEntry("d/f", stat.S_IFREG | 0o600, b"12345"),
        CpioEntry("s", stat.S_IFLNK | 0o777, b"d/f"),
    ]
    assert contents(archive(tree)) == write_newc(expected)


def test_hard_links_share_a_number_and_the_last_has_the_data() -> None:
    tree = Tree()
    tree.add("a", file(InMemory(b"12345")))
    tree.link("b", "a")
    tree.link("d/c", "b")
    entries = [e for e in read_newc(contents(archive(tree))) if e.is_file]
    assert [(e.name, e.ino, e.nlink, bytes(e.data)) for e in entries] == [
        ("a", 1, 3, b""),
        ("b", 1, 3, b""),
        ("d/c", 1, 3, b"12345"),
    ]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed (apt install cpio)")
def test_cpio_unpacks_it(tmp_path: Path) -> None:
    tree = read_folder(make(tmp_path / "in", umask=0o022, time=5))[0]
    tree.link("again", "bin/run")
    (tmp_path / "out").mkdir()
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--no-preserve-owner"], input=contents(archive(tree)), cwd=tmp_path / "out",
        check=True,
    )  # fmt: skip
    assert (tmp_path / "out/again").stat().st_ino == (tmp_path / "out/bin/run").stat().st_ino
    assert (tmp_path / "out/again").read_bytes() == b"#!"
    assert (tmp_path / "out/a.d/big").read_bytes() == (tmp_path / "in/a.d/big").read_bytes()


def test_names_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavedbg.eif.build.ramdisk.HEADS_LIMIT", 1000)
    tree = Tree()
    tree.add("/".join("abcd"), file(InMemory(bytes(5000))))
    assert archive(tree).size > 5000
    tree.add("/".join("abcdefghij"[4:]), file(InMemory(b"")))
    with pytest.raises(EifError, match="more than 1000 bytes"):
        archive(tree)


def test_layout_of_the_bootstrap_ramdisk() -> None:
    entries = read_newc(contents(bootstrap_ramdisk(InMemory(b"INIT"), nsm=InMemory(b"NSM"))))
    assert [(e.name, oct(e.mode)) for e in entries] == [
        ("dev", "0o40755"), ("init", "0o100755"), ("nsm.ko", "0o100755"),
    ]  # fmt: skip
    assert [e.name for e in read_newc(contents(bootstrap_ramdisk(InMemory(b""))))] == ["dev", "init"]


def test_layout_of_the_application_ramdisk() -> None:
    tree = Tree()
    tree.add("app", file(InMemory(b"x")))
    tree.add("tmp", symlink(b"var/tmp"))
    entries = read_newc(contents(application_ramdisk(tree, command=b"/app\n", environment=b"A=1\n")))
    assert [(e.name, oct(e.mode)) for e in entries] == [
        ("cmd", "0o100644"), ("env", "0o100644"), ("rootfs", "0o40755"), ("rootfs/app", "0o100644"),
        ("rootfs/dev", "0o40755"), ("rootfs/proc", "0o40755"), ("rootfs/run", "0o40755"), ("rootfs/sys", "0o40755"),
        ("rootfs/tmp", "0o120777"), ("rootfs/var", "0o40755"),
    ]  # fmt: skip
    assert [bytes(e.data) for e in entries[:2]] == [b"/app\n", b"A=1\n"]


def test_command_and_environment(tmp_path: Path) -> None:
    assert encode_command(split_command("/app 'two words' --x=\"y\"")) == b"/app\ntwo words\n--x=y\n"
    assert encode_environment(parse_environment(["A=1", "B=", "A=2=3"])) == b"A=2=3\nB=\n"
    (tmp_path / "cmd").write_bytes(b"/app\n\xff two\n\n")
    assert encode_command(read_command_file(tmp_path / "cmd")) == b"/app\n\xff two\n"
    (tmp_path / "env").write_text("# said\n\nA=1\nB=# not said\n")
    assert read_environment_file(tmp_path / "env") == {"A": "1", "B": "# not said"}


def test_what_lines_cannot_hold() -> None:
    for words in ([], [""], ["a", ""], ["a\nb"], ["a\0"], ["x" * (1 << 20)], ["\ud800"]):
        with pytest.raises(EifError):
            encode_command(words)
    for environment in ({"A": "1\n2"}, {"": "1"}, {"A=B": "1"}):
        with pytest.raises(EifError):
            encode_environment(environment)
    for text in ("A", "=1"):
        with pytest.raises(EifError, match="not NAME=value"):
            parse_environment([text])
    with pytest.raises(EifError, match="close its quotes"):
        split_command("a 'b")
