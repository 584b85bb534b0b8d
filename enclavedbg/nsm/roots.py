"""Root certificates to trust: AWS's by its published fingerprint, or any given one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from enclavedbg.errors import NsmError

ROOT_FILE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Root:
    """A root that a verifier pins: the SHA-256 of its DER, and what to call it."""

    name: str
    fingerprint: bytes

    @classmethod
    def of(cls, der: bytes, name: str = "the given root") -> Root:
        """The root whose certificate in DER is at hand; raises NsmError for what is none. PEM is for roots_from."""
        if der[:1] != b"\x30":  # A certificate is a SEQUENCE (RFC 5280, section 4.1).
            raise NsmError(f"{name} is no certificate in DER; roots_from reads one in PEM")
        return cls(name, hashlib.sha256(der).digest())


AWS_ROOT = Root(
    "AWS's root for commercial regions",
    bytes.fromhex("641A0321A3E244EFE456463195D606317ED7CDCC3C1756E09893F3C68F79BB5B"),
)
"""The fingerprint that AWS publishes (user guide, "Verifying the root of trust")."""

AWS_GOVCLOUD_ROOT = Root(
    "AWS's root for GovCloud regions",
    bytes.fromhex("20BCD30A3E168EA03789E1C45912BC123C4DE3C977B8A6E1C125C7929D668B3B"),
)
"""Of the certificate that the AWS GovCloud (US) user guide prints (differences for Amazon EC2)."""

AWS_ROOTS = (AWS_ROOT, AWS_GOVCLOUD_ROOT)
"""The China partition has a root of its own, which is to be given."""


def roots_from(data: bytes, name: str) -> list[Root]:
    """The roots in a file: certificates in PEM, whatever else is there, or one in DER; raises NsmError.

    `name` says where they came from.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from enclavedbg.nsm.x509read import READ_ERRORS, quietly

    try:
        with quietly():
            if b"-----BEGIN" in data:
                found = x509.load_pem_x509_certificates(data)
            else:
                found = [x509.load_der_x509_certificate(data)]
            return [Root.of(certificate.public_bytes(Encoding.DER), name) for certificate in found]
    except READ_ERRORS as error:
        raise NsmError(f"{name} holds no certificate, expected one in PEM or DER") from error


def development_root(folder: Path) -> Root | None:
    """The root of the development authority kept in `folder`, None when none was made yet; raises NsmError."""
    from enclavedbg.nsm.authority import kept_pem

    pem = kept_pem(folder)
    return None if pem is None else roots_from(pem, "the development root")[0]
