"""What makes a policy weaker than it looks: access without attestation, in debug-mode enclaves, with any image.

None depends on the document: each statement that allows is tried with requests of those whom it names, without a
document, with one of a debug-mode enclave and with one of an image that nobody knows, and the statements that deny are
tried on the same requests. Nothing is assumed of the request's other keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from enclavedbg.nsm.keypolicy.parse import Condition, Effect, KeyPolicy, Statement
from enclavedbg.nsm.keypolicy.principals import Caller, CallerKind, callers_named
from enclavedbg.nsm.keypolicy.registers import Registers
from enclavedbg.nsm.keypolicy.request import Request, register_of
from enclavedbg.nsm.keypolicy.statements import StatementResult, judge_statement
from enclavedbg.nsm.keypolicy.strictjson import PolicyError
from enclavedbg.nsm.keypolicy.truth import Truth
from enclavedbg.nsm.pcr import DEBUG_ZEROED, PCR_COUNT, ZERO

DEBUG_MODE: Registers = {index: ZERO if index in DEBUG_ZEROED else None for index in range(PCR_COUNT)}
"""What a debug-mode enclave attests: the image's registers are zeros, the others may hold anything."""

UNKNOWN_IMAGE: Registers = {
    index: None if value is None else hashlib.sha384(b"register %d of no known image" % index).digest()
    for index, value in DEBUG_MODE.items()
}
"""What the enclave of an image attests that nobody has heard of."""

WORK_LIMIT = 200_000
"""Names and values that a policy may have compared for one document, two seconds' work at most for all three.

A statement for 800 roles, about all that a policy of 32 KiB holds, beside three that deny with ten values each, comes
to 26,400.
"""


class FindingKind(Enum):
    """What is wrong."""

    WITHOUT_ATTESTATION = "without-attestation"
    DEBUG_MODE = "debug-mode"
    ANY_IMAGE = "any-image"


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement that lets in more than one enclave. Not `certain` when something decides that is not known here."""

    kind: FindingKind
    statement: Statement
    certain: bool
    message: str
    cure: str


@dataclass(frozen=True, slots=True)
class _Access:
    """A caller that a statement lets in. `guards` are the statements about the caller that ask for a document: the one
    that allows, and those that might have denied.
    """

    caller: Caller
    result: StatementResult
    guards: tuple[StatementResult, ...]
    depends_on: tuple[str, ...]

    @property
    def certain(self) -> bool:
        return not self.depends_on


def find(policy: KeyPolicy, action: str) -> Iterator[Finding]:
    """The findings for one action, in the order of the statements; none when it takes no document at all.

    Raises PolicyError for a policy that is made to take long.
    """
    request = Request(action, None, None, {})
    if not request.takes_document:
        return
    allowing = [
        statement
        for statement in policy.statements
        if statement.effect is Effect.ALLOW and statement.actions is not None and request.is_among(statement.actions)
    ]
    denying = [statement for statement in policy.statements if statement.effect is Effect.DENY]
    _check_work(allowing, denying)
    for statement in allowing:
        without = list(_accesses(statement, denying, request))
        if without:
            yield _without_attestation(statement, action, without)
        if any(access.certain for access in without):
            continue
        # Not the same twice: the worst is told. Where it depends on something, no document at all is the worst.
        for registers, describe in ((DEBUG_MODE, _debug_mode), (UNKNOWN_IMAGE, _any_image)):
            accesses = list(_accesses(statement, denying, replace(request, registers=registers)))
            if any(access.certain for access in accesses) or (accesses and not without):
                yield describe(statement, action, accesses)
                break


def _check_work(allowing: Sequence[Statement], denying: Sequence[Statement]) -> None:
    """For each caller its own statement's values are compared, and the names and values of those that deny."""
    against = sum(1 + len(statement.principals.named) + _values(statement) for statement in denying)
    work = sum(len(callers_named(statement.principals)) * (_values(statement) + against) for statement in allowing)
    if work > WORK_LIMIT:
        raise PolicyError(
            f"its principals and values are too many to try one by one: {work} comparisons, "
            f"expected at most {WORK_LIMIT}"
        )


def _values(statement: Statement) -> int:
    return sum(len(condition.values) for condition in statement.conditions)


