"""Reads the JSON of a key policy into checked values.

Sources: "Grammar of the IAM JSON policy language" in the IAM User Guide (one value may stand without its list,
numbers and booleans without quotes), "Creating a key policy" in the KMS Developer Guide (size), and PutKeyPolicy
in the KMS API Reference: each statement must name principals; one without Action or Resource is accepted, and
has no effect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from enclavedbg.nsm.keypolicy.operators import Operator, parse_operator
from enclavedbg.nsm.keypolicy.strictjson import (
    JsonNumber,
    JsonObject,
    PolicyError,
    decode_text,
    described,
    each_of,
    members_of,
    read_json,
    shown,
    text_of,
    without_space,
)

POLICY_LIMIT = 32 * 1024
"""Bytes that KMS takes; white space between the elements is not counted here."""

VARIABLES_VERSION = "2012-10-17"
"""The version of the language from which ${...} in a value is a variable."""
_VERSIONS = ("2008-10-17", VARIABLES_VERSION)

_STATEMENT = (
    *("Sid", "Effect", "Principal", "NotPrincipal"),
    *("Action", "NotAction", "Resource", "NotResource", "Condition"),
)


class Effect(Enum):
    """What a statement does when it holds."""

    ALLOW = "Allow"
    DENY = "Deny"


class PrincipalKind(Enum):
    """Whose name a principal is. IAM's fourth, CanonicalUser, is for S3 alone."""

    AWS = "AWS"
    SERVICE = "Service"
    FEDERATED = "Federated"


@dataclass(frozen=True, slots=True)
class Principals:
    """Whom a statement is about; everybody else when `negated` (NotPrincipal). Everybody is AWS and `*`."""

    negated: bool
    named: tuple[tuple[PrincipalKind, str], ...]


@dataclass(frozen=True, slots=True)
class Patterns:
    """Actions or resources, with `*` and `?`; all others when `negated` (NotAction, NotResource)."""

    negated: bool
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One key under one operator. Values are text, whatever they were in the file.

    `variables` says that ${...} in a value means a variable.
    """

    operator: Operator
    key: str
    values: tuple[str, ...]
    variables: bool


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement; `number` counts from 1. `actions` and `resources` are None when left out: KMS ignores it then.

    `title` is how to call it: `statement 'Sid'`, or `statement 2` when it has no Sid, or none of its own.
    """

    number: int
    title: str
    sid: str | None
    effect: Effect
    principals: Principals
    actions: Patterns | None
    resources: Patterns | None
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """A key policy's statements, in order."""

    version: str
    statements: tuple[Statement, ...]


def parse_policy(data: str | bytes) -> KeyPolicy:
    """A key policy from its JSON, or from what `aws kms get-key-policy` prints, with `--query Policy` or without.

    Raises PolicyError, one line that says where and what is wrong.
    """
    text = decode_text(data)
    root = read_json(text, "")
    if _is_answer(root):
        root = members_of(root, "the answer of get-key-policy")["Policy"]
    if isinstance(root, str):
        text, root = root, read_json(root, "Policy: ")
    size = len(without_space(text).encode("utf-8", "surrogatepass"))
    if size > POLICY_LIMIT:
        raise PolicyError(f"a policy of {size} bytes without white space, KMS takes at most {POLICY_LIMIT}")
    return _policy(root)


def _is_answer(root: Any) -> bool:
    names = [name for name, _ in root.pairs] if isinstance(root, JsonObject) else []
    return "Policy" in names and "Statement" not in names


def _policy(root: Any) -> KeyPolicy:
    elements = members_of(root, "the policy", ("Version", "Id", "Statement"))
    version = text_of(elements.get("Version", _VERSIONS[0]), "Version")
    if version not in _VERSIONS:
        raise PolicyError(f"Version: found {shown(version)}, expected {' or '.join(_VERSIONS)}")
    if "Statement" not in elements:
        raise PolicyError("the policy: no Statement; is it a key policy?")
    found = [(members_of(value, at, _STATEMENT), at) for value, at in each_of(elements["Statement"], "Statement")]
    sids = Counter(_sid(statement, at) for statement, at in found)
    return KeyPolicy(
        version,
        tuple(
            _statement(
                statement, at, number, unique=sids[_sid(statement, at)] == 1, variables=version == VARIABLES_VERSION
            )
            for number, (statement, at) in enumerate(found, 1)
        ),
    )


