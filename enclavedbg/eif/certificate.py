"""A signing certificate in the words of `nitro-cli describe-eif`, which are those of OpenSSL.

Imported only for signed images, like `enclavedbg.eif.signature`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from enclavedbg.errors import EifError

_ATTRIBUTES = {
    "2.5.4.3": "commonName",
    "2.5.4.4": "surname",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "countryName",
    "2.5.4.7": "localityName",
    "2.5.4.8": "stateOrProvinceName",
    "2.5.4.9": "streetAddress",
    "2.5.4.10": "organizationName",
    "2.5.4.11": "organizationalUnitName",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.15": "businessCategory",
    "2.5.4.16": "postalAddress",
    "2.5.4.17": "postalCode",
    "2.5.4.20": "telephoneNumber",
    "2.5.4.41": "name",
    "2.5.4.42": "givenName",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.45": "x500UniqueIdentifier",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "userId",
    "0.9.2342.19200300.100.1.25": "domainComponent",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
    "1.3.6.1.4.1.311.60.2.1.1": "jurisdictionLocalityName",
    "1.3.6.1.4.1.311.60.2.1.2": "jurisdictionStateOrProvinceName",
    "1.3.6.1.4.1.311.60.2.1.3": "jurisdictionCountryName",
}
"""OpenSSL's long names of the attributes of a name; what is not here is shown by its number, as there."""

_ALGORITHMS = {
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.840.10045.4.3.1": "ecdsa-with-SHA224",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.2.840.113549.1.1.5": "sha1WithRSAEncryption",
    "1.2.840.113549.1.1.10": "rsassaPss",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
    "1.2.840.113549.1.1.14": "sha224WithRSAEncryption",
    "1.3.101.112": "ED25519",
    "1.3.101.113": "ED448",
    "2.16.840.1.101.3.4.3.2": "dsa_with_SHA256",
}
"""OpenSSL's long names of signature algorithms: with which the issuer signed the certificate."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0", '"': "\\"}


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What people and scripts want to know of a signing certificate; times are aware, `signature` the issuer's."""

    subject: str
    issuer: dict[str, str]
    issuer_name: str
    key: str
    algorithm: str
    not_before: datetime
    not_after: datetime
    signature: bytes

    def valid_at(self, at: datetime) -> bool:
        """Whether `at`, an aware datetime, is within the certificate's time, which run-enclave demands of now."""
        return self.not_before <= at <= self.not_after

    def as_json(self) -> dict[str, object]:
        """The members and forms of describe-eif's SigningCertificate."""
        return {
            "IssuerName": dict(sorted(self.issuer.items())),
            "Algorithm": self.algorithm,
            "NotBefore": openssl_time(self.not_before),
            "NotAfter": openssl_time(self.not_after),
            "Signature": self.signature.hex(":").upper(),
        }


def certificate_info(der: bytes) -> CertificateInfo:
    """Read a certificate given as DER. Raises EifError when a part of it cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        oid = certificate.signature_algorithm_oid.dotted_string
        return CertificateInfo(
            subject=certificate.subject.rfc4514_string(),
            issuer={
                _ATTRIBUTES.get(attribute.oid.dotted_string, attribute.oid.dotted_string): _as_shown(attribute.value)
                for attribute in certificate.issuer
            },
            issuer_name=certificate.issuer.rfc4514_string(),
            key=_key_name(certificate),
            algorithm=_ALGORITHMS.get(oid, oid),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            signature=certificate.signature,
        )
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        reason = str(error).partition("\n")[0][:120]
        raise EifError(f"the signing certificate cannot be read ({reason}); use another certificate") from error


def openssl_time(at: datetime) -> str:
    """A time as OpenSSL prints it: `Jul  9 17:16:38 2024 GMT`."""
    return f"{_MONTHS[at.month - 1]} {at.day:2} {at:%H:%M:%S} {at.year} GMT"


def _key_name(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    return key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__.strip("_")


def _as_shown(value: str | bytes) -> str:
    """The value as describe-eif shows it: escaped, with the quotation marks gone but not their backslashes."""
    if isinstance(value, bytes):
        return "error"
    return "".join(_ESCAPES.get(c, c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in value)
