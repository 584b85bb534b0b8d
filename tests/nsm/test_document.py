"""Documents as bytes: what is written, and which damage is refused for which reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.nsm.findings import Check, DocumentError, Status
from enclavedbg.nsm.reading import decode_document, read_document
from tests.nsm.support import MODULE_ID, PCR0, START, make_module

DOCUMENT = make_module().attest(user_data=b"user", nonce=b"", public_key=b"key")
Payload = dict[Any, Any]


def payload_of(document: bytes) -> Payload:
    payload: Payload = cbor2.loads(cbor2.loads(document)[2])
    return payload


def rewrapped(payload: object, *, document: bytes = DOCUMENT) -> bytes:
    """The document with another payload; its signature no longer fits."""
    item = cbor2.loads(document)
    item[2] = payload if isinstance(payload, bytes) else cbor2.dumps(payload)
    return cbor2.dumps(item)


def changed(change: Callable[[Payload], object]) -> bytes:
    payload = payload_of(DOCUMENT)
    change(payload)
    return rewrapped(payload)


def failed_check(document: bytes) -> Check:
    with pytest.raises(DocumentError) as caught:
        decode_document(document)
    assert "\n" not in str(caught.value)
    return caught.value.check


def test_bytes_are_those_of_a_real_module() -> None:
    assert DOCUMENT[:8].hex() == "8444a1013822a059"
    assert DOCUMENT[-98:-96].hex() == "5860"
    payload = payload_of(DOCUMENT)
    assert list(payload) == [
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
        "public_key",
        "user_data",
        "nonce",
    ]
    raw = cbor2.loads(DOCUMENT)[2]
    assert raw[0] == 0xA9
    assert raw.partition(b"itimestamp")[2][0] == 0x1B
    assert raw.partition(b"dpcrs")[2][0] == 0xB0
    assert raw.partition(b"hcabundle")[2][0] == 0x84
    assert payload["timestamp"] == 1772600767890
    assert len(DOCUMENT) < 0x3000


def test_absent_fields_are_null() -> None:
    payload = payload_of(make_module().attest())
    assert [payload[name] for name in ("public_key", "user_data", "nonce")] == [None] * 3


def test_signature_checked_by_hand() -> None:
    """Not by the code under test: RFC 9052's structure written out, and the leaf's key."""
    protected, _, payload, signature = cbor2.loads(DOCUMENT)
    length = len(payload).to_bytes(2, "big")
    covered = b"\x84\x6aSignature1\x44\xa1\x01\x38\x22\x40\x59" + length + payload
    assert protected == b"\xa1\x01\x38\x22"
    key = x509.load_der_x509_certificate(payload_of(DOCUMENT)["certificate"]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    key.verify(encode_dss_signature(r, s), covered, ec.ECDSA(hashes.SHA384()))


def test_decoded_document() -> None:
    document = decode_document(DOCUMENT)
    assert document.module_id == MODULE_ID
    assert document.timestamp == START - timedelta(microseconds=START.microsecond % 1000)
    assert list(document.pcrs) == list(range(16))
    assert document.pcrs[0] == PCR0
    assert (document.user_data, document.nonce, document.public_key) == (b"user", b"", b"key")
    assert not document.debug_mode
    summaries = document.certificates()
    assert len(summaries) == 5
    assert summaries[0].issuer == summaries[0].subject
    assert MODULE_ID in summaries[-1].subject


def test_forms_that_real_modules_and_other_tools_write() -> None:
    plain = decode_document(DOCUMENT)
    assert decode_document(b"\xd2" + DOCUMENT) == plain
    payload = payload_of(DOCUMENT)
    indefinite = b"\xbf" + b"".join(cbor2.dumps(k) + cbor2.dumps(v) for k, v in payload.items()) + b"\xff"
    assert decode_document(rewrapped(indefinite)).pcrs == plain.pcrs
    for name in ("public_key", "user_data", "nonce"):
        del payload[name]
    absent = decode_document(rewrapped(payload))
    assert (absent.public_key, absent.user_data, absent.nonce) == (None, None, None)
    assert decode_document(changed(lambda p: p.update(extra=1))).module_id == MODULE_ID


@pytest.mark.parametrize(
    "document",
    [
        cbor2.dumps([b"", {}, b""]),
        cbor2.dumps({}),
        b"\xd1" + DOCUMENT,
        b"\xd2\xd2" + DOCUMENT,
        cbor2.dumps(["", {}, b"x", bytes(96)]),
        cbor2.dumps([b"", [], b"x", bytes(96)]),
        cbor2.dumps([b"", {}, b"", bytes(96)]),
        cbor2.dumps([b"", {}, None, bytes(96)]),
        cbor2.dumps([b"", {}, bytes(16385), bytes(96)]),
        cbor2.dumps([b"", {}, b"x", bytes(95)]),
        bytes(40_000),
    ],
)
def test_structure(document: bytes) -> None:
    reading = read_document(document)
    assert Check.STRUCTURE in {f.check for f in reading.findings if f.status is Status.FAIL}
    with pytest.raises(DocumentError):
        reading.document()


def test_bytes_that_are_not_one_item() -> None:
    assert failed_check(b"") is Check.CBOR
    assert failed_check(DOCUMENT[:-1]) is Check.CBOR
    assert failed_check(rewrapped(b"\xff")) is Check.CBOR
    assert failed_check(DOCUMENT + b"\x00") is Check.TRAILING_BYTES
    assert failed_check(rewrapped(cbor2.loads(DOCUMENT)[2] + b"\x00")) is Check.TRAILING_BYTES


def test_what_can_be_read_is_read() -> None:
    """A fault is one line, and the rest is there all the same."""
    raw = cbor2.loads(DOCUMENT)[2]
    twice = b"\xaa" + raw[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"other") + b"\x00"
    reading = read_document(rewrapped(twice) + b"\x00\x00")
    failures = [(f.check, f.reason) for f in reading.findings if f.status is Status.FAIL]
    assert [check for check, _ in failures] == [Check.TRAILING_BYTES, Check.TRAILING_BYTES, Check.DUPLICATE_KEYS]
    assert "the document: 2 bytes follow" in failures[0][1]
    assert "the payload: the map key 'nonce' occurs twice" in failures[2][1]
    assert reading.readable
    assert reading.values["nonce"] == b"", "the first of two counts"
    assert reading.values["pcrs"][0] == PCR0
    wrong = read_document(changed(lambda p: p.update(timestamp="now", nonce=5, extra=1)))
    assert len([f for f in wrong.findings if f.check is Check.FIELDS]) == 2
    assert {"timestamp", "nonce"}.isdisjoint(wrong.values)
    extra = read_document(changed(lambda p: p.update(extra=1)))
    assert any("unknown and ignored: 'extra'" in f.reason for f in extra.findings)


def test_a_label_in_both_headers() -> None:
    item = cbor2.loads(DOCUMENT)
    item[1] = {1: -7, "x": 0}
    reasons = [f.reason for f in read_document(cbor2.dumps(item)).findings if f.status is Status.FAIL]
    assert reasons == ["the label 1 stands in both headers"]
    item[1] = {"x": 0}
    assert decode_document(cbor2.dumps(item)) == decode_document(DOCUMENT)


def test_document_of_an_instance_is_not_an_enclaves() -> None:
    """NitroTPM documents come under the same root."""
    document = changed(lambda p: p.update(nitrotpm_pcrs=p.pop("pcrs")))
    reasons = [f.reason for f in read_document(document).findings if f.status is Status.FAIL]
    assert "NitroTPM" in reasons[0]
    assert reasons[1] == "field pcrs is missing"


def test_bytes_that_are_no_document_are_not_readable() -> None:
    for data in (b"", b"\x84", b"hello", cbor2.dumps({}), cbor2.dumps([b"", {}, b"\x01", bytes(96)])):
        assert not read_document(data).readable


def test_duplicate_keys() -> None:
    raw = cbor2.loads(DOCUMENT)[2]
    assert raw[0] == 0xA9
    twice = b"\xaa" + raw[1:] + cbor2.dumps("nonce") + cbor2.dumps(b"other")
    assert failed_check(rewrapped(twice)) is Check.DUPLICATE_KEYS


@pytest.mark.parametrize("header", [{}, {1: -7}, {1: -36}, {1: -35, 4: b"kid"}, {2: -35}, [], {1: "-35"}])
def test_protected_header(header: object) -> None:
    item = cbor2.loads(DOCUMENT)
    item[0] = cbor2.dumps(header)
    assert failed_check(cbor2.dumps(item)) is Check.PROTECTED_HEADER


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("module_id", ""),
        ("module_id", 5),
        ("digest", "SHA256"),
        ("digest", b"SHA384"),
        ("timestamp", 0),
        ("timestamp", -1),
        ("timestamp", True),
        ("timestamp", "now"),
        ("timestamp", 2**63),
        ("pcrs", {}),
        ("pcrs", []),
        ("pcrs", {32: bytes(48)}),
        ("pcrs", {-1: bytes(48)}),
        ("pcrs", {"0": bytes(48)}),
        ("pcrs", {0: bytes(47)}),
        ("pcrs", {0: "x" * 48}),
        ("certificate", None),
        ("certificate", b""),
        ("certificate", bytes(1025)),
        ("cabundle", []),
        ("cabundle", b"x"),
        ("cabundle", [b""]),
        ("cabundle", [bytes(1025)]),
        ("cabundle", ["x"]),
        ("public_key", b""),
        ("public_key", bytes(1025)),
        ("user_data", bytes(1025)),
        ("nonce", "text"),
        ("nonce", bytes(1025)),
    ],
)
def test_fields(name: str, value: object) -> None:
    document = changed(lambda payload: payload.__setitem__(name, value))
    assert failed_check(document) is Check.FIELDS
    with pytest.raises(DocumentError, match=f"field {name}:"):
        decode_document(document)


@pytest.mark.parametrize("name", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
def test_missing_fields(name: str) -> None:
    with pytest.raises(DocumentError, match=f"field {name} is missing"):
        decode_document(changed(lambda payload: payload.pop(name)))


def test_payload_that_is_not_a_map() -> None:
    assert failed_check(rewrapped([1])) is Check.FIELDS


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        decode_document(data)


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
@settings(max_examples=200)
def test_any_flipped_byte_gives_a_document_or_a_document_error(at: int, flip: int) -> None:
    data = bytearray(DOCUMENT)
    data[at] ^= flip
    try:
        decode_document(bytes(data))
    except DocumentError as error:
        assert "\n" not in str(error)
