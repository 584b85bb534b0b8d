"""`attest explain` as a command: text, JSON, what to trust and expect, exit status."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclavedbg.cli import main
from enclavedbg.demo import image_path
from enclavedbg.eif import measure, read_eif
from enclavedbg.machine.clock import SEEDED_START
from enclavedbg.machine.enclave import seeded_authority
from enclavedbg.nsm.authority import Authority, default_folder
from tests.nsm.real import DEBUG_2024, SIGNED_2022
from tests.nsm.support import PCR0, START, entropy, make_module, shared_authority


def write(folder: Path, data: bytes, name: str = "doc.bin") -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.fixture
def ours(tmp_path: Path) -> list[str]:
    """The arguments for a document of ours, under its own root."""
    document = make_module().attest(nonce=b"a nonce", user_data=b"\x00\xff", public_key=b"key")
    return [write(tmp_path, document), "--root", write(tmp_path, shared_authority().root(), "root.der")]


def test_a_document_from_ec2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "explain", write(tmp_path, SIGNED_2022)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("document  COSE_Sign1 of 4690 bytes, untagged\n")
    assert "pass  pinned root              AWS's root for commercial regions" in out
    assert "n/a   still valid now          expired " in out
    assert out.endswith("\nvalid, under AWS's root for commercial regions\n")
    assert "\x1b" not in out


def test_the_time_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, SIGNED_2022)
    assert main(["attest", "explain", path, "--at", "now"]) == 1
    assert capsys.readouterr().out.endswith("\nNOT VALID; failed checks: certificate validity\n")
    assert main(["attest", "explain", path, "--at", "2022-09-15T18:00:00"]) == 0
    assert main(["attest", "explain", path, "--at", "2022-09-15T22:00:00+02:00"]) == 0
    assert main(["attest", "explain", path, "--at", "2022-09-15T22:00:00Z"]) == 1


def test_debug_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, DEBUG_2024)
    assert main(["attest", "explain", path]) == 1
    assert capsys.readouterr().out.endswith("\nNOT VALID; failed checks: not in debug mode\n")
    assert main(["attest", "explain", path, "--allow-debug"]) == 0


@pytest.mark.parametrize("form", [bytes, base64.b64encode, lambda data: data.hex().encode()])
def test_standard_input(form: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Piped:
        buffer = io.BytesIO(form(SIGNED_2022))  # type: ignore[operator]

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Piped())
    assert main(["attest", "explain"]) == 0


def test_expectations(ours: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    met = ["--nonce", "a nonce", "--user-data", "hex:00ff", "--public-key", "base64:a2V5"]
    met += ["--expect-pcr", f"0={PCR0.hex()}", "--expect-pcr", f"PCR9={'0' * 96}"]
    assert main(["attest", "explain", *ours, *met]) == 0
    assert main(["attest", "explain", *ours, "--nonce", "another", "--expect-pcr", f"0={'ab' * 48}"]) == 1
    out = capsys.readouterr().out
    assert "fail  expected nonce           7 bytes, not the 7 bytes expected" in out
    assert out.endswith("\nNOT VALID; failed checks: expected PCRs, expected nonce\n")


def test_a_value_that_was_meant_as_hex_or_base64(ours: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hexed, based = b"a nonce".hex(), base64.b64encode(b"a nonce").decode()
    for text, form in ((hexed, "hex"), (hexed.upper(), "hex"), (based, "base64")):
        assert main(["attest", "explain", *ours, "--nonce", text]) == 1
        assert f"warning: --nonce was taken as text; {form}:{text} would be equal" in capsys.readouterr().err
    assert main(["attest", "explain", *ours, "--nonce", "00ff"]) == 1
    assert capsys.readouterr().err == ""


def test_a_value_that_is_no_text_is_the_bytes_that_were_typed(ours: list[str], tmp_path: Path) -> None:
    document = write(tmp_path, make_module().attest(nonce=b"\xff\x00\xfe"), "bytes.bin")
    assert main(["attest", "explain", document, *ours[1:], "--nonce", "hex:ff00fe"]) == 0
    document = write(tmp_path, make_module().attest(nonce=b"\xff"), "byte.bin")
    assert main(["attest", "explain", document, *ours[1:], "--nonce", "\udcff"]) == 0
    assert main(["attest", "explain", document, *ours[1:], "--nonce", "\ud800"]) == 2


def test_values_from_files(ours: list[str], tmp_path: Path) -> None:
    assert main(["attest", "explain", *ours, "--nonce", "@" + write(tmp_path, b"a nonce", "nonce")]) == 0


def test_the_registers_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = measure(read_eif(image_path())).as_mapping()
    document = make_module(measurements=dict(measured)).attest()
    arguments = ["--root", write(tmp_path, shared_authority().root(), "root.der"), "--expect-eif", str(image_path())]
    assert main(["attest", "explain", write(tmp_path, document), *arguments]) == 0
    assert f"pass  expected PCRs            PCR0 is {measured[0].hex()}" in capsys.readouterr().out
    assert main(["attest", "explain", write(tmp_path, make_module().attest()), *arguments]) == 1
    assert main(["attest", "explain", write(tmp_path, document), *arguments, "--expect-pcr", f"0={'ab' * 48}"]) == 2
    none = write(tmp_path, b"no image", "no.eif")
    assert main(["attest", "explain", write(tmp_path, document), "--expect-eif", none]) == 2
    assert f"enclavedbg: {none}: the file has 8 bytes" in capsys.readouterr().err


def test_only_the_roots_given_are_trusted(ours: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, *root = ours
    assert main(["attest", "explain", document]) == 1
    assert "failed checks: pinned root\n" in capsys.readouterr().out
    assert main(["attest", "explain", write(tmp_path, SIGNED_2022, "ec2"), *root]) == 1
    pem = x509.load_der_x509_certificate(shared_authority().root()).public_bytes(Encoding.PEM)
    assert main(["attest", "explain", document, "--root", write(tmp_path, pem, "root.pem")]) == 0


def test_a_bundle_of_roots_and_the_root_of_a_seed(tmp_path: Path) -> None:
    bundle = b"".join(
        x509.load_der_x509_certificate(authority.root()).public_bytes(Encoding.PEM)
        for authority in (Authority(None, now=lambda: START, random_bytes=entropy(6)), shared_authority())
    )
    path = write(tmp_path, make_module().attest())
    assert main(["attest", "explain", path, "--root", write(tmp_path, bundle, "roots.pem")]) == 0
    seeded = make_module(authority=seeded_authority(7), now=lambda: SEEDED_START).attest()
    assert main(["attest", "explain", write(tmp_path, seeded, "seeded"), "--seed", "7"]) == 0
    assert main(["attest", "explain", write(tmp_path, seeded, "seeded"), "--seed", "8"]) == 1


def test_a_root_of_ours_that_is_not_trusted_is_named(ours: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "explain", ours[0]]) == 1
    assert "it is one of enclavedbg's own: of a run with --seed" in capsys.readouterr().out


def test_the_development_root_is_trusted_where_one_is_kept(tmp_path: Path, state: Path) -> None:
    folder = default_folder({"XDG_STATE_HOME": str(state)})
    authority = Authority(folder, now=lambda: START, random_bytes=entropy(5))
    path = write(tmp_path, make_module(authority=authority).attest())
    assert main(["attest", "explain", path]) == 0


def test_an_authority_that_cannot_be_read_is_a_warning(
    tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = default_folder({"XDG_STATE_HOME": str(state)})
    folder.mkdir(parents=True)
    (folder / "authority.pem").write_bytes(b"rubbish")
    (folder / "authority.pem").chmod(0o600)
    assert main(["attest", "explain", write(tmp_path, SIGNED_2022)]) == 0
    assert "enclavedbg: warning: the development root holds no certificate" in capsys.readouterr().err


def test_json(ours: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "explain", *ours, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["valid"], shown["document"]["nonce"]) == (True, b"a nonce".hex())
    assert all(len(certificate["serial"]) % 2 == 0 for certificate in shown["document"]["certificates"])
    assert {"cbor", "signature", "module_id"} <= {check["check"] for check in shown["checks"]}
    assert main(["attest", "explain", *ours, "--json", "--nonce", "x"]) == 1
    failed = [c["check"] for c in json.loads(capsys.readouterr().out)["checks"] if c["status"] == "fail"]
    assert failed == ["nonce"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no document: the input is empty"),
        (b"hello, world", "not a document"),
        (b"\x84\x01\x02\x03\x04", "is no attestation document (COSE_Sign1 structure"),
        (b"\xff" * 100, "is no attestation document (well-formed CBOR"),
        (bytes(2 << 20), "has more than 1048576 bytes"),
    ],
)
def test_what_cannot_be_read(data: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, data)
    assert main(["attest", "explain", path]) == 2
    err = capsys.readouterr().err
    assert message in err and path in err
    assert len(err.splitlines()) == 1


def test_json_of_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "explain", write(tmp_path, b"\xff" * 9), "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert (shown["valid"], shown["readable"], shown["document"]) == (False, False, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-file"],
        ["--root", "no-such-file"],
        ["--expect-eif", "no-such-file"],
        ["--at", "soon"],
        ["--at", "9999-12-31T23:59:59-01:00"],
        ["--at", "0001-01-01T00:00:00+01:00"],
        ["--expect-pcr", "0=12"],
        ["--expect-pcr", f"32={'00' * 48}"],
        ["--nonce", "hex:1"],
        ["--nonce", "@no-such-file"],
        ["--colour"],
    ],
)
def test_misuse(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = [] if arguments == ["no-such-file"] else [write(tmp_path, SIGNED_2022)]
    assert main(["attest", "explain", *document, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1


def test_nothing_to_read_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["attest", "explain"]) == 2
    assert "no document; name a file" in capsys.readouterr().err
