"""The development authority's certificates: a chain of the shape and lifetimes of the real one.

Root, regional, zonal, instance and leaf as in documents from EC2, with names under `.invalid` (RFC 2606)
that no one can mistake for the real authority's. This module loads `cryptography`, so import it late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from enclavedbg.errors import NsmError
from enclavedbg.nsm.document import CERTIFICATE_LIMIT
from enclavedbg.nsm.x509read import READ_ERRORS, first_line, quietly

DOMAIN = "enclavedbg.invalid"
ORGANISATION = "enclavedbg development authority"
UNIT = "not for production"
COUNTRY = "XX"
"""A code that ISO 3166 leaves to users: no country."""

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
"""Of P-384's base point (SP 800-186, 3.2.1.4)."""

_UNKNOWN = x509.ObjectIdentifier("2.25.1")
"""Under the arc of UUIDs, where nothing is registered."""

COORDINATE_SIZE = 48
"""Bytes of r and of s in an ES384 signature."""

EntropySource = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Level:
    """One kind of certificate in the chain.

    `subject` lists attributes in order, with `{id}` standing for 16 random hex digits, the instance id or the
    module id; `key_ids` tells whether the key-identifier extensions are there, as they are not everywhere.
    For forgeries, `may_sign` leaves out the key usage that its place in the chain needs, and `unknown_critical` adds an
    extension that nobody knows and nobody may ignore.
    """

    name: str
    subject: tuple[tuple[x509.ObjectIdentifier, str], ...]
    lifetime: timedelta
    ca: bool = True
    path_length: int | None = None
    sign_only_certificates: bool = False
    key_ids: bool = True
    crl: bool = False
    may_sign: bool = True
    unknown_critical: bool = False
    backdate: timedelta = timedelta(seconds=3)


_C = (NameOID.COUNTRY_NAME, COUNTRY)
_O = (NameOID.ORGANIZATION_NAME, ORGANISATION)
_OU = (NameOID.ORGANIZATIONAL_UNIT_NAME, UNIT)
_ST = (NameOID.STATE_OR_PROVINCE_NAME, "Nowhere")
_L = (NameOID.LOCALITY_NAME, "Nowhere")


def _cn(template: str) -> tuple[x509.ObjectIdentifier, str]:
    return (NameOID.COMMON_NAME, template)


LEVELS = (
    Level("root", (_C, _O, _OU, _cn(f"development.{DOMAIN}")), timedelta(days=30 * 365), backdate=timedelta(hours=1)),
    Level(
        "regional",
        (_C, _O, _OU, _cn("{id}.development." + DOMAIN)),
        timedelta(days=20, hours=1),
        path_length=2,
        crl=True,
    ),
    Level(
        "zonal",
        (_cn("{id}.zonal.development." + DOMAIN), _OU, _O, _C, _ST, _L),
        timedelta(days=6),
        path_length=1,
        crl=True,
    ),
    Level(
        "instance",
        (_C, _ST, _L, _O, _OU, _cn("{id}." + DOMAIN)),
        timedelta(hours=24),
        path_length=0,
        sign_only_certificates=True,
    ),
    Level("leaf", (_C, _ST, _L, _O, _OU, _cn("{id}." + DOMAIN)), timedelta(hours=3), ca=False, key_ids=False),
)
ROOT, LEAF = LEVELS[0], LEVELS[-1]


