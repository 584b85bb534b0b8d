"""Would this key policy allow this enclave? The statements together, and what their answer is made of.

Source: IAM User Guide, "Policy evaluation logic": an explicit deny wins, else any allow, else the request is
denied. KMS Developer Guide, "Key policies in AWS KMS": nobody has access to a key unless a key policy, an IAM
policy that the key policy lets in, or a grant allows it; only the key policy is seen here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from enclavedbg.nsm.keypolicy.conditions import ConditionResult
from enclavedbg.nsm.keypolicy.findings import Finding, find
from enclavedbg.nsm.keypolicy.parse import Effect, KeyPolicy
from enclavedbg.nsm.keypolicy.principals import Caller, CallerKind, callers_named, parse_caller
from enclavedbg.nsm.keypolicy.request import RECIPIENT_ACTIONS, Request, is_attestation_key
from enclavedbg.nsm.keypolicy.statements import StatementResult, judge_statement
from enclavedbg.nsm.keypolicy.strictjson import PolicyError, shown
from enclavedbg.nsm.keypolicy.truth import Truth


class Outcome(Enum):
    """What the policy says. UNDECIDED: it depends on something that is not known here."""

    ALLOWED = "allowed"
    NOT_ALLOWED = "not allowed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The answer: its outcome, a line that says why, each statement's part in it, and what is weak in the policy.

    `because` has the statements that decide: those that allow, those that deny, or those that leave it open.
    `assumed` is who was taken to be the caller, when none was given and the statements that allow name only one.
    """

    outcome: Outcome
    verdict: str
    action: str
    principal: str | None
    assumed: str | None
    because: tuple[StatementResult, ...]
    statements: tuple[StatementResult, ...]
    findings: tuple[Finding, ...]

    @property
    def allowed(self) -> bool:
        """Whether the policy surely allows it."""
        return self.outcome is Outcome.ALLOWED


def evaluate(
    policy: KeyPolicy,
    document_values: Mapping[int, bytes],
    *,
    action: str = RECIPIENT_ACTIONS[0],
    principal: str | None = None,
    context: Mapping[str, str | Sequence[str]] | None = None,
) -> PolicyResult:
    """Whether `policy` allows `action` to an enclave whose document holds `document_values` (registers by index).

    `principal` is the ARN of the role whose credentials the enclave uses; without it the caller is taken to be the one
    role or user whom the statements that allow name, or each statement's own. `context` has the request's values for
    other condition keys: one, several, or none at all to say that the request has no such key. What is in none of these
    is not guessed: the outcome is UNDECIDED when it depends on it. Raises PolicyError for an action, principal or
    context that cannot be, and for a policy whose findings would take too long.

        policy = parse_policy(Path("policy.json").read_bytes())
        result = evaluate(policy, decode_document(document).pcrs, principal="arn:aws:iam::111122223333:role/app")
        assert result.allowed, result.verdict
        assert not result.findings
    """
    action = action if ":" in action else f"kms:{action}"
    if not re.fullmatch(r"[A-Za-z0-9-]+:[A-Za-z0-9]+", action):
        raise PolicyError(f"{shown(action)} is no action; expected e.g. kms:Decrypt")
    # As AWS writes it, whatever the case that was given.
    action = next((known for known in RECIPIENT_ACTIONS if known.lower() == action.lower()), action)
    request = Request(action, document_values, None, _context(context or {}))
    assumed = _only_caller(policy, request) if principal is None else None
    request = replace(request, caller=assumed if principal is None else parse_caller(principal))
    statements = tuple(judge_statement(statement, request) for statement in policy.statements)
    outcome, verdict, because = _decide(statements, request)
    return PolicyResult(
        outcome, verdict, action, principal, assumed.text if assumed else None, because, statements,
        tuple(find(policy, action)),
    )  # fmt: skip


def _only_caller(policy: KeyPolicy, request: Request) -> Caller | None:
    """The one role or user whom the statements that allow the action name; None when somebody else may be meant.

    The role's own account is nobody else where no attestation is asked for: that is the statement "Enable IAM User
    Permissions", which nearly every policy has.
    """
    allowing = (
        judge_statement(statement, request) for statement in policy.statements if statement.effect is Effect.ALLOW
    )
    named = {
        (caller, result.attested)
        for result in allowing
        if result.concerned
        for caller in callers_named(result.statement.principals)
    }
    identities = {caller for caller, _ in named if caller.kind is not CallerKind.ROOT}
    if len(identities) != 1:
        return None
    (only,) = identities
    accounts = [(caller, attested) for caller, attested in named if caller.kind is CallerKind.ROOT]
    if only.account is None or any(attested or account.account != only.account for account, attested in accounts):
        return None
    return only


