"""Messages between an enclave and its secure module, in CBOR (types of aws-nitro-enclaves-nsm-api).

A request or answer is a text (its name) or a map of one entry {name: {field: value}}. Requests come from the
guest: `decode_request` returns a checked value or raises NsmRequestError with the name of the error that the
guest is to get. Known fields of a wrong type, names of the wrong form and whatever does not decode are
InvalidOperation, as QEMU's device answers; unknown fields are ignored, as the module's own decoder does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, get_args

import cbor2

from enclavedbg.errors import NsmError
from enclavedbg.nsm.cbor import CborError, decode

REQUEST_LIMIT = 0x1000
"""Longest request in bytes (NSM_REQUEST_MAX_SIZE in drivers/misc/nsm.c)."""

RESPONSE_LIMIT = 0x3000
"""Longest answer in bytes (NSM_RESPONSE_MAX_SIZE in drivers/misc/nsm.c)."""

U16_MAX = 0xFFFF


class ErrorCode(Enum):
    """Error names that travel; the value is the number that the C library gives them."""

    InvalidArgument = 1
    InvalidIndex = 2
    InvalidResponse = 3
    ReadOnlyIndex = 4
    InvalidOperation = 5
    BufferTooSmall = 6
    InputTooLarge = 7
    InternalError = 8


class NsmRequestError(NsmError):
    """A request cannot be fulfilled: `code` is what the guest is told, the message is for people."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


# --- requests ---


@dataclass(frozen=True, slots=True)
class DescribeNSM:
    name: ClassVar[str] = "DescribeNSM"


@dataclass(frozen=True, slots=True)
class GetRandom:
    name: ClassVar[str] = "GetRandom"


@dataclass(frozen=True, slots=True)
class DescribePCR:
    name: ClassVar[str] = "DescribePCR"
    index: int


@dataclass(frozen=True, slots=True)
class ExtendPCR:
    """`data` is hashed as it is, after the old value."""

    name: ClassVar[str] = "ExtendPCR"
    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LockPCR:
    name: ClassVar[str] = "LockPCR"
    index: int


@dataclass(frozen=True, slots=True)
class LockPCRs:
    """Locks registers 0 to `range` - 1."""

    name: ClassVar[str] = "LockPCRs"
    range: int


@dataclass(frozen=True, slots=True)
class Attestation:
    """Each field goes into the document as it is; None stands for null."""

    name: ClassVar[str] = "Attestation"
    user_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None


Request = DescribeNSM | GetRandom | DescribePCR | ExtendPCR | LockPCR | LockPCRs | Attestation


def request_types() -> tuple[type[Request], ...]:
    """All kinds of requests."""
    return get_args(Request)


def _u16(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= U16_MAX else None


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else None


@dataclass(frozen=True, slots=True)
class _Field:
    what: str
    optional: bool = False


# Fields by request; a request without an entry travels as a bare text.
_FIELDS: dict[type[Any], dict[str, _Field]] = {
    DescribePCR: {"index": _Field("u16")},
    ExtendPCR: {"index": _Field("u16"), "data": _Field("bytes")},
    LockPCR: {"index": _Field("u16")},
    LockPCRs: {"range": _Field("u16")},
    Attestation: {name: _Field("bytes", optional=True) for name in ("user_data", "nonce", "public_key")},
}
_CONVERT = {"u16": _u16, "bytes": _bytes}
_BARE: dict[str, Request] = {DescribeNSM.name: DescribeNSM(), GetRandom.name: GetRandom()}
_WITH_FIELDS: dict[str, type[Any]] = {kind.name: kind for kind in _FIELDS}


def request_fields(name: str) -> dict[str, str]:
    """The fields of a request by its name on the wire, each with its type there: `u16` or `bytes`."""
    kind = _WITH_FIELDS.get(name)
    return {} if kind is None else {field: entry.what for field, entry in _FIELDS[kind].items()}


def decode_request(data: bytes) -> Request:
    """The request in `data`, checked; raises NsmRequestError with the guest's error."""
    if len(data) > REQUEST_LIMIT:
        raise NsmRequestError(ErrorCode.InputTooLarge, f"the request has more than {REQUEST_LIMIT} bytes")
    try:
        item = decode(data)
    except CborError as error:
        raise _invalid(f"the request is not CBOR: {error}") from error
    if isinstance(item, str):
        if item not in _BARE:
            raise _invalid(f"request {item[:32]!r} without fields, expected one of {', '.join(_BARE)}")
        return _BARE[item]
    if not isinstance(item, dict) or len(item) != 1:
        raise _invalid("the request is neither a name nor a map of one name")
    ((name, fields),) = item.items()
    if name not in _WITH_FIELDS:
        raise _invalid(f"request {name!r:.34} with fields, expected one of {', '.join(_WITH_FIELDS)}")
    if not isinstance(fields, dict):
        raise _invalid(f"{name} does not hold a map of fields")
    kind = _WITH_FIELDS[name]
    request: Request = kind(**{key: _value(name, key, field, fields) for key, field in _FIELDS[kind].items()})
    return request


def _value(name: str, key: str, field: _Field, fields: dict[Any, Any]) -> int | bytes | None:
    raw = fields.get(key)
    if raw is None and field.optional:
        return None
    value = _CONVERT[field.what](raw)
    if value is None:
        raise _invalid(f"{name}: field {key} is missing or not of type {field.what}")
    return value


def _invalid(message: str) -> NsmRequestError:
    return NsmRequestError(ErrorCode.InvalidOperation, message)


def encode_request(request: Request) -> bytes:
    """The bytes that a client's library sends for a request."""
    fields = _FIELDS.get(type(request))
    if fields is None:
        return cbor2.dumps(request.name)
    return cbor2.dumps({request.name: {key: getattr(request, key) for key in fields}})


# --- answers ---


@dataclass(frozen=True, slots=True)
class ModuleDescription:
    """Answer to DescribeNSM; `locked_pcrs` ascends."""

    name: ClassVar[str] = "DescribeNSM"
    version_major: int
    version_minor: int
    version_patch: int
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str = "SHA384"


@dataclass(frozen=True, slots=True)
class RandomBytes:
    """Answer to GetRandom."""

    name: ClassVar[str] = "GetRandom"
    random: bytes


@dataclass(frozen=True, slots=True)
class PcrDescription:
    """Answer to DescribePCR."""

    name: ClassVar[str] = "DescribePCR"
    lock: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class ExtendedPcr:
    """Answer to ExtendPCR: the new value."""

    name: ClassVar[str] = "ExtendPCR"
    data: bytes


@dataclass(frozen=True, slots=True)
class Locked:
    """Answer to LockPCR and LockPCRs: `name` alone."""

    name: str


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """Answer to Attestation."""

    name: ClassVar[str] = "Attestation"
    document: bytes


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """Any request may be answered by an error."""

    name: ClassVar[str] = "Error"
    code: ErrorCode


Response = ModuleDescription | RandomBytes | PcrDescription | ExtendedPcr | Locked | SignedDocument | ErrorAnswer


def encode_response(response: Response) -> bytes:
    """The answer's bytes: definite lengths, fields in the order of the dataclass.

    Linux's random-number driver compares the first 19 bytes of GetRandom's answer literally, which these satisfy.
    """
    match response:
        case ErrorAnswer(code):
            return cbor2.dumps({"Error": code.name})
        case Locked(name):
            return cbor2.dumps(name)
    fields = {field.name: getattr(response, field.name) for field in dataclasses.fields(response)}
    if isinstance(response, ModuleDescription):
        fields["locked_pcrs"] = list(response.locked_pcrs)
    return cbor2.dumps({response.name: fields})
