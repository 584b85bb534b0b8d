"""The certificates that a document brings along, checked link by link.

Trust comes from the pinned root alone. This is no TLS validation: leaf certificates of real documents have no extended
key usage, a key usage that is not critical, and no key identifiers; the CA certificates name revocation lists that
AWS says not to read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from enclavedbg.nsm.certificates import DOMAIN
from enclavedbg.nsm.findings import Check, Findings
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.x509read import READ_ERRORS, first_line, quietly

MAX_BUNDLE = 16
"""Certificates above the leaf; real chains have 4, and each costs a signature to check."""

_UNDERSTOOD = (ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE)
_MUST_BE_UNDERSTOOD = (ExtensionOID.NAME_CONSTRAINTS, ExtensionOID.POLICY_CONSTRAINTS)
"""They narrow what the certificates below may be, critical or not (RFC 5280, section 6.1.4)."""


@dataclass(frozen=True, slots=True)
class ChainCertificate:
    """The parts of a certificate that are checked, all read once so that a damaged one is refused up front.

    `where` names it for people; `subject` and `issuer` are names in DER.
    """

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
    not_understood: tuple[str, ...]
    """Object identifiers of extensions that nobody may ignore, and that are not looked at here."""

    def valid_at(self, at: datetime) -> bool:
        """Whether a time lies in its life."""
        return self.not_before <= at <= self.not_after


def read_chain(cabundle: Sequence[bytes], leaf: bytes, findings: Findings) -> list[ChainCertificate]:
    """The chain from the root down, leaf last; empty when one of its certificates cannot be used."""
    if len(cabundle) > MAX_BUNDLE:
        findings.failed(Check.CERTIFICATES, f"a bundle of {len(cabundle)} certificates, expected at most {MAX_BUNDLE}")
        return []
    named = [*((f"cabundle[{place}]", der) for place, der in enumerate(cabundle)), ("the leaf certificate", leaf)]
    found = [_read(der, where, findings) for where, der in named]
    chain = [certificate for certificate in found if certificate is not None]
    if len(chain) != len(found):
        return []
    findings.passed(Check.CERTIFICATES, f"{len(chain)} of them, all with keys of P-384, signed with ECDSA and SHA-384")
    return chain


def _read(der: bytes, where: str, findings: Findings) -> ChainCertificate | None:
    try:
        with quietly():
            certificate = x509.load_der_x509_certificate(der)
            key = certificate.public_key()
            extensions = {extension.oid: extension for extension in certificate.extensions}
            subject, issuer = certificate.subject.public_bytes(), certificate.issuer.public_bytes()
            not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            algorithm = certificate.signature_algorithm_oid
    except READ_ERRORS as error:
        findings.failed(Check.CERTIFICATES, f"{where} cannot be read ({first_line(error)})")
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != ec.SECP384R1.name:
        findings.failed(Check.CERTIFICATES, f"{where} has a key that is not of P-384")
        return None
    if algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA384:
        findings.failed(Check.CERTIFICATES, f"{where} is not signed with ECDSA and SHA-384")
        return None
    values = {oid: extension.value for oid, extension in extensions.items()}
    constraints, usage = values.get(ExtensionOID.BASIC_CONSTRAINTS), values.get(ExtensionOID.KEY_USAGE)
    return ChainCertificate(
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
        tuple(
            oid.dotted_string
            for oid, extension in extensions.items()
            if (extension.critical and oid not in _UNDERSTOOD) or oid in _MUST_BE_UNDERSTOOD
        ),
    )


def check_root(chain: Sequence[ChainCertificate], roots: Collection[Root], findings: Findings) -> Root | None:
    """The pinned root that stands at the top, byte for byte: whatever else is there is not trusted."""
    fingerprints = [hashlib.sha256(certificate.der).digest() for certificate in chain]
    for root in roots:
        if fingerprints[0] == root.fingerprint:
            findings.passed(Check.ROOT, f"{root.name}, SHA-256 {root.fingerprint.hex()}")
            return root
    reason = f"cabundle[0] has SHA-256 {fingerprints[0].hex()}, which is none of the roots trusted here: "
    reason += ", ".join(root.name for root in roots) or "there are none"
    if DOMAIN.encode() in chain[0].subject:
        reason += "; it is one of enclavedbg's own: of a run with --seed or --ephemeral-authority, or of another user"
    for certificate, found in zip(chain[1:], fingerprints[1:], strict=True):
        if any(found == root.fingerprint for root in roots):
            reason += f"; that is {certificate.where}, so the order is wrong: the root comes first"
    findings.failed(Check.ROOT, reason)
    return None


def check_links(chain: Sequence[ChainCertificate], findings: Findings) -> None:
    """Names link as encoded, and each certificate is signed by the one above it (the root by itself)."""
    for place, certificate in enumerate(chain):
        if any(certificate.der == other.der for other in chain[:place]):
            findings.failed(Check.CHAIN_NAMES, f"{certificate.where} is there twice")
    for issuer, certificate in zip([chain[0], *chain], chain, strict=False):
        if certificate.issuer != issuer.subject:
            other = next((c.where for c in chain if c.subject == certificate.issuer), "no certificate here")
            findings.failed(
                Check.CHAIN_NAMES,
                f"{certificate.where} names another issuer than {issuer.where}, above it: that is {other}",
            )
        elif not _signed_by(issuer, certificate):
            findings.failed(
                Check.CHAIN_SIGNATURES, f"the signature of {certificate.where} is not by the key of {issuer.where}"
            )
    findings.passed_unless_failed(Check.CHAIN_NAMES, "from the root down, each was issued by the one before it")
    if findings.has_failed(Check.CHAIN_NAMES):
        if not findings.has_failed(Check.CHAIN_SIGNATURES):
            findings.skipped(Check.CHAIN_SIGNATURES, "only looked at where the names fit")
    else:
        findings.passed_unless_failed(Check.CHAIN_SIGNATURES, "each is signed with the key of the one before it")


def _signed_by(issuer: ChainCertificate, certificate: ChainCertificate) -> bool:
    try:
        # Names, that inner and outer algorithm are the same, and the signature.
        certificate.certificate.verify_directly_issued_by(issuer.certificate)
    except (InvalidSignature, *READ_ERRORS):
        return False
    return True


def check_constraints(chain: Sequence[ChainCertificate], findings: Findings) -> None:
    """CA flag, keyCertSign and path length above the leaf; digitalSignature, and no CA, for the leaf."""

    def fail(reason: str) -> None:
        findings.failed(Check.CONSTRAINTS, reason)

    *authorities, leaf = chain
    for depth, certificate in enumerate(authorities):
        constraints = certificate.constraints
        if constraints is None or not constraints.ca:
            fail(f"{certificate.where} is not a CA certificate, and issued the next one")
        if certificate.usage is None or not certificate.usage.key_cert_sign:
            fail(f"{certificate.where} may not sign certificates (key usage keyCertSign)")
        below = len(authorities) - 1 - depth
        if constraints is not None and constraints.path_length is not None and below > constraints.path_length:
            fail(f"{certificate.where} allows {constraints.path_length} CA certificates below it, {below} are there")
    if leaf.constraints is not None and leaf.constraints.ca:
        fail("the leaf certificate is a CA certificate")
    if leaf.usage is None or not leaf.usage.digital_signature:
        fail("the leaf certificate may not sign documents (key usage digitalSignature)")
    for certificate in chain:
        for oid in certificate.not_understood:
            fail(f"{certificate.where} has the extension {oid}, which must not be ignored and is not understood here")
    findings.passed_unless_failed(Check.CONSTRAINTS, "CA flags, path lengths and key usages are as they should be")


def check_validity(chain: Sequence[ChainCertificate], at: datetime, *, meaning: str, findings: Findings) -> None:
    """Every certificate, the root included, is valid at a time; `meaning` says what time that is."""
    for certificate in chain:
        if not certificate.valid_at(at):
            findings.failed(
                Check.VALIDITY,
                f"{certificate.where} is valid from {when(certificate.not_before)} to {when(certificate.not_after)}, "
                f"not at {when(at)} ({meaning})",
            )
    findings.passed_unless_failed(Check.VALIDITY, f"all are valid at {when(at)} ({meaning})")


def check_now(chain: Sequence[ChainCertificate], now: datetime, findings: Findings) -> None:
    """What a verifier would say that goes by the present time; decides nothing."""
    end = min(certificate.not_after for certificate in chain)
    if now > end:
        findings.skipped(
            Check.VALID_NOW,
            f"expired {_span(now - end)} ago, at {when(end)}: a verifier that goes by the present time refuses it",
        )
    elif any(now < certificate.not_before for certificate in chain):
        findings.skipped(Check.VALID_NOW, f"not valid yet at {when(now)}; is this machine's clock right?")
    else:
        findings.passed(Check.VALID_NOW, f"until {when(end)}, for another {_span(end - now)}")


def when(at: datetime) -> str:
    """A time for people, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(span: timedelta) -> str:
    minutes = int(span.total_seconds()) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
