"""The Signature section: a certificate and a COSE signature of PCR0.

Imported only for signed images: cbor2 and cryptography take longer to load than an image to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding

from enclavedbg.errors import EifError

SIGN_AGAIN = "sign the image again with enclavedbg eif sign"
COSE_SIGN1_TAG = 18
COSE_ALGORITHM = 1

ALGORITHMS: dict[str, tuple[int, hashes.HashAlgorithm]] = {
    "secp256r1": (-7, hashes.SHA256()),
    "secp384r1": (-35, hashes.SHA384()),
    "secp521r1": (-36, hashes.SHA512()),
}
"""Curve to COSE algorithm (RFC 9053) and hash: the algorithm follows the key."""


@dataclass(frozen=True, slots=True)
class EifSignature:
    """The first element of the section: `certificate` in DER, `cose` a serialised COSE_Sign1."""

    certificate: bytes
    cose: bytes


def read_signature(data: bytes | memoryview, *, offset: int | None = None) -> EifSignature:
    """Parse a Signature section and its PEM certificate; the signature itself is not verified here.

    `offset` is where the section's data lies in the file, for the EifError that is raised for any other shape.
    """

    def refuse(problem: str) -> EifError:
        return EifError(f"the signature section {problem}; {SIGN_AGAIN}", offset=offset)

    value = _decode(bytes(data), what="the signature section", offset=offset)
    if not isinstance(value, list) or not value:
        raise refuse("is not a CBOR array of at least one element")
    element = value[0]
    if not isinstance(element, dict) or element.keys() != {"signing_certificate", "signature"}:
        raise refuse("has no map of signing_certificate and signature as its first element")
    try:
        pem, cose = _byte_array(element["signing_certificate"]), _byte_array(element["signature"])
    except (TypeError, ValueError):
        raise refuse("does not hold its byte strings as arrays of integers 0 to 255") from None
    try:
        certificate = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except (ValueError, x509.InvalidVersion) as error:
        raise refuse(f"holds no PEM certificate that can be read ({_first_line(error)})") from error
    return EifSignature(certificate, cose)


def verify_signature(signature: EifSignature, pcr0: bytes, *, at: datetime | None = None) -> None:
    """Check the signature against the certificate's key and `pcr0` (48 bytes), as describe-eif does.

    With `at`, an aware datetime, the certificate must be valid then, which run-enclave demands of now. Raises
    EifError that says which check failed. The certificate's issuer is not checked: nobody does.
    """
    if signed_payload(signature) != payload_for(pcr0):
        raise EifError(f"the signature is for another image: it does not sign PCR0 {pcr0.hex()}; {SIGN_AGAIN}")
    certificate = x509.load_der_x509_certificate(signature.certificate)
    if at is not None and not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise EifError(
            f"the signing certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d}, not on {at:%Y-%m-%d}; {SIGN_AGAIN} and a newer certificate"
        )


def payload_for(pcr0: bytes) -> bytes:
    """What is signed of an image with this PCR0 (48 bytes)."""
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def signed_payload(signature: EifSignature) -> bytes:
    """What the key of the certificate has signed. Raises EifError when the signature was not made with that key."""
    certificate = x509.load_der_x509_certificate(signature.certificate)
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EifError(f"the signing certificate's key cannot be read ({_first_line(error)}); {SIGN_AGAIN}") from error
    algorithm = ALGORITHMS.get(key.curve.name) if isinstance(key, ec.EllipticCurvePublicKey) else None
    if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
        raise EifError("the signing key is not on P-256, P-384 or P-521, others cannot sign images; use such a key")
    protected, payload, raw = _read_cose(signature.cose)
    header = _decode(protected, what="the signature's protected header")
    if not isinstance(header, dict) or header.get(COSE_ALGORITHM) != algorithm[0]:
        raise EifError(f"the signature's algorithm is not {algorithm[0]}, which its key needs; {SIGN_AGAIN}")
    width = (key.curve.key_size + 7) // 8
    if len(raw) != 2 * width:
        raise EifError(f"the signature has {len(raw)} bytes, its key makes {2 * width}; {SIGN_AGAIN}")
    der = utils.encode_dss_signature(int.from_bytes(raw[:width], "big"), int.from_bytes(raw[width:], "big"))
    try:
        key.verify(der, _to_be_signed(protected, payload), ec.ECDSA(algorithm[1]))
    except InvalidSignature:
        raise EifError(f"the signature was not made with the key of its certificate; {SIGN_AGAIN}") from None
    return payload


def make_signature(pcr0: bytes, *, key: ec.EllipticCurvePrivateKey, pem: bytes) -> bytes:
    """The data of a Signature section for `pcr0` (48 bytes); `pem`, the certificate, goes in byte for byte.

    The algorithm follows the key's curve, which must be one of ALGORITHMS. Source: COSE (RFC 9052, section 4.4), and
    for the arrays of integers where one expects byte strings the reference tool.
    """
    algorithm, digest = ALGORITHMS[key.curve.name]
    protected, payload = cbor2.dumps({COSE_ALGORITHM: algorithm}), payload_for(pcr0)
    width = (key.curve.key_size + 7) // 8
    der = key.sign(_to_be_signed(protected, payload), ec.ECDSA(digest))
    raw = b"".join(number.to_bytes(width, "big") for number in utils.decode_dss_signature(der))
    cose = cbor2.dumps([protected, {}, payload, raw])
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(cose)}])


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload])


def _read_cose(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of a COSE_Sign1, tagged or not."""
    value = _decode(data, what="the COSE signature")
    if isinstance(value, cbor2.CBORTag) and value.tag == COSE_SIGN1_TAG:
        value = value.value
    match value:
        case [bytes(protected), Mapping(), bytes(payload), bytes(raw)]:
            return protected, payload, raw
        case _:
            raise EifError(f"the COSE signature is not an array of header, map, payload and signature; {SIGN_AGAIN}")


def _decode(data: bytes, *, what: str, offset: int | None = None) -> object:
    """The CBOR value that `data` begins with."""
    try:
        value: object = cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise EifError(f"{what} is not CBOR ({_first_line(error)}); {SIGN_AGAIN}", offset=offset) from error
    return value


def _byte_array(value: object) -> bytes:
    """Bytes that CBOR holds as an array of integers, which is how the reference tool's library writes them."""
    if not isinstance(value, list):
        raise TypeError(value)
    return bytes(value)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:120] or type(error).__name__
