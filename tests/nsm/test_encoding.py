"""Documents and values as people hand them around."""

from __future__ import annotations

import base64

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import NsmError
from enclavedbg.nsm.encoding import document_bytes, value_bytes
from tests.nsm.real import SIGNED_2022


@pytest.mark.parametrize(
    "form",
    [
        SIGNED_2022,
        SIGNED_2022.hex().encode(),
        b"0x" + SIGNED_2022.hex().upper().encode() + b"\n",
        base64.b64encode(SIGNED_2022),
        base64.b64encode(SIGNED_2022).rstrip(b"="),
        base64.urlsafe_b64encode(SIGNED_2022),
        base64.encodebytes(SIGNED_2022).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + base64.b64encode(SIGNED_2022) + b"\r\n",
        base64.b64encode(SIGNED_2022).decode().encode("utf-16"),
        b"\xfe\xff" + SIGNED_2022.hex().encode("utf-16-be"),
        cbor2.dumps({"Attestation": {"document": SIGNED_2022}}),
        base64.b64encode(cbor2.dumps({"Attestation": {"document": SIGNED_2022}})),
    ],
)
def test_forms_of_a_document(form: bytes) -> None:
    assert document_bytes(form) == SIGNED_2022


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, world", "expected COSE_Sign1"),
        (b"abcde", "expected COSE_Sign1"),
        (SIGNED_2022.hex()[:-1].encode(), "in hex that is damaged: its last digit is missing"),
        (SIGNED_2022.hex().replace("a", "g", 1).encode(), "in hex that is damaged: its character 5 is 'g'"),
        (base64.b64encode(base64.b64encode(SIGNED_2022)), "holds base64 or hex again"),
        (base64.b64encode(SIGNED_2022.hex().encode()), "holds base64 or hex again"),
        (b'{"Recipient": {"AttestationDocument": "hEShATgi"}}', "JSON, not a document: give what is in its field"),
        (b'"hEShATgi"', "JSON, not a document"),
        (b"\n [132, 68]", "JSON, not a document"),
        ('{"a": "\u00fc"}'.encode(), "JSON, not a document"),
        (cbor2.dumps({"Error": "InternalError"}), "the secure module's answer is the error 'InternalError'"),
    ],
)
def test_what_is_no_document(data: bytes, message: str) -> None:
    with pytest.raises(NsmError, match=message):
        document_bytes(data)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda data: b"\xff\xfe" + data))
def test_any_bytes_give_bytes_or_an_error(data: bytes) -> None:
    try:
        assert isinstance(document_bytes(data), bytes)
    except NsmError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("abc", b"abc"),
        ("", b""),
        ("hex:00ff", b"\x00\xff"),
        ("0x00FF", b"\x00\xff"),
        ("base64:AP8=", b"\x00\xff"),
        ("text:hex:00", b"hex:00"),
        ("a:b", b"a:b"),
        ("\u00e9", b"\xc3\xa9"),
    ],
)
def test_values(text: str, value: bytes) -> None:
    assert value_bytes(text) == value


@pytest.mark.parametrize("text", ["hex:0", "0xzz", "base64:A", "base64:@@@@"])
def test_values_that_are_not_what_they_say(text: str) -> None:
    with pytest.raises(NsmError, match="takes it as it stands"):
        value_bytes(text)