def _context(given: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    context: dict[str, tuple[str, ...]] = {}
    for key, values in given.items():
        if is_attestation_key(key):
            raise PolicyError(f"{shown(key)} comes from the document, it cannot be given")
        if key.lower() in context:
            raise PolicyError(f"{shown(key)} is given twice; the case of a key does not matter")
        context[key.lower()] = (values,) if isinstance(values, str) else tuple(values)
    return context


_Decision = tuple[Outcome, str, tuple[StatementResult, ...]]


def _decide(statements: Sequence[StatementResult], request: Request) -> _Decision:
    action = request.action

    def those(effect: Effect, truth: Truth) -> tuple[StatementResult, ...]:
        return tuple(result for result in statements if result.statement.effect is effect and result.holds is truth)

    denying, maybe_denying = those(Effect.DENY, Truth.YES), those(Effect.DENY, Truth.UNKNOWN)
    allowing, maybe_allowing = those(Effect.ALLOW, Truth.YES), those(Effect.ALLOW, Truth.UNKNOWN)
    if denying:
        keys = _keys([result for result in denying[0].conditions if result.attested])
        return Outcome.NOT_ALLOWED, f"{_title(denying[0])} denies {action} to this enclave{keys}", denying
    if allowing and not maybe_denying:
        # One that asks for the document is the better reason.
        allowing = tuple(sorted(allowing, key=lambda result: not result.attested))
        return Outcome.ALLOWED, _allowed(allowing[0], statements, request), allowing
    if allowing:
        verdict = f"{_title(allowing[0])} allows {action}, but {_open(maybe_denying[0], 'denies')}"
        return Outcome.UNDECIDED, verdict, maybe_denying
    missed = _missed(statements)
    if maybe_allowing:
        verdict = _open(maybe_allowing[0], "allows", action)
        return Outcome.UNDECIDED, f"{missed}, and {verdict}" if missed else verdict, maybe_allowing
    return Outcome.NOT_ALLOWED, missed or f"no statement allows {action} to this caller", ()


def _title(result: StatementResult) -> str:
    return result.statement.title


def _allowed(result: StatementResult, statements: Sequence[StatementResult], request: Request) -> str:
    allows = f"{_title(result)} allows {request.action}"
    if result.attested:
        return f"{allows} to this enclave"
    # None of the others denies this request, so where one denies it without the document, that is what lets it pass.
    without = replace(request, registers=None)
    others = [judge_statement(r.statement, without) for r in statements if r.statement.effect is Effect.DENY]
    for truth, denies in ((Truth.YES, "denies"), (Truth.UNKNOWN, "may deny")):
        for denial in others:
            if denial.holds is truth:
                return f"{allows} to this enclave; without its document {_title(denial)} {denies} it"
    return f"{allows}, with or without an enclave: it asks for no attestation"


def _open(result: StatementResult, verb: str, action: str = "") -> str:
    what = f" {action}" if action else ""
    if result.account is not None and not result.unknown:
        return f"{_title(result)} leaves it to the IAM policies of account {result.account}"
    keys = ", ".join(dict.fromkeys(unknown.condition.key for unknown in result.unknown))
    return f"whether {_title(result)} {verb}{what} is not known" + (f" ({keys})" if keys else f": {result.reason}")


def _missed(statements: Sequence[StatementResult]) -> str:
    """The statement that was to allow, and what it fails on; empty when there is none."""
    for_action = [
        result
        for result in statements
        if result.statement.effect is Effect.ALLOW and result.holds is Truth.NO and result.right_action
    ]
    missed = [result for result in for_action if result.concerned]
    if not missed:
        for_others = next((result for result in for_action if result.attested), None)
        return f"{_title(for_others)} does not hold for this caller: {for_others.reason}" if for_others else ""
    # The nearest: with the fewest conditions that fail.
    nearest = min(missed, key=lambda result: (not result.attested, len(result.failed)))
    what = "enclave" if any(failed.attested for failed in nearest.failed) else "request"
    return f"{_title(nearest)} does not hold for this {what}{_keys(nearest.failed)}"


def _keys(results: Sequence[ConditionResult]) -> str:
    """In brackets, the keys of conditions, and whether debug mode is behind it."""
    if not results:
        return ""
    keys = ", ".join(dict.fromkeys(result.condition.key.rpartition(":")[2] for result in results))
    debug = "; the enclave ran in debug mode" if any(result.debug_mode for result in results) else ""
    return f" ({keys}{debug})"
