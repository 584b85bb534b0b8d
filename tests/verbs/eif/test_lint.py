"""`eif lint` as a command: text, JSON, exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from enclavedbg.cli import main
from enclavedbg.eif.lint import lint
from enclavedbg.verbs.eif.lint import lines
from tests.eif.lint.images import CMDLINE, NOW, image

ROOT = Path(__file__).parents[3]


def write(folder: Path, data: bytes) -> str:
    (folder / "a.eif").write_bytes(data)
    return str(folder / "a.eif")


def test_a_clean_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, image())
    assert main(["eif", "lint", path, "--memory", "512M"]) == 0
    assert capsys.readouterr().out == f"{path}: nothing found\n"
    assert main(["eif", "lint", str(ROOT / "enclavedbg" / "data" / "demo.eif")]) == 0
    assert capsys.readouterr().out.endswith("demo.eif: 0 errors, 0 warnings, 1 note\n")


def test_blocks_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, image(cmdline=b"reboot=k panic=30", drop=["init"]))
    assert main(["eif", "lint", path, "--memory", "512M"]) == 1
    blocks = capsys.readouterr().out.split("\n\n")
    assert blocks[0].startswith("error init-missing: /init is not there\n  ") and "\n  cure: put a program" in blocks[0]
    assert blocks[1].startswith("warning cmdline-no-console: ") and "\n  reboot=k panic=30\n" in blocks[1]
    assert blocks[2] == f"{path}: 1 error, 1 warning, 0 notes\n"


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, image(cmdline=CMDLINE + b" quiet"))
    assert main(["eif", "lint", path, "--json", "--memory", "512M"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["file"], shown["errors"], shown["warnings"], shown["notes"]) == (path, 0, 0, 1)
    (finding,) = shown["findings"]
    assert finding.keys() == {"id", "severity", "message", "evidence", "cure"}
    assert (finding["id"], finding["severity"]) == ("cmdline-option", "note")


def test_no_eif_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "none", Path(sys.executable), write(tmp_path, b".eif")):
        assert main(["eif", "lint", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("enclavedbg: ") and err.count("\n") == 1


def test_damage_of_a_part_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eif", "lint", write(tmp_path, image()[:-40])]) == 1
    assert "file-truncated" in capsys.readouterr().out


def test_a_small_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gzip

    path = write(tmp_path, image(ramdisks=[gzip.compress(bytes(1 << 20))]))
    assert main(["eif", "lint", path, "--limit", "64K"]) == 1
    assert "ramdisk-unreadable" in capsys.readouterr().out


def test_colours_only_where_asked_and_never_from_the_image(tmp_path: Path) -> None:
    report = lint(image(cmdline=b"x\x1b[2J", app={"cmd": b"\x1b]0;x\n"}), now=NOW)
    plain = "\n".join(lines(tmp_path, report, coloured=False))
    assert "\x1b" not in plain
    coloured = "\n".join(lines(tmp_path, report, coloured=True))
    assert coloured.count("\x1b[0m") == len(report.findings) and "\x1b[2J" not in coloured and "\x1b]" not in coloured
