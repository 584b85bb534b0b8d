"""`attest forge` and `attest root`: what is written, and that the forgeries and their manifests agree with explain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclavedbg.cli import main
from enclavedbg.demo import image_path
from enclavedbg.eif import measure, read_eif
from enclavedbg.machine.enclave import seeded_authority
from enclavedbg.nsm.forge import FORGERIES, GENUINE


def explain(folder: Path, manifest: dict[str, object]) -> tuple[int, list[str]]:
    """What explain says when it is told what the manifest says."""
    expect = manifest["expect"]
    assert isinstance(expect, dict)
    arguments = [str(folder / str(manifest["document"])), "--root", str(folder / str(manifest["root"])), "--json"]
    for index, value in expect["pcrs"].items():
        arguments += ["--expect-pcr", f"{index}={value}"]
    for name in ("nonce", "user_data", "public_key"):
        if expect[name] is not None:
            arguments += [f"--{name.replace('_', '-')}", f"hex:{expect[name]}"]
    command = [sys.executable, "-m", "enclavedbg", "attest", "explain", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    checks = json.loads(done.stdout)["checks"]
    return done.returncode, [check["check"] for check in checks if check["status"] == "fail"]


def test_a_folder_of_forgeries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "forged"
    assert main(["attest", "forge", str(folder)]) == 0
    assert f"{len(FORGERIES)} documents to refuse and {len(GENUINE)} to accept" in capsys.readouterr().out
    manifests = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert manifests.keys() == {*FORGERIES, *GENUINE}
    assert {path.name for path in folder.iterdir()} == {
        "root.pem", *(f"{name}.bin" for name in manifests), *(f"{name}.json" for name in manifests)
    }  # fmt: skip
    for name, recipe in FORGERIES.items():
        manifest = manifests[name]
        assert (manifest["verdict"], manifest["what"]) == ("refuse", recipe.wrong)
        assert manifest["check"] == {"id": recipe.check.name.lower(), "title": recipe.check.value}
        assert manifest["basis"] == ("observed" if name in ("other-instance", "missing-pcr0") else "published")
    for name in GENUINE:
        assert (manifests[name]["verdict"], manifests[name]["check"]) == ("accept", None)
        assert explain(folder, manifests[name]) == (0, [])
    status, failed = explain(folder, manifests["wrong-nonce"])
    assert (status, failed) == (1, ["nonce"])


def test_one_of_them_for_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "forged"
    arguments = ["--only", "debug-pcrs", "--eif", str(image_path()), "--nonce", "hex:00", "--user-data", "u"]
    arguments += ["--at", "2020-02-03"]
    assert main(["attest", "forge", str(folder), *arguments]) == 2, "this user's root is younger"
    arguments += ["--ephemeral-authority"]
    assert main(["attest", "forge", str(folder), *arguments, "--public-key", "k"]) == 0
    assert {path.stem for path in folder.glob("*.bin")} == {"debug-pcrs", *GENUINE}
    manifest = json.loads((folder / "debug-pcrs.json").read_text())
    measured = measure(read_eif(image_path())).as_mapping()
    assert manifest["expect"] == {
        "pcrs": {str(index): measured[index].hex() for index in (0, 1, 2)},
        "nonce": "00",
        "user_data": "75",
        "public_key": "6b",
    }
    assert manifest["at"] == "2020-02-03T00:00:00+00:00"


def test_the_same_seed_writes_the_same(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert main(["attest", "forge", str(folder), "--seed", "7", "--only", "expired-leaf"]) == 0
    names = [path.name for path in folders[0].iterdir()]
    assert len(names) == 2 * (1 + len(GENUINE)) + 1
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


def test_the_names_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "forge", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(GENUINE) + len(FORGERIES)
    assert lines[0].split(maxsplit=2)[:2] == ["genuine", "accept:"]
    assert lines[len(GENUINE)].split(maxsplit=2)[:2] == ["expired-leaf", "refuse:"]


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    for arguments in ([str(tmp_path)], [str(tmp_path / "mine")], [str(tmp_path / "mine" / "x")], []):
        assert main(["attest", "forge", *arguments]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["attest", "forge", str(tmp_path / "new"), "--only", "nonsense"]) == 2
    assert "forge --list names them" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_could_not_be_accepted_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "forge", str(tmp_path / "f"), "--nonce", "n" * 1025]) == 2
    assert "would not be valid itself: field nonce: 1025 bytes" in capsys.readouterr().err
    for time in ("1900-01-01", "9999-12-31", "0001-01-02", "2200-01-01"):
        assert main(["attest", "forge", str(tmp_path / "f"), "--ephemeral-authority", "--at", time]) in (0, 2)
        err = capsys.readouterr().err
        assert len(err.splitlines()) <= 1
        if err:
            assert not (tmp_path / "f").exists()
    assert main(["attest", "forge", str(tmp_path / "g"), "--ephemeral-authority", "--at", "9999-12-31"]) == 2


def test_the_root_stays_the_same(capfdbinary: pytest.CaptureFixture[bytes], state: Path) -> None:
    assert main(["attest", "root"]) == 0
    pem = capfdbinary.readouterr().out
    certificate = x509.load_pem_x509_certificate(pem)
    assert b"PRIVATE" not in pem
    assert "not for production" in certificate.subject.rfc4514_string()
    assert main(["attest", "root", "--der"]) == 0
    assert capfdbinary.readouterr().out == certificate.public_bytes(Encoding.DER)
    assert (state / "enclavedbg/authority/authority.pem").stat().st_mode & 0o077 == 0


def test_the_root_of_a_seed(capfdbinary: pytest.CaptureFixture[bytes], state: Path) -> None:
    assert main(["attest", "root", "--seed", "7", "--der"]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out == seeded_authority(7).root()
    assert b"trust it in tests alone" in captured.err
    assert not state.exists()
