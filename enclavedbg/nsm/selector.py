"""Which exchanges a fault or a catchpoint is about: a kind of request, conditions on its fields, the n-th or all.

As people write it: `Attestation`, `GetRandom#3`, `ExtendPCR if index == 16`, `any if error != none`. A value for a
field of bytes is text, `hex:...`, `0x...` or `base64:...`; `none` is a field that is absent.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from enclavedbg.errors import NsmError
from enclavedbg.nsm.encoding import value_bytes
from enclavedbg.nsm.wire import ErrorAnswer, ErrorCode, Request, Response, request_fields, request_types

ANY = "any"
"""Every request, also those that do not decode."""

_KIND = re.compile(r"([A-Za-z*]+)(?:#([0-9]{1,9}))?")
_PACKED = re.compile(r"([a-z_.]+)(==|!=|<=|>=|=|<|>)(.*)", re.DOTALL)

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "contains": lambda found, part: part in found,
}
_FOR = {"number": ("==", "!=", "<", "<=", ">", ">="), "bytes": ("==", "!=", "contains"), "error": ("==", "!=")}
"""Operators by what they compare."""

_SIZE = ".size"


class SelectorError(NsmError):
    """What a person wrote names no exchanges."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of one field; `field` may end in `.size`, or be `error`, which only an answer has."""

    field: str
    operator: str
    value: int | bytes | str | None

    def holds(self, request: Request | None, response: Response | None) -> bool:
        """Whether it holds of a request, and its answer if there is one yet."""
        if self.field == "error":
            found: Any = response.code.name if isinstance(response, ErrorAnswer) else None
        else:
            found = getattr(request, self.field.removesuffix(_SIZE), None)
            if self.field.endswith(_SIZE) and found is not None:
                found = len(found)
        if found is None or self.value is None:
            same = found is None and self.value is None
            return {"==": same, "!=": not same}.get(self.operator, False)
        return _OPERATORS[self.operator](found, self.value)


@dataclass(frozen=True, slots=True)
class Selector:
    """`kind` is a request's name or ANY; `nth` counts the exchanges that fit, from 1. `text` is how it was written."""

    kind: str
    nth: int | None
    conditions: tuple[Condition, ...]
    text: str

    def fits(self, request: Request | None, response: Response | None = None) -> bool:
        """Whether an exchange is of this kind and the conditions hold; the count is Counter's."""
        if self.kind != ANY and (request is None or request.name != self.kind):
            return False
        return all(condition.holds(request, response) for condition in self.conditions)


class Counter:
    """Applies a selector to one exchange after another. Its owner's lock keeps threads apart."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.seen = 0
        """How many exchanges fitted, wanted or not."""

    def wants(self, request: Request | None, response: Response | None = None) -> bool:
        """Whether this exchange is meant; each call counts one that fits."""
        if not self.selector.fits(request, response):
            return False
        self.seen += 1
        return self.selector.nth in (None, self.seen)


def parse_selector(words: Sequence[str], *, answered: bool) -> tuple[Selector, list[str]]:
    """The selector of `KIND[#N] ... [if CONDITION [and CONDITION ...]]`, and the words between.

    `answered` tells whether it is for exchanges that have an answer, and so an `error` to compare. Raises SelectorError
    saying what was expected.
    """
    if not words:
        raise SelectorError(f"no request is named; expected {_kinds()}")
    match = _KIND.fullmatch(words[0])
    kind = _kind(match[1]) if match else None
    if match is None or kind is None:
        raise SelectorError(f"there is no request {words[0][:40]!r}; expected {_kinds()}; with #3 the third")
    nth = int(match[2]) if match[2] else None
    if nth == 0:
        raise SelectorError("requests are counted from 1")
    between, given = list(words[1:]), None
    if "if" in between:
        at = between.index("if")
        between, given = between[:at], between[at + 1 :]
    conditions = () if given is None else _conditions(kind, given, answered=answered)
    text = f"{kind}{f'#{nth}' if nth else ''}{' if ' + ' '.join(given) if given else ''}"
    return Selector(kind, nth, conditions, text), between


def _kinds() -> str:
    return ", ".join([*(kind.name for kind in request_types()), ANY])


def _kind(word: str) -> str | None:
    if word == "*":
        return ANY
    return next((name for name in (*(k.name for k in request_types()), ANY) if name.lower() == word.lower()), None)


def _conditions(kind: str, words: Sequence[str], *, answered: bool) -> tuple[Condition, ...]:
    conditions = []
    rest = list(words)
    while True:
        if rest and (match := _PACKED.fullmatch(rest[0])):
            rest[:1] = [part for part in match.groups() if part]  # `index==16` is three words
        if len(rest) < 3:
            found = repr(" ".join(rest)) if rest else "nothing"
            raise SelectorError(f"{found} is no whole condition; expected e.g. index == 16")
        conditions.append(_condition(kind, _fields(kind, answered=answered), *rest[:3]))
        if len(rest) == 3:
            return tuple(conditions)
        if rest[3] != "and":
            raise SelectorError(f"{rest[3]!r} follows a condition; expected `and` with another one")
        rest = rest[4:]


def _condition(kind: str, known: dict[str, str], field: str, sign: str, text: str) -> Condition:
    sort = known.get(field)
    if sort is None:
        if field == "error":
            expected = "only an answer has one, so only `catch nsm after` can compare it"
        elif known:
            expected = f"expected one of {', '.join(known)}"
        else:
            expected = "it has none to compare; name another request"
        raise SelectorError(f"{kind} has no field {field!r}; {expected}")
    sign = "==" if sign == "=" else sign
    if sign not in _FOR[sort]:
        raise SelectorError(f"{field} cannot be compared with {sign!r}; expected one of {', '.join(_FOR[sort])}")
    return Condition(field, sign, None if text == "none" else _value(sort, field, text))


def _fields(kind: str, *, answered: bool) -> dict[str, str]:
    """What conditions on a kind may name, with the sort of each."""
    found: dict[str, str] = {}
    for name, wire_type in request_fields(kind).items():
        found |= {name: "number"} if wire_type == "u16" else {name: "bytes", name + _SIZE: "number"}
    return found | ({"error": "error"} if answered else {})


def _value(sort: str, field: str, text: str) -> int | bytes | str:
    match sort:
        case "bytes":
            return value_bytes(text)
        case "error":
            if text not in ErrorCode.__members__:
                raise SelectorError(f"there is no error {text!r}; expected {', '.join(ErrorCode.__members__)} or none")
            return text
    try:
        return int(text, 0)
    except ValueError:
        raise SelectorError(f"{field} is a number, and {text[:40]!r} is none") from None
