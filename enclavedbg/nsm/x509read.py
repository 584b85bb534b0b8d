"""Reading X.509 certificates that anybody may have made. Loads `cryptography`, so import it late."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ExtensionOID

from enclavedbg.errors import NsmError

READ_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises for DER that is damaged, or that it does not support; some of it only on first use
of a field."""

_warnings = threading.RLock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Read a certificate without cryptography's warnings, which go to standard error whoever made it."""
    # The filters are the process's: two threads at it would leave what the other put there.
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: Exception) -> str:
    """The start of another library's message, fit for one line of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:80]


@dataclass(frozen=True, slots=True)
class CertificateSummary:
    """What a person wants to know of a certificate; names are RFC 4514 text, times aware.

    `serial` is in hex, two digits a byte; `usage` has X.509's names of the key usages; `fingerprint` is SHA-256 of the
    DER.
    """

    subject: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    key: str
    size: int
    ca: bool
    path_length: int | None
    usage: tuple[str, ...]
    fingerprint: bytes


def summarise(der: bytes) -> CertificateSummary:
    """Describe a DER certificate; raises NsmError when it cannot be read."""
    try:
        with quietly():
            certificate = x509.load_der_x509_certificate(der)
            public_key = certificate.public_key()
            values = {extension.oid: extension.value for extension in certificate.extensions}
            constraints, usage = values.get(ExtensionOID.BASIC_CONSTRAINTS), values.get(ExtensionOID.KEY_USAGE)
            is_ca = isinstance(constraints, x509.BasicConstraints) and constraints.ca
            return CertificateSummary(
                certificate.subject.rfc4514_string(),
                certificate.issuer.rfc4514_string(),
                _hex(certificate.serial_number),
                certificate.not_valid_before_utc,
                certificate.not_valid_after_utc,
                public_key.curve.name
                if isinstance(public_key, ec.EllipticCurvePublicKey)
                else type(public_key).__name__,
                len(der),
                is_ca,
                constraints.path_length if isinstance(constraints, x509.BasicConstraints) else None,
                _usages(usage) if isinstance(usage, x509.KeyUsage) else (),
                certificate.fingerprint(hashes.SHA256()),
            )
    except READ_ERRORS as error:
        raise NsmError(f"a certificate that cannot be read ({first_line(error)})") from error


def read_public_key(der: bytes) -> PublicKeyTypes | None:
    """A public key in DER (SubjectPublicKeyInfo, RFC 5280), or None when that cannot be read."""
    try:
        with quietly():
            return load_der_public_key(der)
    except READ_ERRORS:
        return None


def _hex(number: int) -> str:
    digits = f"{abs(number):x}"
    return "-" * (number < 0) + digits.zfill(len(digits) + len(digits) % 2)


def _usages(usage: x509.KeyUsage) -> tuple[str, ...]:
    names = {
        "digitalSignature": usage.digital_signature,
        "nonRepudiation": usage.content_commitment,
        "keyEncipherment": usage.key_encipherment,
        "dataEncipherment": usage.data_encipherment,
        "keyAgreement": usage.key_agreement,
        "keyCertSign": usage.key_cert_sign,
        "cRLSign": usage.crl_sign,
    }
    return tuple(name for name, given in names.items() if given)
