"""Attestation documents: COSE_Sign1 (RFC 9052) over a CBOR map, made and read.

`sign_document` makes what a real module sends: untagged, ES384, nine keys in this order. `decode_document`
reads anybody's, checks structure, types and sizes, and trusts nothing: see `enclavedbg.nsm.verify` for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

import cbor2

from enclavedbg.errors import NsmError
from enclavedbg.nsm.cbor import CborError, DuplicateKeyError, Tagged, TrailingBytesError, decode
from enclavedbg.nsm.pcr import PCR_COUNT

if TYPE_CHECKING:
    from enclavedbg.nsm.authority import Credentials
    from enclavedbg.nsm.certificates import CertificateSummary

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


class Check(Enum):
    """What a document is checked for, in the order of checking."""

    CBOR = "well-formed CBOR"
    TRAILING_BYTES = "no trailing bytes"
    DUPLICATE_KEYS = "no duplicate keys"
    STRUCTURE = "COSE_Sign1 structure"
    PROTECTED_HEADER = "protected header"
    FIELDS = "field types and sizes"
    CERTIFICATES = "readable certificates with P-384 keys"
    ROOT = "pinned root"
    CHAIN = "certificate chain order, names and signatures"
    VALIDITY = "certificate validity"
    CONSTRAINTS = "certificate constraints"
    SIGNATURE = "COSE signature"
    DEBUG_MODE = "not a debug-mode enclave"
    PCRS = "expected PCRs"
    NONCE = "expected nonce"
    USER_DATA = "expected user data"
    PUBLIC_KEY = "expected public key"


class MapEncoding(Enum):
    """How the payload's map is written; real modules did the first until 2023, and do the second in 2026."""

    DEFINITE = "definite"
    INDEFINITE = "indefinite"


class DocumentError(NsmError):
    """A document is refused; `check` is the first check that it failed."""

    def __init__(self, check: Check, message: str) -> None:
        super().__init__(message)
        self.check = check


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
        "timestamp": (timestamp - EPOCH) // timedelta(milliseconds=1),
        "pcrs": dict(pcrs),
        "certificate": credentials.certificate,
        "cabundle": list(credentials.cabundle),
        "public_key": public_key,
        "user_data": user_data,
        "nonce": nonce,
    }
    payload = cbor2.dumps(fields)
    if map_encoding is MapEncoding.INDEFINITE:
        # The head of a map of fewer than 24 entries is one byte (RFC 8949, 3.2.2).
        payload = b"\xbf" + payload[1:] + b"\xff"
    return envelope(payload, credentials.sign)


def envelope(payload: bytes, sign: Callable[[bytes], bytes], *, protected: bytes = PROTECTED) -> bytes:
    """A COSE_Sign1 around any payload, untagged as the real module's."""
    return cbor2.dumps([protected, {}, payload, sign(signed_bytes(protected, payload))])


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
        return EPOCH + timedelta(milliseconds=self.timestamp_ms)

    @property
    def debug_mode(self) -> bool:
        """Whether the enclave's image registers are zero, as only those of a debug-mode enclave are."""
        return any(index in self.pcrs and not any(self.pcrs[index]) for index in (0, 1, 2))

    def certificates(self) -> tuple[CertificateSummary, ...]:
        """The chain for people, root first and leaf last; raises NsmError when one cannot be read."""
        from enclavedbg.nsm.certificates import summarise

        return tuple(summarise(der) for der in (*self.cabundle, self.certificate))


