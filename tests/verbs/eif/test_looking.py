"""The verbs ls, cat, extract and diff, as a person and as a script meet them."""

from __future__ import annotations

import gzip
import io
import json
import stat
import sys
from pathlib import Path

import pytest

from enclavedbg.cli import main
from enclavedbg.eif import write_eif
from enclavedbg.eif.cpio import CpioEntry, write_newc
from tests.eif.test_filesystem import file, folder, link

FIRST = write_newc([folder("dev"), file("init", b"\x7fELF\0", mode=stat.S_IFREG | 0o755, mtime=86400, uid=3, gid=4)])
SECOND = write_newc(
    [file("cmd", b"/app\n"), folder("rootfs"), file("rootfs/a\x1b[2J", b"text"), link("rootfs/l", "/cmd"), file("no/x"),
     CpioEntry("rootfs/null", stat.S_IFCHR | 0o666, rdev=(1, 3))]
)  # fmt: skip


def written(path: Path, *, cmdline: bytes = b"console=ttyS0", name: str = "t", second: bytes = SECOND) -> str:
    data = write_eif(
        kernel=b"KER\0NEL", cmdline=cmdline, ramdisks=[FIRST, gzip.compress(second, mtime=7)], metadata={"n": name}
    )
    path.write_bytes(data)
    return str(path)


@pytest.fixture
def app(tmp_path: Path) -> str:
    return written(tmp_path / "app.eif")


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    assert main(["eif", *arguments]) == status
    return capsys.readouterr()


def test_ls_says_what_an_image_is_made_of(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "ls", app)
    assert out.splitlines()[0].startswith("EIF version 4, x86_64, ")
    assert "ramdisk1" in out and "PCR0, PCR2" in out
    assert f"ramdisk0: {len(FIRST)} bytes, plain cpio, 2 entries" in out
    assert f"gzip (mtime 7, effort best, os 255), {len(SECOND)} bytes unpacked, 6 entries" in out
    assert out.splitlines()[-5:] == ["cmd", "dev/", "init*", "root/", "rootfs/"]
    assert "note: no/x: there is no 'no'; Linux passes over it" in err


def test_ls_lists_directories_and_files(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "ls", app, "/rootfs")[0].splitlines() == ["a\\x1b[2J", "l -> /cmd", "null"]
    assert said(capsys, "ls", "-l", app, "/init")[0] == "-rwxr-xr-x  3:4  5  1970-01-02 00:00:00  ramdisk0  /init\n"
    assert "1,3" in said(capsys, "ls", app, "-l", "/rootfs")[0]
    assert said(capsys, "ls", app, "ramdisk0:/")[0].splitlines() == ["dev/", "init*"]
    assert said(capsys, "ls", app, "-R", "ramdisk1:")[0].splitlines()[-1] == "/rootfs/null"
    assert said(capsys, "ls", app, "/dev")[0] == "console\n"
    assert "KER" not in said(capsys, "ls", app, "section:kernel")[0]
    assert said(capsys, "ls", app, "ramdisk0:/dev") == ("", "")


