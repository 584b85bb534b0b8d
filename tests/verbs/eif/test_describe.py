"""`eif describe` and `eif measure` as commands: what is printed where, and the exit status."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from enclavedbg.cli import main
from enclavedbg.eif import SectionType, describe
from enclavedbg.eif.source import open_source
from enclavedbg.eif.writer import assemble
from enclavedbg.verbs.eif.describe import table

VECTORS = Path(__file__).parents[2] / "eif" / "vectors"
EXPECTED = json.loads((VECTORS / "expected.json").read_text())
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_json_where_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eif", "describe", str(VECTORS / "v4.eif")]) == 0
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert shown["Measurements"]["PCR0"] == EXPECTED["v4"]["PCR0"] and shown["Metadata"]["team"] == "Zürich"
    assert out.startswith('{\n  "EifVersion": 4,\n  "Measurements": {\n    "HashAlgorithm"') and "Zürich" in out
    assert err == ""


def test_measure_prints_a_line_for_each_register(capsys: pytest.CaptureFixture[str]) -> None:
    for name, values in EXPECTED.items():
        assert main(["eif", "measure", str(VECTORS / f"{name}.eif")]) == 0
        assert capsys.readouterr().out == "".join(f"{pcr}: {value}\n" for pcr, value in values.items())
        assert main(["eif", "measure", "--json", str(VECTORS / f"{name}.eif")]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown == {"Measurements": {"HashAlgorithm": "Sha384 { ... }", **values}}


@pytest.mark.parametrize("verb", ["describe", "measure"])
def test_doubts_go_to_standard_error(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bytearray((VECTORS / "v2.eif").read_bytes())
    file[-1] ^= 1
    file[0x1C + 7] ^= 4
    (tmp_path / "a.eif").write_bytes(file)
    assert main(["eif", verb, str(tmp_path / "a.eif")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "CRC-32" in lines[0] and "loader" in lines[1]


@pytest.mark.parametrize("verb", ["describe", "measure"])
def test_bad_input_is_one_line_and_status_2(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short").write_bytes((VECTORS / "v4.eif").read_bytes()[:900])
    for path in (tmp_path, tmp_path / "none", tmp_path / "short", Path(sys.executable)):
        assert main(["eif", verb, str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("enclavedbg: ") and err.count("\n") == 1


def shown(path: Path, *, now: datetime = NOW) -> str:
    console = Console(width=200, highlight=False)
    with open_source(path) as source, console.capture() as capture:
        console.print(table(path, describe(source), now=now))
    return capture.get()


def test_table_says_what_the_signature_means() -> None:
    text = shown(VECTORS / "v4.eif")
    assert EXPECTED["v4"]["PCR8"] in text and "aarch64" in text and "vector:4" in text
    assert "good: made with the certificate's key, and for this image" in text and "issued by    itself" in text
    assert "HAS ENDED, nitro-cli run-enclave refuses" in shown(VECTORS / "v4.eif", now=datetime(2200, 1, 1, tzinfo=UTC))
    assert "HAS NOT BEGUN" in shown(VECTORS / "v4.eif", now=datetime(2000, 1, 1, tzinfo=UTC))
    assert "none: PCR8 is zero" in shown(VECTORS / "v2.eif")


def test_table_of_a_signature_of_another_image(tmp_path: Path) -> None:
    with open_source(VECTORS / "v3.eif") as source:
        sections = describe(source).walk.walked.sections
        parts = [(s.number, source.read(s.data_offset, s.size)) for s in sections]
    parts[2] = (SectionType.RAMDISK, b"another")
    (tmp_path / "a.eif").write_bytes(assemble(parts, version=3))
    assert "WRONG: made with the certificate's key, but for another image" in shown(tmp_path / "a.eif")


def test_what_a_terminal_would_act_on_is_shown_as_text(tmp_path: Path) -> None:
    metadata = (
        b'{"ImageName":"\\u001b[31mred","ImageVersion":"[bold]1","BuildMetadata":{"BuildTime":"","BuildTool":"",'
        b'"BuildToolVersion":"","OperatingSystem":"","KernelVersion":""},"DockerInfo":null,"CustomMetadata":null}'
    )
    (tmp_path / "a.eif").write_bytes(assemble([(1, b""), (2, b""), (5, metadata), (3, b"")]))
    text = shown(tmp_path / "a.eif")
    assert "\\x1b[31mred, version [bold]1" in text and "\x1b[31m" not in text


def test_a_person_at_a_terminal_gets_the_table() -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "enclavedbg", "eif", "describe", str(VECTORS / "v2.eif")]
    with subprocess.Popen(command, stdout=follower, stdin=subprocess.DEVNULL) as process:
        os.close(follower)
        text = b""
        try:
            while piece := os.read(leader, 4096):
                text += piece
        except OSError:  # the other end has closed
            pass
        os.close(leader)
        assert process.wait() == 0
    assert b"version-old" in text and b"PCR0, PCR1" in text and not text.startswith(b"{")
