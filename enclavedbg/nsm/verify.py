"""Says whether an attestation document may be believed, and if not, which check it fails.

The rules are those that AWS publishes for its documents (reference: "Verifying the root of trust" in the
user guide). Trust comes from the pinned root alone, never from what the document brings along. This is no
TLS validation: the certificates have no extended key usage, and revocation lists are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID

from enclavedbg.nsm.certificates import COORDINATE_SIZE, READ_ERRORS, first_line, quietly
from enclavedbg.nsm.document import Check, DecodedDocument, DocumentError, decode_document, signed_bytes

_KNOWN_CRITICAL = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """A document that passed every check; `checked_at` is the time at which its certificates were valid."""

    document: DecodedDocument
    checked_at: datetime
    root_fingerprint: bytes
    """SHA-256 of the root certificate that was trusted."""


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the caller wants to find; None means anything."""

    pcrs: Mapping[int, bytes] | None = None
    nonce: bytes | None = None
    user_data: bytes | None = None
    public_key: bytes | None = None
    allow_debug: bool = False


def verify(
    document: bytes,
    *,
    root: bytes,
    at: datetime | None = None,
    expect_pcrs: Mapping[int, bytes] | None = None,
    nonce: bytes | None = None,
    user_data: bytes | None = None,
    public_key: bytes | None = None,
    allow_debug: bool = False,
) -> VerifiedDocument:
    """Verify a document against the root certificate `root` (DER); raises DocumentError with the failed check.

    Certificates must be valid at `at` (aware), by default at the document's own time. The values given must be
    in the document; those not given are not looked at. Documents of debug-mode enclaves are refused unless
    `allow_debug` is set.
    """
    expected = Expectations(expect_pcrs, nonce, user_data, public_key, allow_debug)
    decoded = decode_document(document)
    case = _Case(decoded, root, at or decoded.timestamp, expected)
    for check in _CHECKS:
        check(case)
    return VerifiedDocument(decoded, case.at, hashlib.sha256(root).digest())


