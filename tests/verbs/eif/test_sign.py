"""`eif sign` as a command: files, passphrases, warnings, and what is left when it fails."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from enclavedbg.cli import main
from enclavedbg.eif import read_eif, write_eif
from tests.eif.signing import certificate_pem, key_pem

KEY = ec.generate_private_key(ec.SECP256R1())
IMAGE = write_eif(kernel=b"K", cmdline=b"c", ramdisks=[b"R"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.eif").write_bytes(IMAGE)
    (tmp_path / "key").write_bytes(key_pem(KEY))
    (tmp_path / "cert").write_bytes(certificate_pem(KEY, since=datetime.now(UTC) - timedelta(days=1)))
    return tmp_path


def sign(folder: Path, *more: str, key: str = "key", certificate: str = "cert") -> int:
    options = ["--key", str(folder / key), "--certificate", str(folder / certificate)]
    return main(["eif", "sign", str(folder / "a.eif"), *options, *more])


def test_in_place_and_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(folder) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"signed {folder}/a.eif: CN=signer") and "\nPCR8: " in out and err == ""
    assert read_eif(folder / "a.eif").certificate is not None
    assert sign(folder) == 0
    assert capsys.readouterr().out.startswith("replaced the signature of")
    assert sorted(path.name for path in folder.iterdir()) == ["a.eif", "cert", "key"]


def test_to_another_file_and_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sign(folder, "--json", "--output", str(folder / "b.eif")) == 0
    assert list(json.loads(capsys.readouterr().out)["Measurements"]) == [
        "HashAlgorithm",
        "PCR0",
        "PCR1",
        "PCR2",
        "PCR8",
    ]
    assert (folder / "a.eif").read_bytes() == IMAGE and read_eif(folder / "b.eif").certificate is not None


def test_a_certificate_out_of_its_time_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for since, word in ((timedelta(days=-90), "ended"), (timedelta(days=90), "begins")):
        (folder / "cert").write_bytes(certificate_pem(KEY, since=datetime.now(UTC) + since))
        assert sign(folder) == 0
        err = capsys.readouterr().err
        assert err.startswith(f"enclavedbg: warning: the certificate's time {word}") and err.count("\n") == 1


def test_passphrase(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "key").write_bytes(key_pem(KEY, passphrase=b"two words"))
    (folder / "word").write_bytes(b"two words\n")
    assert sign(folder) == 2
    assert "--passphrase-file" in capsys.readouterr().err
    assert sign(folder, "--passphrase-file", str(folder / "word")) == 0


def test_failures_leave_everything_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.eif").write_bytes(IMAGE[:-1])
    before = sorted(folder.iterdir())
    for more in ([], ["--output", str(folder / "b.eif")], ["--output", str(folder)]):
        assert sign(folder, *more) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
    for key, certificate in (("none", "cert"), ("key", "none"), ("cert", "cert"), ("key", "key"), ("a.eif", "cert")):
        assert sign(folder, key=key, certificate=certificate) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(folder.iterdir()) == before and (folder / "a.eif").read_bytes() == IMAGE[:-1]


def test_kms_and_endless_files_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, certificate = str(folder / "a.eif"), str(folder / "cert")
    for key, message in (("arn:aws:kms:eu-west-1:123456789012:key/k", "KMS"), ("/dev/zero", "more than")):
        assert main(["eif", "sign", image, "--key", key, "--certificate", certificate]) == 2
        assert message in capsys.readouterr().err