def _sid(elements: dict[str, Any], where: str) -> str | None:
    return text_of(elements["Sid"], f"{where}.Sid") or None if "Sid" in elements else None


def _statement(elements: dict[str, Any], where: str, number: int, *, unique: bool, variables: bool) -> Statement:
    if "Effect" not in elements:
        raise PolicyError(f"{where}: no Effect, expected Allow or Deny")
    effect = text_of(elements["Effect"], f"{where}.Effect")
    if effect not in ("Allow", "Deny"):
        raise PolicyError(f"{where}.Effect: found {shown(effect)}, expected Allow or Deny")
    sid = _sid(elements, where)
    conditions = _conditions(elements["Condition"], f"{where}.Condition", variables) if "Condition" in elements else ()
    return Statement(
        number=number,
        title=f"statement '{sid}'" if sid and unique else f"statement {number}",
        sid=sid,
        effect=Effect(effect),
        principals=_principals(elements, where),
        actions=_patterns(elements, where, "Action", _action),
        resources=_patterns(elements, where, "Resource", text_of),
        conditions=tuple(conditions),
    )


def _either(elements: dict[str, Any], where: str, name: str) -> str | None:
    """Which of `name` and `Not` before it is there."""
    there = [element for element in (name, f"Not{name}") if element in elements]
    if len(there) > 1:
        raise PolicyError(f"{where}: both {name} and Not{name}, expected one of them")
    return there[0] if there else None


def _principals(elements: dict[str, Any], where: str) -> Principals:
    element = _either(elements, where, "Principal")
    if element is None:
        raise PolicyError(f"{where}: no Principal; a key policy must have one (an IAM policy has none: is it one?)")
    value, where = elements[element], f"{where}.{element}"
    negated = element != "Principal"
    if value == "*":
        return Principals(negated, ((PrincipalKind.AWS, "*"),))
    if isinstance(value, str):
        raise PolicyError(f'{where}: found {described(value)}, expected "*" or an object such as {{"AWS": "ARN"}}')
    kinds = tuple(kind.value for kind in PrincipalKind)
    named = [
        (PrincipalKind(kind), text_of(principal, at))
        for kind, principals in members_of(value, where, kinds).items()
        for principal, at in each_of(principals, f"{where}.{kind}")
    ]
    return Principals(negated, tuple(named))


def _action(value: Any, where: str) -> str:
    action = text_of(value, where)
    if action != "*" and ":" not in action:
        raise PolicyError(f"{where}: {shown(action)} names no service, expected e.g. kms:Decrypt")
    return action


def _patterns(elements: dict[str, Any], where: str, name: str, read: Callable[[Any, str], str]) -> Patterns | None:
    element = _either(elements, where, name)
    if element is None:
        return None
    values = tuple(read(value, at) for value, at in each_of(elements[element], f"{where}.{element}"))
    return Patterns(element != name, values)


def _conditions(value: Any, where: str, variables: bool) -> Iterator[Condition]:
    for text, keys in members_of(value, where).items():
        try:
            operator = parse_operator(text)
        except ValueError as error:
            raise PolicyError(f"{where}: {error}") from None
        for key, values in members_of(keys, f"{where}.{text}").items():
            if not key:
                raise PolicyError(f"{where}.{text}: a condition key without a name")
            found = each_of(values, f"{where}.{text}[{shown(key)}]")
            yield Condition(operator, key, tuple(_condition_value(member, at) for member, at in found), variables)


def _condition_value(value: Any, where: str) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case JsonNumber(text):
            return text
        case _:
            raise PolicyError(f"{where}: expected text, a number, true or false, found {described(value)}")
