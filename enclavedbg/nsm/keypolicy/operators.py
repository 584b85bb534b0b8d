"""The condition operators of IAM: their names, and how each compares a policy's value with a request's.

Source: IAM User Guide, "IAM JSON policy elements: Condition operators"
(docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html). It writes the names
in one way; that IAM does not mind the case is what other readers of policies assume too (parliament,
iam-simulate). A name outside this table IAM refuses when a policy is saved, so it is an error here.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from operator import eq, ge, gt, le, lt
from typing import Any

Comparison = Callable[[str, str], bool]
"""Of a policy's value and a request's value; raises ValueError when one is not of the operator's kind."""


class Kind(Enum):
    """What an operator compares."""

    STRING = "String"
    NUMERIC = "Numeric"
    DATE = "Date"
    BOOL = "Bool"
    BINARY = "Binary"
    IP = "IpAddress"
    ARN = "Arn"
    NULL = "Null"


class Quantifier(Enum):
    """A set operator before the name, for keys with several values in the request."""

    ANY = "ForAnyValue"
    ALL = "ForAllValues"


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator as a policy has it: `text` as written, `name` as AWS writes it without prefix and suffix."""

    text: str
    name: str
    kind: Kind
    negated: bool
    if_exists: bool
    quantifier: Quantifier | None

    def matches(self, wanted: str, found: str) -> bool:
        """Whether the values match; negation is the caller's. Raises ValueError for a value of another kind."""
        return _TABLE[self.name.lower()].compare(wanted, found)


def parse_operator(text: str) -> Operator:
    """An operator by its name with ForAnyValue:, ForAllValues: and IfExists; raises ValueError for any other text."""
    prefix, colon, rest = text.rpartition(":")
    quantifier = next((q for q in Quantifier if q.value.lower() == prefix.lower()), None)
    base = rest.lower()
    if_exists = base.endswith("ifexists")
    entry = _TABLE.get(base.removesuffix("ifexists"))
    if entry is None or (colon and quantifier is None):
        raise ValueError(f"there is no condition operator {text[:60]!r}{_nearest(rest)}")
    if if_exists and entry.kind is Kind.NULL:
        raise ValueError(f"there is no condition operator {text[:60]!r}: IfExists goes with any other than Null")
    return Operator(text, entry.name, entry.kind, entry.negated, if_exists, quantifier)


def glob_matches(pattern: str, text: str) -> bool:
    """`*` is any text and `?` one character.

    What stands between the stars is found from left to right, each piece at its first place, so a hostile pattern takes
    no more steps than an honest one of its length.
    """
    if len(pattern) - pattern.count("*") > len(text):
        return False
    first, *others = _pieces(pattern)
    match = first.match(text)
    if match is None or not others:
        return match is not None and match.end() == len(text)
    at = match.end()
    for piece in others[:-1]:
        if (match := piece.search(text, at)) is None:
            return False
        at = match.end()
    last = others[-1]
    start = len(text) - len(pattern.rpartition("*")[2])
    return start >= at and last.match(text, start) is not None


@lru_cache(maxsize=1 << 14)
def _pieces(pattern: str) -> tuple[re.Pattern[str], ...]:
    """Each has a fixed length."""
    return tuple(
        re.compile("".join("." if c == "?" else re.escape(c) for c in piece), re.DOTALL) for piece in pattern.split("*")
    )


def _nearest(name: str) -> str:
    near = get_close_matches(name[:60], [entry.name for entry in _TABLE.values()], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _ignoring_case(wanted: str, found: str) -> bool:
    return wanted.lower() == found.lower()


def _arn(wanted: str, found: str) -> bool:
    """Each of the six parts for itself, so that a star does not reach past a colon."""
    parts = found.split(":", 5)
    if len(parts) != 6 or parts[0] != "arn":
        raise ValueError(f"{found[:60]!r} is no ARN")
    patterns = wanted.split(":", 5)
    return len(patterns) == 6 and all(map(glob_matches, patterns, parts))


def _number(text: str) -> Decimal:
    if not re.fullmatch(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", text):
        raise ValueError(f"{text[:60]!r} is no number")
    return Decimal(text)


def _date(text: str) -> float:
    """Seconds since 1970 from ISO 8601 or from such a number itself."""
    # Four digits would be a year.
    if re.fullmatch("[0-9]{5,15}", text):
        return float(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is no date, expected e.g. 2026-12-31T23:59:59Z") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text[:60]!r} is neither true nor false")
    return text.lower() == "true"


def _address_within(wanted: str, found: str) -> bool:
    try:
        return ipaddress.ip_address(found) in ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        raise ValueError(f"{found[:60]!r} in {wanted[:60]!r}: not an address and a network") from None


def _compared(convert: Callable[[str], Any], compare: Callable[[Any, Any], bool]) -> Comparison:
    """Both values converted, the request's first: `found compare wanted`."""
    return lambda wanted, found: compare(convert(found), convert(wanted))


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not base64") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    kind: Kind
    compare: Comparison
    negated: bool = False


def _pair(kind: Kind, name: str, negated_name: str, compare: Comparison) -> tuple[_Entry, _Entry]:
    return _Entry(name, kind, compare), _Entry(negated_name, kind, compare, negated=True)


def _ordered(kind: Kind, convert: Callable[[str], Any]) -> tuple[_Entry, ...]:
    word = kind.value
    return (
        *_pair(kind, f"{word}Equals", f"{word}NotEquals", _compared(convert, eq)),
        _Entry(f"{word}LessThan", kind, _compared(convert, lt)),
        _Entry(f"{word}LessThanEquals", kind, _compared(convert, le)),
        _Entry(f"{word}GreaterThan", kind, _compared(convert, gt)),
        _Entry(f"{word}GreaterThanEquals", kind, _compared(convert, ge)),
    )


_ENTRIES = (
    *_pair(Kind.STRING, "StringEquals", "StringNotEquals", eq),
    *_pair(Kind.STRING, "StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase", _ignoring_case),
    *_pair(Kind.STRING, "StringLike", "StringNotLike", glob_matches),
    *_pair(Kind.ARN, "ArnEquals", "ArnNotEquals", _arn),
    *_pair(Kind.ARN, "ArnLike", "ArnNotLike", _arn),
    *_pair(Kind.IP, "IpAddress", "NotIpAddress", _address_within),
    *_ordered(Kind.NUMERIC, _number),
    *_ordered(Kind.DATE, _date),
    _Entry("Bool", Kind.BOOL, _compared(_bool, eq)),
    _Entry("BinaryEquals", Kind.BINARY, _compared(_base64, eq)),
    # Of a policy's value and whether the key is missing, as text: see conditions.py.
    _Entry("Null", Kind.NULL, _compared(_bool, eq)),
)
_TABLE = {entry.name.lower(): entry for entry in _ENTRIES}
