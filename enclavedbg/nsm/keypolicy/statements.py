"""Whether one statement holds for a request: its action, principal, resource and conditions, all of them."""

from __future__ import annotations

from dataclasses import dataclass

from enclavedbg.nsm.keypolicy.conditions import ConditionResult, judge_condition
from enclavedbg.nsm.keypolicy.parse import Patterns, Statement
from enclavedbg.nsm.keypolicy.principals import match_principals
from enclavedbg.nsm.keypolicy.request import Request
from enclavedbg.nsm.keypolicy.strictjson import shown
from enclavedbg.nsm.keypolicy.truth import Truth, all_of


@dataclass(frozen=True, slots=True)
class StatementResult:
    """A statement and whether it holds.

    `right_action` says that it is about the action; `concerned` that it is about the caller and the key as well, so
    that its conditions are worth a look. `reason` says why it does not hold, or may not, as far as the conditions
    do not say that. `account` is set when it leaves the answer to the IAM policies of that account.
    """

    statement: Statement
    holds: Truth
    right_action: bool
    concerned: bool
    reason: str
    conditions: tuple[ConditionResult, ...]
    account: str | None = None

    @property
    def failed(self) -> tuple[ConditionResult, ...]:
        """The conditions that do not hold."""
        return tuple(result for result in self.conditions if result.truth is Truth.NO)

    @property
    def unknown(self) -> tuple[ConditionResult, ...]:
        """The conditions of which it is not known whether they hold."""
        return tuple(result for result in self.conditions if result.truth is Truth.UNKNOWN)

    @property
    def attested(self) -> bool:
        """Whether it asks for anything about the attestation document."""
        return any(result.attested for result in self.conditions)


def judge_statement(statement: Statement, request: Request) -> StatementResult:
    """Whether the statement holds for the request; its effect is the caller's affair."""
    conditions = tuple(judge_condition(condition, request) for condition in statement.conditions)
    if statement.actions is None or statement.resources is None:
        what = "Action" if statement.actions is None else "Resource"
        return StatementResult(statement, Truth.NO, False, False, f"it has no {what}, so KMS ignores it", conditions)
    if not request.is_among(statement.actions):
        return StatementResult(statement, Truth.NO, False, False, _other_actions(statement.actions), conditions)
    principal = match_principals(statement.principals, request.caller, statement.effect)
    resource, resource_reason = _resource(statement.resources)
    concerned = Truth.NO not in (principal.truth, resource)
    holds = all_of([principal.truth, resource, *(result.truth for result in conditions)])
    reason = "; ".join(part for part in (principal.reason, resource_reason) if part)
    account = principal.account if concerned else None
    return StatementResult(statement, holds, True, concerned, reason, conditions, account)


def _other_actions(actions: Patterns) -> str:
    names = ", ".join(shown(name)[1:-1] for name in actions.values[:3])
    more = f" and {len(actions.values) - 3} more" if len(actions.values) > 3 else ""
    return f"it is about {'all actions but ' if actions.negated else ''}{names or 'no action'}{more}"


def _resource(resources: Patterns) -> tuple[Truth, str]:
    """In a key policy `*` is the key itself (KMS Developer Guide, "Creating a key policy"); its ARN is not known."""
    if "*" in resources.values or not resources.values:
        everything = Truth.of(bool(resources.values) is not resources.negated)
        return everything, "" if everything is Truth.YES else "its Resource is not this key"
    named = f"its Resource is {shown(resources.values[0])[1:-1]}, which may or may not be this key; expected *"
    return Truth.UNKNOWN, named
