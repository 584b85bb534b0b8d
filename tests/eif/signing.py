"""Keys and certificates for the tests, as the PEM files that a person would give."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

SINCE = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
CURVES: list[ec.EllipticCurve] = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


def key_pem(key: PrivateKeyTypes, *, passphrase: bytes | None = None, sec1: bool = False) -> bytes:
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    form = PrivateFormat.TraditionalOpenSSL if sec1 else PrivateFormat.PKCS8
    return key.private_bytes(Encoding.PEM, form, encryption)


def certificate_pem(
    key: ec.EllipticCurvePrivateKey, *, since: datetime = SINCE, days: int = 30, name: str = "signer"
) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, since, since + timedelta(days=days))
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM)
