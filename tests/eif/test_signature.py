"""Signature sections: PCR8, verification, and hostile CBOR."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import measure, read_eif, write_eif
from enclavedbg.eif.signature import EifSignature, read_signature, verify_signature
from enclavedbg.errors import EifError

NOW = datetime(2025, 1, 1, tzinfo=UTC)
CURVES: list[tuple[ec.EllipticCurve, int, hashes.HashAlgorithm, int]] = [
    (ec.SECP256R1(), -7, hashes.SHA256(), 32),
    (ec.SECP384R1(), -35, hashes.SHA384(), 48),
    (ec.SECP521R1(), -36, hashes.SHA512(), 66),
]
PARTS = {"kernel": b"KERNEL", "cmdline": b"c", "ramdisks": [b"R"]}
PCR0 = measure(read_eif(write_eif(kernel=b"KERNEL", cmdline=b"c", ramdisks=[b"R"]))).pcr0
KEY = ec.generate_private_key(ec.SECP384R1())


def certificate(key: ec.EllipticCurvePrivateKey, *, since: datetime = NOW) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signer")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, since, since + timedelta(days=30))
    return builder.sign(key, hashes.SHA256())


CERTIFICATE = certificate(KEY)


def cose(key: ec.EllipticCurvePrivateKey, which: int, pcr0: bytes, *, index: int = 0, alg: int | None = None) -> bytes:
    _, algorithm, digest, width = CURVES[which]
    protected = cbor2.dumps({1: algorithm if alg is None else alg})
    payload = cbor2.dumps({"register_index": index, "register_value": list(pcr0)})
    der = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]), ec.ECDSA(digest))
    raw = b"".join(number.to_bytes(width, "big") for number in utils.decode_dss_signature(der))
    return cbor2.dumps([protected, {}, payload, raw])


def section(pem: bytes, signature: bytes) -> bytes:
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(signature)}])


PEM = CERTIFICATE.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("which", range(3))
def test_signed_image(which: int) -> None:
    key = ec.generate_private_key(CURVES[which][0])
    own = certificate(key)
    pem = b"some text before\n" + own.public_bytes(Encoding.PEM) + b"\n"
    data = section(pem, cose(key, which, PCR0))
    image = read_eif(write_eif(kernel=b"KERNEL", cmdline=b"c", ramdisks=[b"R"], signature=data))
    values = measure(image)
    der = own.public_bytes(Encoding.DER)
    assert (image.certificate, image.signature, values.pcr0) == (der, data, PCR0)
    assert values.pcr8 == hashlib.sha384(bytes(48) + hashlib.sha384(der).digest()).digest()
    assert values.as_mapping()[8] == values.pcr8
    verify_signature(read_signature(data), values.pcr0, at=NOW)


def test_tagged_cose_is_accepted() -> None:
    tagged = cbor2.dumps(cbor2.CBORTag(18, cbor2.loads(cose(KEY, 1, PCR0))))
    verify_signature(read_signature(section(PEM, tagged)), PCR0)


def test_payload_encoding_of_the_reference() -> None:
    payload = cbor2.dumps({"register_index": 0, "register_value": list(range(48))})
    head = "a26e72656769737465725f696e646578006e72656769737465725f76616c75659830"
    small, large = bytes(range(24)), b"".join(bytes((0x18, n)) for n in range(24, 48))
    assert payload == bytes.fromhex(head) + small + large


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (cose(KEY, 1, bytes(48)), "for another image"),
        (cose(KEY, 1, PCR0, index=1), "for another image"),
        (cose(ec.generate_private_key(ec.SECP384R1()), 1, PCR0), "not made with the key"),
        (cose(KEY, 1, PCR0, alg=-7), "algorithm is not -35"),
        (cbor2.dumps([b"\xa1\x01\x38\x22", {}, b"", bytes(95)]), "95 bytes, its key makes 96"),
        (cbor2.dumps([b"\xa1\x01\x38\x22", {}, b"", bytes(96)]), "not made with the key"),
        (cbor2.dumps([b"\xff", {}, b"", b""]), "protected header is not CBOR"),
        (cbor2.dumps(cbor2.CBORTag(17, [b"", {}, b"", b""])), "not an array of header"),
        (b"\xff", "COSE signature is not CBOR"),
    ],
)
def test_signatures_that_do_not_verify(signature: bytes, message: str) -> None:
    with pytest.raises(EifError, match=message):
        verify_signature(read_signature(section(PEM, signature)), PCR0)


def test_certificate_must_be_valid_at_the_time_asked_for() -> None:
    good = read_signature(section(PEM, cose(KEY, 1, PCR0)))
    for at in (NOW - timedelta(seconds=1), NOW + timedelta(days=31)):
        with pytest.raises(EifError, match="valid from 2025-01-01 to 2025-01-31"):
            verify_signature(good, PCR0, at=at)


def test_keys_that_cannot_sign_images() -> None:
    key = ec.generate_private_key(ec.SECP256K1())
    der = certificate(key).public_bytes(Encoding.DER)
    with pytest.raises(EifError, match="P-256, P-384 or P-521"):
        verify_signature(EifSignature(der, b""), PCR0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "array of at least one"),
        ({}, "array of at least one"),
        ([{"signing_certificate": []}], "no map of signing_certificate"),
        ([[1, 2]], "no map"),
        ([{"signing_certificate": b"bytes", "signature": []}], "arrays of integers"),
        ([{"signing_certificate": [256], "signature": []}], "arrays of integers"),
        ([{"signing_certificate": ["a"], "signature": []}], "arrays of integers"),
        ([{"signing_certificate": list(b"-----BEGIN"), "signature": []}], "no PEM certificate"),
    ],
)
def test_wrong_shapes(value: object, message: str) -> None:
    with pytest.raises(EifError, match=message) as caught:
        read_signature(cbor2.dumps(value), offset=600)
    assert caught.value.offset == 600 and "\n" not in str(caught.value)


GOOD = section(PEM, cose(KEY, 1, PCR0))


@given(st.binary(max_size=64))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_as_ours(data: bytes) -> None:
    with contextlib.suppress(EifError):
        verify_signature(read_signature(data), PCR0)
    with contextlib.suppress(EifError):
        verify_signature(EifSignature(CERTIFICATE.public_bytes(Encoding.DER), data), PCR0)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=4))
@settings(max_examples=150, deadline=None)
def test_mutations_are_refused_as_ours(at: int, new: bytes) -> None:
    with contextlib.suppress(EifError):
        verify_signature(read_signature(GOOD[:at] + new + GOOD[at + len(new) :]), PCR0)