def _accesses(statement: Statement, denying: Sequence[Statement], request: Request) -> Iterator[_Access]:
    """Those of the callers that a statement names whom it lets in with a request."""
    for caller in dict.fromkeys(callers_named(statement.principals)):
        request = replace(request, caller=caller)
        result = judge_statement(statement, request)
        if result.holds is Truth.NO:
            continue
        denied = [judge_statement(denial, request) for denial in denying]
        if any(denial.holds is Truth.YES for denial in denied):
            continue
        guards = tuple(guard for guard in (result, *denied) if guard.concerned and guard.attested)
        depends_on = [unknown.condition.key for unknown in result.unknown]
        if result.holds is Truth.UNKNOWN and result.reason:
            depends_on.append(result.reason)
        depends_on += [denial.statement.title for denial in denied if denial.holds is Truth.UNKNOWN]
        yield _Access(caller, result, guards, tuple(dict.fromkeys(depends_on)))


def _without_attestation(statement: Statement, action: str, accesses: list[_Access]) -> Finding:
    shown, deeds = _deeds(accesses, action)
    return Finding(
        FindingKind.WITHOUT_ATTESTATION,
        statement,
        shown[0].certain,
        f"{statement.title} {deeds} without attestation{_dependence(shown[0])}: then the enclave is not what protects "
        "the key",
        _cure(action, attested=shown[0].result.attested, for_account=all(_for_account(access) for access in shown)),
    )


def _deeds(accesses: list[_Access], action: str) -> tuple[list[_Access], str]:
    """The accesses that are certain, if any are, and what the statement does for them."""
    certain = [access for access in accesses if access.certain]
    shown = certain or accesses
    allow, let = ("allows", "lets") if certain else ("may allow", "may let")
    accounts = [str(access.caller.account) for access in shown if _for_account(access)]
    others = [_who(access.caller) for access in shown if not _for_account(access)]
    deeds = []
    if others:
        deeds.append(f"{allow} {action} to {_list(others)}")
    if accounts:
        deeds.append(f"{let} the IAM policies of account {_list(accounts)} allow {action}")
    return shown, " and ".join(deeds)


def _dependence(access: _Access) -> str:
    return "" if access.certain else f" (it depends: {_list(access.depends_on)})"


def _for_account(access: _Access) -> bool:
    return access.caller.kind is CallerKind.ROOT


_ASK_FOR_IMAGE = "ask for the image's own value of kms:RecipientAttestation:ImageSha384"


def _cure(action: str, *, attested: bool, for_account: bool) -> str:
    if attested:
        return "its conditions hold without a document: use StringEqualsIgnoreCase, no IfExists, ForAllValues or Not"
    if for_account:
        return f"leave {action} out of it (NotAction, or a list of what the account is to do with the key)"
    return f"leave {action} out of it, or ask there for kms:RecipientAttestation:ImageSha384"


def _asked_of_the_image(access: _Access) -> list[tuple[Effect, Condition]]:
    """The conditions on the image's registers, with the effect of the statement where each stands."""
    return [
        (guard.statement.effect, result.condition)
        for guard in access.guards
        for result in guard.conditions
        if register_of(result.condition.key) in DEBUG_ZEROED
    ]


def _debug_mode(statement: Statement, action: str, accesses: list[_Access]) -> Finding:
    shown, deeds = _deeds(accesses, action)
    image = _asked_of_the_image(shown[0])
    zeros = [
        condition.key
        for effect, condition in image
        # Named to let them in: equal in an Allow, excepted from a Deny.
        if condition.operator.negated is (effect is Effect.DENY)
        and any(value and not value.strip("0") for value in condition.values)
    ]
    if not image:
        why = "nothing asks which image runs"
    elif zeros:
        why = f"zeros will do for {_list(list(dict.fromkeys(zeros)))}"
    else:
        why = "the conditions on the image let zeros pass"
    return Finding(
        FindingKind.DEBUG_MODE,
        statement,
        shown[0].certain,
        f"{statement.title} {deeds} in debug-mode enclaves{_dependence(shown[0])}, with any image and anybody looking "
        f"in: {why}",
        _ASK_FOR_IMAGE,
    )


def _any_image(statement: Statement, action: str, accesses: list[_Access]) -> Finding:
    shown, deeds = _deeds(accesses, action)
    why = (
        "the conditions on the image let others pass"
        if _asked_of_the_image(shown[0])
        else "nothing asks which image runs"
    )
    return Finding(
        FindingKind.ANY_IMAGE,
        statement,
        shown[0].certain,
        f"{statement.title} {deeds} in enclaves of any image{_dependence(shown[0])}: {why}",
        _ASK_FOR_IMAGE,
    )


def _who(caller: Caller) -> str:
    return "everybody" if caller.kind is CallerKind.ANYBODY else caller.text


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
