"""The fields of a document's payload: their types and sizes (user guide, "Verifying the root of trust").

AWS's texts disagree on the sizes of public key, user data and nonce; real modules take 1024 bytes in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enclavedbg.nsm.cbor import Simple, Tagged
from enclavedbg.nsm.document import CERTIFICATE_LIMIT, DIGEST, FIELD_LIMIT, PCR_SIZES
from enclavedbg.nsm.pcr import PCR_COUNT

REQUIRED = ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle")
OPTIONAL = ("public_key", "user_data", "nonce")
"""May be null or absent: AWS's guide says absent, real modules write null."""

_LAST_TIMESTAMP = 253_402_300_800_000
"""Milliseconds since 1970 at the end of the year 9999, where datetimes end."""


def kind_of(value: Any) -> str:
    """What an item is, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int():
            return "an integer"
        case float():
            return "a float"
        case bytes():
            return f"a byte string of {len(value)} bytes"
        case str():
            return "a text"
        case list():
            return f"an array of {len(value)}"
        case dict():
            return "a map"
        case Tagged(tag=tag):
            return f"an item with tag {tag}"
        case Simple():
            return "a simple value"
    return type(value).__name__


# Each converter checks one value and raises ValueError with what was found and what was expected.


def _module_id(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{kind_of(value)}, expected a text")
    if not value:
        raise ValueError("an empty text, expected a name")
    return value


def _digest(value: Any) -> str:
    if value != DIGEST or not isinstance(value, str):
        raise ValueError(f"{value!r:.20}, expected {DIGEST}")
    return value


def _timestamp(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LAST_TIMESTAMP:
        found = str(value) if type(value) is int and abs(value) < 1 << 64 else kind_of(value)
        raise ValueError(f"{found}, expected milliseconds since 1970, above 0")
    return value


def _sized(limit: int) -> Callable[[Any], bytes]:
    def convert(value: Any) -> bytes:
        if not isinstance(value, bytes):
            raise ValueError(f"{kind_of(value)}, expected a byte string")
        if not 1 <= len(value) <= limit:
            raise ValueError(f"{len(value)} bytes, expected 1 to {limit}")
        return value

    return convert


def _optional(minimum: int) -> Callable[[Any], bytes | None]:
    def convert(value: Any) -> bytes | None:
        if value is None:
            return None
        if not isinstance(value, bytes):
            raise ValueError(f"{kind_of(value)}, expected a byte string or null")
        if not minimum <= len(value) <= FIELD_LIMIT:
            raise ValueError(f"{len(value)} bytes, expected {minimum} to {FIELD_LIMIT}")
        return value

    return convert


def _pcrs(value: Any) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= PCR_COUNT:
        found = f"a map of {len(value)}" if isinstance(value, dict) else kind_of(value)
        raise ValueError(f"{found}, expected a map of 1 to {PCR_COUNT} registers")
    for index, content in value.items():
        if not isinstance(index, int) or not 0 <= index < PCR_COUNT:
            raise ValueError(f"register {index!r:.20}, expected 0 to {PCR_COUNT - 1}")
        if not isinstance(content, bytes) or len(content) not in PCR_SIZES:
            raise ValueError(f"register {index} is {kind_of(content)}, expected one of 32, 48 or 64 bytes")
    return value


def _cabundle(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{kind_of(value)}, expected an array with at least one certificate")
    found = []
    for place, der in enumerate(value):
        try:
            found.append(_CERTIFICATE(der))
        except ValueError as error:
            raise ValueError(f"certificate {place}: {error}") from None
    return tuple(found)


_CERTIFICATE = _sized(CERTIFICATE_LIMIT)

FIELDS: dict[str, Callable[[Any], Any]] = {
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
"""By name: what checks a value and gives it back, or raises ValueError with what was found and what was expected."""