@dataclass(frozen=True, slots=True)
class Link:
    """A certificate of the chain with its private key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    der: bytes
    repeatable: bool = False
    """Sign equal data with equal signatures (RFC 6979)."""

    @property
    def not_before(self) -> datetime:
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        return self.certificate.not_valid_after_utc

    def sign(self, data: bytes) -> bytes:
        """ES384 signature of `data` as COSE wants it: r || s, 48 bytes each."""
        algorithm = ec.ECDSA(hashes.SHA384(), deterministic_signing=self.repeatable)
        r, s = decode_dss_signature(self.key.sign(data, algorithm))
        return r.to_bytes(COORDINATE_SIZE, "big") + s.to_bytes(COORDINATE_SIZE, "big")


def private_key(random_bytes: EntropySource) -> ec.EllipticCurvePrivateKey:
    """A key of P-384 made of 56 random bytes: the 64 bits beyond its size leave no bias (FIPS 186-5, A.2.1)."""
    return ec.derive_private_key(int.from_bytes(random_bytes(56), "big") % (_ORDER - 1) + 1, ec.SECP384R1())


def issue(
    level: Level,
    *,
    issuer: Link | None,
    identity: str,
    serial: int,
    now: datetime,
    key: ec.EllipticCurvePrivateKey | None = None,
    repeatable: bool = False,
) -> Link:
    """Make a certificate, for a new key unless one is given; without an issuer it signs itself.

    `identity` fills the subject's `{id}`. A certificate never outlives its issuer. `repeatable` signs equal
    certificates with equal signatures. Raises NsmError when the names do not fit, or OpenSSL is too old for that.
    """
    key = key or ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(oid, text.replace("{id}", identity)) for oid, text in level.subject])
    not_before = (now - level.backdate).astimezone(UTC).replace(microsecond=0)
    not_after = not_before + level.lifetime
    if issuer is not None:
        not_after = min(not_after, issuer.not_after)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=level.ca, path_length=level.path_length), critical=True)
        .add_extension(_key_usage(level), critical=level.ca)
    )
    if level.key_ids:
        issuer_key = (issuer.key if issuer else key).public_key()
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if issuer is not None:
            authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
            builder = builder.add_extension(authority_id, critical=False)
    if level.crl:
        place = x509.UniformResourceIdentifier(f"http://crl.{DOMAIN}/{level.name}.crl")
        point = x509.DistributionPoint([place], relative_name=None, reasons=None, crl_issuer=None)
        builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
    if level.unknown_critical:
        builder = builder.add_extension(x509.UnrecognizedExtension(_UNKNOWN, b"\x05\x00"), critical=True)
    try:
        certificate = builder.sign(
            issuer.key if issuer else key, hashes.SHA384(), ecdsa_deterministic=repeatable or None
        )
    except UnsupportedAlgorithm as error:
        raise NsmError("signatures that repeat need OpenSSL 3.2 or newer behind cryptography; update that") from error
    der = certificate.public_bytes(serialization.Encoding.DER)
    if len(der) > CERTIFICATE_LIMIT:
        raise NsmError(f"the {level.name} certificate has {len(der)} bytes, expected at most {CERTIFICATE_LIMIT}")
    return Link(key, certificate, der, repeatable)


def _key_usage(level: Level) -> x509.KeyUsage:
    full_ca = level.ca and not level.sign_only_certificates
    return x509.KeyUsage(
        digital_signature=full_ca or (not level.ca and level.may_sign),
        content_commitment=not level.ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=level.ca and level.may_sign,
        crl_sign=full_ca,
        encipher_only=False,
        decipher_only=False,
    )


def random_serial(random_bytes: EntropySource) -> int:
    """A positive serial number of at most 16 bytes."""
    return int.from_bytes(random_bytes(16), "big") | 1


def to_pem(link: Link) -> bytes:
    """Certificate and unencrypted private key, for a file that only its owner reads."""
    return link.certificate.public_bytes(serialization.Encoding.PEM) + link.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def from_pem(pem: bytes) -> Link:
    """The link that `to_pem` wrote; raises NsmError saying what does not fit."""
    try:
        with quietly():
            certificate = x509.load_pem_x509_certificate(pem)
            public_key = certificate.public_key()
            key = serialization.load_pem_private_key(pem, password=None)
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (*READ_ERRORS, x509.ExtensionNotFound) as error:
        raise NsmError(f"no CA certificate with a private key in it ({first_line(error)})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != ec.SECP384R1.name:
        raise NsmError("a private key that is not of P-384")
    if not constraints.ca:
        raise NsmError("a certificate that is not a CA's")
    if public_key != key.public_key():
        raise NsmError("a certificate and a private key that do not belong together")
    return Link(key, certificate, certificate.public_bytes(serialization.Encoding.DER))