def decode_document(document: bytes) -> DecodedDocument:
    """Read a document, tagged or not; raises DocumentError when it is not one."""
    if len(document) > DOCUMENT_LIMIT:
        raise DocumentError(Check.STRUCTURE, f"a document of {len(document)} bytes, expected at most {DOCUMENT_LIMIT}")
    item = _cbor(document, "the document")
    if isinstance(item, Tagged) and item.tag == COSE_SIGN1_TAG:
        item = item.value
    if not isinstance(item, list) or len(item) != 4:
        raise DocumentError(Check.STRUCTURE, "not a COSE_Sign1: expected an array of 4, untagged or with tag 18")
    protected, unprotected, payload, signature = item
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise DocumentError(Check.STRUCTURE, "protected header, payload and signature must be byte strings")
    if not isinstance(unprotected, dict):
        raise DocumentError(Check.STRUCTURE, "the unprotected header must be a map")
    if not 1 <= len(payload) <= PAYLOAD_LIMIT:
        raise DocumentError(Check.STRUCTURE, f"a payload of {len(payload)} bytes, expected 1 to {PAYLOAD_LIMIT}")
    if len(signature) != SIGNATURE_SIZE:
        raise DocumentError(
            Check.STRUCTURE, f"a signature of {len(signature)} bytes, expected {SIGNATURE_SIZE} (r and s of P-384)"
        )
    header = _cbor(protected, "the protected header")
    if not isinstance(header, dict) or set(header) != {ALGORITHM_HEADER} or header[ALGORITHM_HEADER] != ES384:
        raise DocumentError(Check.PROTECTED_HEADER, f"protected header {header!r:.60}, expected {{1: -35}} (ES384)")
    fields = _cbor(payload, "the payload")
    if not isinstance(fields, dict):
        raise DocumentError(Check.FIELDS, "the payload is not a map")
    values = {name: _field(fields, name, convert) for name, convert in _FIELDS.items()}
    return DecodedDocument(
        timestamp_ms=values.pop("timestamp"),
        **values,
        protected=protected,
        payload=payload,
        signature=signature,
    )


def _cbor(data: bytes, what: str) -> Any:
    try:
        return decode(data)
    except CborError as error:
        check = {TrailingBytesError: Check.TRAILING_BYTES, DuplicateKeyError: Check.DUPLICATE_KEYS}
        raise DocumentError(check.get(type(error), Check.CBOR), f"{what}: {error}") from error


def _field(fields: dict[Any, Any], name: str, convert: Callable[[Any], Any]) -> Any:
    if name not in fields and name not in _OPTIONAL:
        raise DocumentError(Check.FIELDS, f"field {name} is missing")
    try:
        return convert(fields.get(name))
    except ValueError as error:
        raise DocumentError(Check.FIELDS, f"field {name}: {error}") from None


# Each converter checks one value and raises ValueError with what was found and what was expected.


def _module_id(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text that is not empty")
    return value


def _digest(value: Any) -> str:
    if value != DIGEST or not isinstance(value, str):
        raise ValueError(f"{value!r:.20}, expected {DIGEST}")
    return value


def _timestamp(value: Any) -> int:
    # Year 9999 is where datetimes end.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 253_402_300_800_000:
        raise ValueError("expected milliseconds since 1970, above 0")
    return value


def _sized(limit: int) -> Callable[[Any], bytes]:
    def convert(value: Any) -> bytes:
        if not isinstance(value, bytes):
            raise ValueError("expected a byte string")
        if not 1 <= len(value) <= limit:
            raise ValueError(f"{len(value)} bytes, expected 1 to {limit}")
        return value

    return convert


def _optional(minimum: int) -> Callable[[Any], bytes | None]:
    def convert(value: Any) -> bytes | None:
        if value is None:
            return None
        if not isinstance(value, bytes):
            raise ValueError("expected a byte string or null")
        if not minimum <= len(value) <= FIELD_LIMIT:
            raise ValueError(f"{len(value)} bytes, expected {minimum} to {FIELD_LIMIT}")
        return value

    return convert


def _pcrs(value: Any) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= PCR_COUNT:
        raise ValueError(f"expected a map of 1 to {PCR_COUNT} registers")
    for index, content in value.items():
        if not isinstance(index, int) or not 0 <= index < PCR_COUNT:
            raise ValueError(f"register {index!r:.20}, expected 0 to {PCR_COUNT - 1}")
        if not isinstance(content, bytes) or len(content) not in PCR_SIZES:
            raise ValueError(f"register {index} does not hold 32, 48 or 64 bytes")
    return value


def _cabundle(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("expected an array with at least one certificate")
    return tuple(_CERTIFICATE(der) for der in value)


_CERTIFICATE = _sized(CERTIFICATE_LIMIT)
_OPTIONAL = ("public_key", "user_data", "nonce")
"""May be null or absent: AWS's guide says absent, real modules write null."""

_FIELDS: dict[str, Callable[[Any], Any]] = {
    "module_id": _module_id,
    "digest": _digest,
    "timestamp": _timestamp,
    "pcrs": _pcrs,
    "certificate": _CERTIFICATE,
    "cabundle": _cabundle,
    "public_key": _optional(1),
    "user_data": _optional(0),
    "nonce": _optional(0),
}
