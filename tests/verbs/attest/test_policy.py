"""`attest policy` as a command: text, JSON, exit status, standard input."""

from __future__ import annotations

import base64
import io
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclavedbg.cli import main
from tests.nsm.support import PCR0, PCR1, make_module

ROLE = "arn:aws:iam::111122223333:role/data-processing"
ROOT = {
    "Sid": "Enable IAM User Permissions",
    "Effect": "Allow",
    "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
    "Action": "kms:*",
    "Resource": "*",
}
SIGNED = (
    "note: KMS wants the document signed under AWS's root; that is not checked here, enclavedbg attest explain does"
)


@cache
def public_key(kind: str = "rsa") -> bytes:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP384R1())
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def enclave(condition: dict[str, object], **changes: object) -> dict[str, object]:
    return {
        "Sid": "Enclave",
        "Effect": "Allow",
        "Principal": {"AWS": ROLE},
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Condition": condition,
        **changes,
    }


def image(value: str = PCR0.hex(), operator: str = "StringEqualsIgnoreCase") -> dict[str, object]:
    return enclave({operator: {"kms:RecipientAttestation:ImageSha384": value}})


class Files:
    """A policy and a document in a folder, and the command on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.write(image())
        self.attest(public_key=public_key())

    def write(self, *statements: dict[str, object]) -> str:
        text = json.dumps({"Version": "2012-10-17", "Statement": statements})
        (self.folder / "policy.json").write_text(text)
        return text

    def attest(self, *, debug_mode: bool = False, **fields: Any) -> bytes:
        document = make_module(debug_mode=debug_mode).attest(**fields)
        (self.folder / "document").write_bytes(document)
        return document

    def run(self, *arguments: str, status: int = 0, files: tuple[str, str] = ("policy.json", "document")) -> str:
        paths = [name if name == "-" else str(self.folder / name) for name in files]
        assert main(["attest", "policy", *paths, *arguments]) == status
        out, err = self.capsys.readouterr()
        if status == 2:
            assert out == "" and err.startswith("enclavedbg: ") and err.count("\n") == 1
            return err
        assert err == ""
        return out


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


def test_allowed(files: Files) -> None:
    assert files.run("--principal", ROLE).splitlines() == [
        "allowed: statement 'Enclave' allows kms:Decrypt to this enclave",
        "",
        "statement 1 'Enclave' (Allow): allows it",
        "  holds: StringEqualsIgnoreCase kms:RecipientAttestation:ImageSha384",
        "",
        SIGNED,
        "note: only the key policy is seen: other policies may deny, and a caller from another account than the key's "
        "needs an IAM policy there too",
    ]


def test_not_allowed_with_both_values_below_each_other(files: Files) -> None:
    files.write(enclave({"StringEquals": {"kms:RecipientAttestation:PCR0": ["cd" * 48, "0x" + PCR0.hex()]}}))
    lines = files.run(status=1).splitlines()
    assert lines[0] == "not allowed: statement 'Enclave' does not hold for this enclave (PCR0)"
    assert lines[3:8] == [
        "  fails: StringEquals kms:RecipientAttestation:PCR0: the values differ",
        f"    policy    {'cd' * 48}",
        f"    policy    0x{PCR0.hex()}",
        "              ^ equal but for 0x: KMS gives bare hexadecimal digits",
        f"    document  {PCR0.hex()}",
    ]
    assert f"note: without --principal ARN, the caller is taken to be {ROLE}, the only role or user named" in lines


def test_debug_mode(files: Files) -> None:
    files.attest(debug_mode=True, public_key=public_key())
    shown = files.run(status=1)
    assert shown.startswith(
        "not allowed: statement 'Enclave' does not hold for this enclave (ImageSha384; the enclave ran"
    )
    assert f"    policy    {PCR0.hex()}\n    document  {'00' * 48}\n" in shown
    assert "note: the document is of a debug-mode enclave" in shown
    files.write(image("00" * 48))
    assert f"finding debug-mode: statement 'Enclave' allows kms:Decrypt to {ROLE} in debug-mode" in files.run(status=0)


def test_undecided_and_the_default_statement(files: Files) -> None:
    files.write(ROOT, image("cd" * 48))
    shown = files.run(status=1)
    assert shown.startswith(
        "undecided: statement 'Enclave' does not hold for this enclave (ImageSha384), and statement"
    )
    assert "(Allow): may allow it: the IAM policies of account 111122223333 decide, which are not seen here" in shown
    assert "finding without-attestation: statement 'Enable IAM User Permissions' lets the IAM policies of" in shown
    assert "\n  cure: leave kms:Decrypt out of it" in shown


def test_context_from_the_command_line(files: Files) -> None:
    files.write(enclave({"StringEquals": {"kms:RecipientAttestation:PCR1": PCR1.hex(), "aws:SourceVpce": "vpce-1"}}))
    assert "; give --context aws:SourceVpce=VALUE, or aws:SourceVpce= if it has none" in files.run(status=1)
    files.run("--context", "aws:sourcevpce=vpce-1")
    shown = files.run("--context", "aws:SourceVpce=vpce-2", status=1)
    assert "    policy    vpce-1\n    request   vpce-2\n" in shown
    assert "the request has no such key" in files.run("--context", "aws:SourceVpce=", status=1)
    files.write(enclave({"ForAllValues:StringEquals": {"a:b": ["1=2", "3"]}}))
    files.run("--context", "a:b=1=2", "--context", "A:b=3")
    files.run("--context", "a:b=1=2", "--context", "a:b=4", status=1)
    assert "expected KEY=VALUE" in files.run("--context", "aws:SourceVpce", status=2)


def test_a_deny_shows_what_it_found(files: Files) -> None:
    guard = image(PCR0.hex().replace("10", "1A"), "StringNotEquals")
    files.write(image(), {**guard, "Effect": "Deny", "Principal": "*", "Sid": "Guard"})
    shown = files.run(status=1)
    assert shown.startswith("not allowed: statement 'Guard' denies kms:Decrypt to this enclave (ImageSha384)\n")
    assert f"    policy    {'1A' * 48}\n    document  {PCR0.hex()}\n" in shown


def test_statements_without_a_sid(files: Files) -> None:
    files.write({**ROOT, "Action": "kms:Put*"}, {**image(), "Sid": ""})
    lines = files.run().splitlines()
    assert lines[0] == "allowed: statement 2 allows kms:Decrypt to this enclave"
    assert lines[2].endswith("(Allow): not about this: it is about kms:Put*")
    assert lines[4] == "statement 2 (Allow): allows it"


def test_notes_about_the_action(files: Files) -> None:
    assert "note: kms:Sign takes no attestation document; these do: Decrypt, " in files.run(
        "--action", "Sign", status=1
    )
    assert "note: kms:GenerateRandom uses no key" in files.run("--action", "kms:GenerateRandom", status=1)


def test_notes_about_the_public_key(files: Files) -> None:
    assert "public_key" not in files.run()
    files.attest()
    assert "note: the document has no public_key: KMS refuses it" in files.run()
    for other in (public_key("ec"), b"-----BEGIN PUBLIC KEY-----", b"\x30\x82"):
        files.attest(public_key=other)
        assert "note: the public_key is no RSA key in DER" in files.run()


def test_text_from_the_policy_cannot_steer_the_terminal(files: Files) -> None:
    evil = "\x1b[2J\x9b\u202e\n"
    files.write(
        {**ROOT, "Sid": evil, "Action": ["kms:*", f"{evil}:x"], "Principal": {"AWS": ["111122223333", evil]}},
        enclave({"StringEquals": {f"kms:RecipientAttestation:{evil}": evil, evil: "\ud800"}}, Action=f"a:{evil}"),
        enclave({"StringEquals": {f"kms:RecipientAttestation:{evil}": evil, evil: "\ud800"}}, Principal="*"),
    )
    for arguments in ((), ("--json",)):
        shown = files.run(*arguments, status=1)
        assert all(character.isprintable() or character == "\n" for character in shown)
        assert "\ud800" not in shown


def test_json(files: Files) -> None:
    files.write(ROOT, image("cd" * 48), image())
    shown = json.loads(files.run("--json", "--principal", ROLE))
    assert (shown["outcome"], shown["action"], shown["principal"]) == ("allowed", "kms:Decrypt", ROLE)
    assert (shown["because"], shown["debug_mode"]) == ([3], False)
    assert [statement["holds"] for statement in shown["statements"]] == ["unknown", "no", "yes"]
    assert shown["statements"][0]["account"] == "111122223333"
    (condition,) = shown["statements"][1]["conditions"]
    assert (condition["values"], condition["found"], condition["holds"]) == (["cd" * 48], [PCR0.hex()], "no")
    (finding,) = shown["findings"]
    assert (finding["kind"], finding["statement"], finding["certain"]) == ("without-attestation", 1, True)
    assert any("AWS's root" in note for note in shown["notes"])


def test_forms_of_input(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, document = files.write(image()), files.attest(public_key=public_key())
    (files.folder / "answer.json").write_text(json.dumps({"Policy": policy, "PolicyName": "default"}, indent=4))
    (files.folder / "document.b64").write_bytes(base64.encodebytes(document))
    assert files.run(files=("answer.json", "document.b64")).startswith("allowed: ")
    for data, names in ((policy.encode(), ("-", "document")), (document, ("policy.json", "-"))):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert files.run(files=names).startswith("allowed: ")
    assert "cannot both come from standard input" in files.run(files=("-", "-"), status=2)


def test_unreadable_input_is_one_line_and_status_2(files: Files) -> None:
    assert "no/such" in files.run(files=("no/such", "document"), status=2)
    assert "no/such" in files.run(files=("policy.json", "no/such"), status=2)
    assert "document: not text (byte 0)" in files.run(files=("document", "document"), status=2)
    assert "policy.json: " in files.run(files=("policy.json", "policy.json"), status=2)
    (files.folder / "broken").write_bytes(files.attest()[:-7])
    assert "broken: " in files.run(files=("policy.json", "broken"), status=2)
    (files.folder / "twice.json").write_text('{"Statement":[{"Sid":"a","Sid":"b"}]}')
    assert "twice.json: Statement[0]: 'Sid' is there twice" in files.run(files=("twice.json", "document"), status=2)
    (files.folder / "huge.json").write_text(" " * (1 << 20) + " ")
    files.run(files=("huge.json", "document"), status=2)
    assert "'bob' is no principal" in files.run("--principal", "bob", status=2)
    assert "is no action" in files.run("--action", "kms:*", status=2)
    assert "comes from the document" in files.run("--context", "kms:RecipientAttestation:PCR0=00", status=2)
