"""JSON read strictly: no element twice, numbers as written, bounded in size and depth, errors that say where.

RFC 8259 leaves it open what an element given twice means. IAM refuses it ("Grammar of the IAM JSON policy
language", notes), and so does this: two readers must not see two policies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from enclavedbg.errors import NsmError

TEXT_LIMIT = 256 * 1024
"""Bytes that are read at all: a policy with its white space, or escaped in get-key-policy's answer."""
DEPTH_LIMIT = 16
"""A policy has six levels, in get-key-policy's answer as well: there it is a string."""

_QUOTED = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_QUOTED_OR_SPACE = re.compile(rf"({_QUOTED.pattern})|\s+", re.DOTALL)


class PolicyError(NsmError):
    """A key policy cannot be read, or what is asked about it makes no sense."""


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object's elements in order; two may have one name: see `members_of`."""

    pairs: list[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class JsonNumber:
    """A number as it was written."""

    text: str


def decode_text(data: str | bytes) -> str:
    """Text from UTF-8 or, as PowerShell writes it, UTF-16 or UTF-8 with a mark."""
    if len(data) > TEXT_LIMIT:
        raise PolicyError(f"a policy of {len(data)} bytes, expected at most {TEXT_LIMIT}")
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise PolicyError(f"not text (byte {error.start}); expected a key policy in JSON") from None


def read_json(text: str, where: str) -> Any:
    """The value: JsonObject, list, str, JsonNumber, bool or None. `where` begins the message of an error."""
    if not text.strip():
        raise PolicyError(f"{where}nothing there; expected a key policy in JSON")
    depth = _depth(text)
    if depth > DEPTH_LIMIT:
        raise PolicyError(f"{where}objects and lists {depth} deep, expected at most {DEPTH_LIMIT}")
    try:
        return json.loads(
            text,
            object_pairs_hook=JsonObject,
            parse_int=JsonNumber,
            parse_float=JsonNumber,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise PolicyError(f"{where}not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        # Possible all the same, when the caller is deep already.
        raise PolicyError(f"{where}objects and lists too deep to be read here") from None


def without_space(text: str) -> str:
    """JSON text without the white space between its elements."""
    return _QUOTED_OR_SPACE.sub(lambda match: match[1] or "", text)


def members_of(value: Any, where: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """An object's elements by name; raises PolicyError when one is there twice, or not among `known`."""
    if not isinstance(value, JsonObject):
        raise PolicyError(f"{where}: expected an object, found {described(value)}")
    found: dict[str, Any] = {}
    for name, member in value.pairs:
        if name in found:
            raise PolicyError(f"{where}: {shown(name)} is there twice; IAM refuses that")
        if known is not None and name not in known:
            raise PolicyError(f"{where}: there is no element {shown(name)}; expected {', '.join(known)}")
        found[name] = member
    return found


def text_of(value: Any, where: str) -> str:
    """A string; raises PolicyError for anything else."""
    if not isinstance(value, str):
        raise PolicyError(f"{where}: expected text, found {described(value)}")
    return value


def each_of(value: Any, where: str) -> Iterator[tuple[Any, str]]:
    """A list's members, each with its place; one value may stand without its list."""
    if isinstance(value, list):
        yield from ((member, f"{where}[{index}]") for index, member in enumerate(value))
    else:
        yield value, where


def described(value: Any) -> str:
    """What a value is, for the message of an error."""
    match value:
        case JsonObject():
            return "an object"
        case list():
            return "a list"
        case str():
            return f"the text {shown(value)}"
        case JsonNumber():
            return "a number"
        case None:
            return "null"
        case _:
            return "true" if value else "false"


def shown(text: str) -> str:
    """A name from the file in quotes: short, and with nothing that a terminal would act on."""
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


def _refuse_constant(name: str) -> NoReturn:
    raise PolicyError(f"not JSON: {name} is no value")


def _depth(text: str) -> int:
    """The deepest nesting, counted without recursion."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[{\]}]", _QUOTED.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