@dataclass(slots=True)
class _Case:
    """A document on its way through the checks; `chain` is filled by the first of them, root first, leaf last."""

    document: DecodedDocument
    root: bytes
    at: datetime
    expected: Expectations
    chain: list[_Certificate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Certificate:
    """The parts of a certificate that are checked, all read once so that a damaged one is refused up front."""

    where: str
    der: bytes
    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    subject: bytes
    issuer: bytes
    not_before: datetime
    not_after: datetime
    constraints: x509.BasicConstraints | None
    usage: x509.KeyUsage | None


def _read_certificate(der: bytes, where: str) -> _Certificate:
    try:
        with quietly():
            certificate = x509.load_der_x509_certificate(der)
            key = certificate.public_key()
            for extension in certificate.extensions:
                if extension.critical and extension.oid not in _KNOWN_CRITICAL:
                    raise DocumentError(
                        Check.CONSTRAINTS, f"{where} has the unknown critical extension {extension.oid.dotted_string}"
                    )
            found = {extension.oid: extension.value for extension in certificate.extensions}
            constraints = found.get(ExtensionOID.BASIC_CONSTRAINTS)
            usage = found.get(ExtensionOID.KEY_USAGE)
            subject, issuer = certificate.subject.public_bytes(), certificate.issuer.public_bytes()
            not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            hash_used = certificate.signature_hash_algorithm
    except READ_ERRORS as error:
        raise DocumentError(Check.CERTIFICATES, f"{where} cannot be read ({first_line(error)})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != ec.SECP384R1.name:
        raise DocumentError(Check.CERTIFICATES, f"{where} has a key that is not of P-384")
    if not isinstance(hash_used, hashes.SHA384):
        raise DocumentError(Check.CERTIFICATES, f"{where} is not signed with ECDSA and SHA-384")
    return _Certificate(
        where,
        der,
        certificate,
        key,
        subject,
        issuer,
        not_before,
        not_after,
        constraints if isinstance(constraints, x509.BasicConstraints) else None,
        usage if isinstance(usage, x509.KeyUsage) else None,
    )


def _check_certificates(case: _Case) -> None:
    bundle = case.document.cabundle
    case.chain = [_read_certificate(der, f"cabundle[{index}]") for index, der in enumerate(bundle)]
    case.chain.append(_read_certificate(case.document.certificate, "the leaf certificate"))


def _check_root(case: _Case) -> None:
    """The pinned root stands at the top, byte for byte: whatever else is there is not trusted."""
    found = case.chain[0].der
    if found != case.root:
        raise DocumentError(
            Check.ROOT,
            f"cabundle[0] has SHA-256 {hashlib.sha256(found).hexdigest()}, expected the pinned root "
            f"{hashlib.sha256(case.root).hexdigest()}",
        )


def _check_chain(case: _Case) -> None:
    """Names link as encoded, and each certificate is signed by the one above it (the root by itself)."""
    for issuer, certificate in zip([case.chain[0], *case.chain], case.chain, strict=False):
        if certificate.issuer != issuer.subject:
            raise DocumentError(Check.CHAIN, f"{certificate.where} was not issued by {issuer.where}: the names differ")
        try:
            issuer.key.verify(
                certificate.certificate.signature,
                certificate.certificate.tbs_certificate_bytes,
                ec.ECDSA(hashes.SHA384()),
            )
        except InvalidSignature:
            raise DocumentError(
                Check.CHAIN, f"the signature of {certificate.where} is not by the key of {issuer.where}"
            ) from None


def _check_validity(case: _Case) -> None:
    for certificate in case.chain:
        if not certificate.not_before <= case.at <= certificate.not_after:
            raise DocumentError(
                Check.VALIDITY,
                f"{certificate.where} is valid from {certificate.not_before:%Y-%m-%d %H:%M:%S} to "
                f"{certificate.not_after:%Y-%m-%d %H:%M:%S} UTC, not at "
                f"{case.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
            )


def _check_constraints(case: _Case) -> None:
    *authorities, leaf = case.chain
    for depth, certificate in enumerate(authorities):
        constraints = certificate.constraints
        if constraints is None or not constraints.ca:
            raise DocumentError(Check.CONSTRAINTS, f"{certificate.where} is not a CA certificate")
        if certificate.usage is None or not certificate.usage.key_cert_sign:
            raise DocumentError(Check.CONSTRAINTS, f"{certificate.where} may not sign certificates (keyCertSign)")
        below = len(authorities) - 1 - depth
        if constraints.path_length is not None and below > constraints.path_length:
            raise DocumentError(
                Check.CONSTRAINTS,
                f"{certificate.where} allows {constraints.path_length} CA certificates below it, {below} are there",
            )
    if leaf.constraints is not None and leaf.constraints.ca:
        raise DocumentError(Check.CONSTRAINTS, "the leaf certificate is a CA certificate")
    if leaf.usage is None or not leaf.usage.digital_signature:
        raise DocumentError(Check.CONSTRAINTS, "the leaf certificate may not sign documents (digitalSignature)")


def _check_signature(case: _Case) -> None:
    """The leaf's key signed header and payload as they were received."""
    document = case.document
    r = int.from_bytes(document.signature[:COORDINATE_SIZE], "big")
    s = int.from_bytes(document.signature[COORDINATE_SIZE:], "big")
    try:
        case.chain[-1].key.verify(
            encode_dss_signature(r, s), signed_bytes(document.protected, document.payload), ec.ECDSA(hashes.SHA384())
        )
    except InvalidSignature:
        raise DocumentError(
            Check.SIGNATURE, "the signature is not by the leaf's key over this header and payload"
        ) from None


def _check_debug_mode(case: _Case) -> None:
    if case.document.debug_mode and not case.expected.allow_debug:
        raise DocumentError(
            Check.DEBUG_MODE, "PCR0, PCR1 or PCR2 is zero: the enclave ran in debug mode, and anyone could look into it"
        )


def _check_pcrs(case: _Case) -> None:
    for index, value in sorted((case.expected.pcrs or {}).items()):
        found = case.document.pcrs.get(index)
        if found != value:
            raise DocumentError(
                Check.PCRS, f"PCR{index} is {found.hex() if found else 'not in the document'}, expected {value.hex()}"
            )


def _check_values(case: _Case) -> None:
    """Sizes only in the messages: these fields may hold what should not be shown."""
    document, expected = case.document, case.expected
    for check, found, wanted in (
        (Check.NONCE, document.nonce, expected.nonce),
        (Check.USER_DATA, document.user_data, expected.user_data),
        (Check.PUBLIC_KEY, document.public_key, expected.public_key),
    ):
        if wanted is not None and found != wanted:
            held = "absent" if found is None else f"{len(found)} bytes that differ from the {len(wanted)} expected"
            raise DocumentError(check, f"the {check.value.removeprefix('expected ')} is {held}")


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _check_certificates,
    _check_root,
    _check_chain,
    _check_validity,
    _check_constraints,
    _check_signature,
    _check_debug_mode,
    _check_pcrs,
    _check_values,
)
