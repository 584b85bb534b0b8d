"""Attestation documents: COSE_Sign1 (RFC 9052) over a CBOR map.

`sign_document` makes what a real module sends: untagged, ES384, nine keys in this order. `enclavedbg.nsm.reading` reads
anybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING

import cbor2

from enclavedbg.nsm.pcr import is_debug_mode

if TYPE_CHECKING:
    from enclavedbg.nsm.authority import Credentials
    from enclavedbg.nsm.x509read import CertificateSummary

COSE_SIGN1_TAG = 18
ALGORITHM_HEADER = 1
ES384 = -35
SIGNATURE_SIZE = 96
PROTECTED = cbor2.dumps({ALGORITHM_HEADER: ES384})

DOCUMENT_LIMIT = 32 * 1024
PAYLOAD_LIMIT = 16384
CERTIFICATE_LIMIT = 1024
FIELD_LIMIT = 1024
"""Longest public key, user data and nonce (AWS's texts disagree; the module takes this much in each)."""

DIGEST = "SHA384"
PCR_SIZES = (32, 48, 64)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MapEncoding(Enum):
    """How the payload's map is written; real documents until 2024 have the first, and those since 2025 the second."""

    DEFINITE = "definite"
    INDEFINITE = "indefinite"


def signed_bytes(protected: bytes, payload: bytes) -> bytes:
    """What the signature covers: the Sig_structure of RFC 9052, section 4.4."""
    return cbor2.dumps(["Signature1", protected, b"", payload])


def sign_document(
    credentials: Credentials,
    *,
    module_id: str,
    timestamp: datetime,
    pcrs: Mapping[int, bytes],
    user_data: bytes | None = None,
    nonce: bytes | None = None,
    public_key: bytes | None = None,
    map_encoding: MapEncoding = MapEncoding.DEFINITE,
) -> bytes:
    """A signed document. `timestamp` is an aware datetime, `pcrs` holds the locked registers by ascending index."""
    fields = {
        "module_id": module_id,
        "digest": DIGEST,
        "timestamp": timestamp_of(timestamp),
        "pcrs": dict(pcrs),
        "certificate": credentials.certificate,
        "cabundle": list(credentials.cabundle),
        "public_key": public_key,
        "user_data": user_data,
        "nonce": nonce,
    }
    payload = cbor2.dumps(fields)
    if map_encoding is MapEncoding.INDEFINITE:
        payload = indefinite(payload)
    return envelope(payload, credentials.sign)


def indefinite(encoded_map: bytes) -> bytes:
    """A map of fewer than 24 entries, whose head is one byte, as one of indefinite length (RFC 8949, 3.2.2)."""
    return b"\xbf" + encoded_map[1:] + b"\xff"


def envelope(payload: bytes, sign: Callable[[bytes], bytes], *, protected: bytes = PROTECTED) -> bytes:
    """A COSE_Sign1 around any payload, untagged as the real module's."""
    return cbor2.dumps([protected, {}, payload, sign(signed_bytes(protected, payload))])


def timestamp_of(at: datetime) -> int:
    """An aware time as a document has it, in milliseconds since 1970."""
    return (at - EPOCH) // timedelta(milliseconds=1)


def time_of(timestamp_ms: int) -> datetime:
    """A document's timestamp, milliseconds since 1970, as aware UTC."""
    return EPOCH + timedelta(milliseconds=timestamp_ms)


@dataclass(frozen=True, slots=True)
class DecodedDocument:
    """What a document says, well-formed but not verified.

    `cabundle` goes from the root down; `protected` and `payload` are the bytes as received, over which the
    signature is checked.
    """

    module_id: str
    digest: str
    timestamp_ms: int
    pcrs: dict[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    protected: bytes
    payload: bytes
    signature: bytes

    @property
    def timestamp(self) -> datetime:
        """When the document was made, aware UTC."""
        return time_of(self.timestamp_ms)

    @property
    def debug_mode(self) -> bool:
        """Whether the enclave's image registers are zero, as only those of a debug-mode enclave are."""
        return is_debug_mode(self.pcrs)

    def certificates(self) -> tuple[CertificateSummary, ...]:
        """The chain for people, root first and leaf last; raises NsmError when one cannot be read."""
        from enclavedbg.nsm.x509read import summarise

        return tuple(summarise(der) for der in (*self.cabundle, self.certificate))
