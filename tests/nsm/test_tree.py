"""What a document says, as a tree for people and as data for JSON."""

from __future__ import annotations

import json

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.nsm.reading import read_document
from enclavedbg.nsm.record import report_record
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.tree import document_tree, tree_lines
from enclavedbg.nsm.verify import verify
from tests.nsm.real import DEBUG_2024, SIGNED_2022
from tests.nsm.support import MODULE_ID, PCR0, make_module, shared_authority


def text(document: bytes, *, ascii_only: bool = False) -> str:
    return "\n".join(
        f"{guides}{name}  {value}"
        for guides, name, value in tree_lines(document_tree(read_document(document)), ascii_only=ascii_only)
    )


def test_a_real_document() -> None:
    shown = text(SIGNED_2022)
    for line in (
        "document  COSE_Sign1 of 4690 bytes, untagged",
        "├─ protected header  {1: -35} (ES384)",
        "│  ├─ timestamp  1663263808848 (2022-09-15 17:43:28.848 UTC)",
        "│  │  └─ zero  PCR5-7, 9-15",
        "│  │  │  ├─ key  secp384r1, CA, digitalSignature, keyCertSign, cRLSign",
        "│  ├─ public_key  32 bytes: no key in DER (SubjectPublicKeyInfo)",
        "│     └─ hex  47b5fba6979cbf7e567e2629",
    ):
        assert line in shown.splitlines()
    assert '250 bytes: "{"func_checksum"' in shown
    assert text(SIGNED_2022, ascii_only=True).isascii()
    assert "0x03e0  " in text(DEBUG_2024), "a value is shown to its end"


def test_public_keys() -> None:
    for key, shown in (
        (rsa.generate_private_key(65537, 2048), "RSA, 2048 bits"),
        (ec.generate_private_key(ec.SECP256R1()), "elliptic curve secp256r1"),
    ):
        der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert f"public_key  {len(der)} bytes: {shown}" in text(make_module().attest(public_key=der))


def rewritten(**changes: object) -> bytes:
    item = cbor2.loads(make_module().attest())
    item[2] = cbor2.dumps(cbor2.loads(item[2]) | changes)
    return cbor2.dumps(item)


def test_what_cannot_be_understood_is_shown_as_it_is() -> None:
    shown = text(rewritten(nonce=[1, None, True, 2.5, "t"], certificate=b"x", extra={"a": b"\1" * 100}))
    assert 'nonce  [1, null, true, 2.5, "t"]' in shown
    assert "certificate  1 bytes, the leaf, whose key signed this document: a certificate that cannot be read" in shown
    assert f"extra  {{\"a\": h'{'01' * 64}...' (100 bytes)}}" in shown
    assert text(b"rubbish") == "document  7 bytes, not an attestation document"


def test_nothing_in_a_document_steers_the_terminal() -> None:
    escape = "\x1b[31m\r\n"
    shown = text(rewritten(module_id=escape, user_data=escape.encode(), **{escape: escape}))
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\x1b[31m\\r\\n" in shown


def test_record() -> None:
    report = verify(make_module().attest(nonce=b"n"), roots=[Root.of(shared_authority().root(), "ours")], nonce=b"n")
    record = json.loads(json.dumps(report_record(report)))
    assert (record["valid"], record["readable"], record["root"]["name"]) == (True, True, "ours")
    assert record["document"]["module_id"] == MODULE_ID
    assert record["document"]["pcrs"]["0"] == PCR0.hex()
    assert record["document"]["nonce"] == "6e"
    assert len(record["document"]["certificates"]) == 5
    assert {check["status"] for check in record["checks"]} == {"pass", "n/a"}
    assert report_record(verify(b"rubbish"))["document"] is None


@given(
    st.dictionaries(
        st.sampled_from(["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "nonce", "user_data"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary(max_size=60) | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(-1, 40), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
@settings(deadline=None, max_examples=150)
def test_any_fields_can_be_shown(changes: dict[str, object]) -> None:
    document = rewritten(**changes)
    assert all(c.isprintable() or c == "\n" for c in text(document))
    json.dumps(report_record(verify(document)))