def test_ls_as_json(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(said(capsys, "ls", app, "--json")[0])
    assert [s["name"] for s in record["sections"]] == ["kernel", "cmdline", "metadata", "ramdisk0", "ramdisk1"]
    assert record["ramdisks"][1]["archives"][0]["parameters"]["mtime"] == 7
    assert record["notes"] == ["no/x: there is no 'no'; Linux passes over it"]
    assert [f["path"] for f in record["files"]] == ["/cmd", "/dev", "/init", "/root", "/rootfs"]
    (init,) = json.loads(said(capsys, "ls", app, "/init", "--json")[0])["files"]
    assert init == {"path": "/init", "type": "file", "mode": "0755", "uid": 3, "gid": 4, "mtime": 86400, "size": 5,
                    "ramdisk": 0}  # fmt: skip


def test_cat(app: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for path, expected in [
        ("/cmd", b"/app\n"),
        ("/rootfs/l", b"/app\n"),
        ("/init", b"\x7fELF\0"),
        ("ramdisk0:/init", b"\x7fELF\0"),
        ("section:kernel", b"KER\0NEL"),
        ("section:cmdline", b"console=ttyS0"),
        ("section:metadata", b'{"n":"t"}'),
        ("section:ramdisk0", FIRST),
    ]:
        assert main(["eif", "cat", app, path]) == 0
        assert capfdbinary.readouterr().out == expected


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_cat_keeps_binary_from_a_terminal(
    app: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["eif", "cat", app, "/init"]) == 2
    assert main(["eif", "cat", app, "section:cmdline"]) == 0
    assert terminal.buffer.getvalue() == b"console=ttyS0\n"  # type: ignore[attr-defined]
    assert "/init is binary and this is a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "APP", "/nope"], "there is no 'nope'"),
        (["ls", "APP", "nope"], "expected /path, ramdisk0:/path or section:NAME"),
        (["ls", "APP", "ramdisk2:/"], "there is no ramdisk2; this image has 2"),
        (["ls", "APP", "--limit", "512"], "unpacks to more than the 512 bytes"),
        (["ls", "/nonexistent"], "cannot read the image"),
        (["cat", "APP", "/rootfs"], "is a directory, expected a file"),
        (["cat", "APP", "section:initrd"], "there is no section 'initrd'"),
        (["extract", "APP", "/proc/nothing/x"], "make it first"),
        (["diff", "APP", "/bin/sh"], "/bin/sh: this is an ELF program"),
    ],
)
def test_refusals_are_one_line(
    app: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out, err = said(capsys, *(app if a == "APP" else a for a in arguments), status=2)
    assert out == "" and message in err and err.count("\n") == 1


def test_extract(app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "extract", app, str(tmp_path / "x"))
    assert out == f"kernel, cmdline, metadata, ramdisk0, ramdisk1 in {tmp_path}/x, 4 files of ramdisks\n"
    assert "not made: ramdisk1:/rootfs/null: character device" in err
    assert "note: 1 symbolic link leads out" in err
    assert (tmp_path / "x/ramdisk1/cmd").read_bytes() == b"/app\n"
    record = json.loads(said(capsys, "extract", app, str(tmp_path / "y"), "--json", "--only", "kernel")[0])
    assert record["sections"] == ["kernel"]
    assert (tmp_path / "y/kernel").read_bytes() == b"KER\0NEL"


def test_diff(app: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "diff", app, app) == ("the files are the same\n", "")
    renamed = written(tmp_path / "renamed.eif", name="u")
    out, _ = said(capsys, "diff", app, renamed, status=1)
    assert out.splitlines() == [
        "metadata: moves no PCR", '  n: content "t" -> "u"', "",
        "nothing measured differs: PCR0, PCR1, PCR2 are the same in both",
    ]  # fmt: skip
    said(capsys, "diff", app, renamed, "--measured")
    many = [file(f"f{n}", mtime=1) for n in range(30)]
    old = written(tmp_path / "old.eif", second=write_newc(many))
    new = written(tmp_path / "new.eif", cmdline=b"quiet", second=write_newc([file(f"f{n}", b"x") for n in range(30)]))
    touched = written(tmp_path / "touched.eif", second=write_newc([file(f"f{n}", mtime=2) for n in range(30)]))
    out, _ = said(capsys, "diff", old, new, status=1)
    assert "cmdline: moves PCR0, PCR1\n  content console=ttyS0 -> quiet" in out
    assert "ramdisk1: moves PCR0, PCR2" in out and "... and 10 more; --all names them" in out
    assert "/f29" in said(capsys, "diff", old, new, "--all", status=1)[0]
    out, _ = said(capsys, "diff", old, touched, status=1)
    assert "only the time of /f0 and of 29 more: time 1970-01-01 00:00:01 -> 1970-01-01 00:00:02" in out
    assert "PCR1  same" in out
    record = json.loads(said(capsys, "diff", old, touched, "--json", status=1)[0])
    assert (record["same"], record["same_measured"], len(record["differences"])) == (False, False, 30)
    assert record["differences"][0] == {
        "where": "ramdisk1", "aspect": "mtime", "old": 1, "new": 2, "pcrs": [0, 2], "path": "/f0",
    }  # fmt: skip
    assert record["pcrs"]["PCR1"]["moved"] is False
