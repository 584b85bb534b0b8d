"""Whether one condition of a statement holds for a request: yes, no, or not known here.

Sources, all in the IAM User Guide: "Condition operators" (a key that is missing fails, satisfies a negated
operator, and satisfies ...IfExists; Null), "Conditions with multiple context keys or values" (values are joined by
OR, for negated operators by NOR) and "Single-valued vs. multivalued context keys" (a missing key satisfies
ForAllValues and fails ForAnyValue). That IfExists does not change the latter was observed, not documented:
repost.aws/questions/QU9HFmDzP0QGuU-fd7rS6B7w.
"""

from __future__ import annotations

from dataclasses import dataclass

from enclavedbg.nsm.keypolicy.operators import Kind, Quantifier
from enclavedbg.nsm.keypolicy.parse import Condition
from enclavedbg.nsm.keypolicy.registers import explain_difference, explain_zero
from enclavedbg.nsm.keypolicy.request import Request, is_attestation_key, register_of
from enclavedbg.nsm.keypolicy.truth import Truth, all_of, any_of


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """A condition and whether it holds.

    `found` has the request's values: none when it has no such key, None when they are not known. `reason` may be
    empty when it holds. `hints` has a text for each of the condition's values that the document's is not: what may
    be wrong with it, or nothing. `debug_mode` says that the document's value is that of debug mode, zeros.
    """

    condition: Condition
    truth: Truth
    found: tuple[str, ...] | None
    reason: str = ""
    hints: tuple[str, ...] = ()
    debug_mode: bool = False

    @property
    def attested(self) -> bool:
        """Whether it is about the attestation document."""
        return is_attestation_key(self.condition.key)


def judge_condition(condition: Condition, request: Request) -> ConditionResult:
    """Whether the condition holds for the request."""
    lookup = request.look_up(condition.key)
    if lookup.values is None:
        return ConditionResult(condition, Truth.UNKNOWN, None, lookup.note)
    if condition.operator.kind is Kind.NULL:
        return _null(condition, lookup.values, lookup.note)
    if not lookup.values:
        truth = _when_missing(condition)
        return ConditionResult(condition, truth, (), f"the request has no such key{_because(lookup.note)}")
    return _compared(condition, lookup.values, request)


def _because(note: str) -> str:
    return f" ({note})" if note else ""


def _null(condition: Condition, found: tuple[str, ...], note: str) -> ConditionResult:
    missing = "false" if found else "true"
    truth, errors = _any_value(condition, missing)
    reason = "the request has the key" if found else f"the request has no such key{_because(note)}"
    return ConditionResult(condition, truth, found, "; ".join(errors) if truth is Truth.UNKNOWN else reason)


def _when_missing(condition: Condition) -> Truth:
    operator = condition.operator
    if operator.quantifier is not None:
        return Truth.of(operator.quantifier is Quantifier.ALL)
    return Truth.of(operator.negated or operator.if_exists)


def _any_value(condition: Condition, found: str) -> tuple[Truth, list[str]]:
    """Whether a value of the policy's is the one found, and what kept some from being compared."""
    operator = condition.operator
    truths, errors = [], []
    for wanted in condition.values:
        try:
            if condition.variables and "${" in wanted and operator.kind in (Kind.STRING, Kind.ARN):
                raise ValueError("it has a policy variable, ${...}, which is not filled in here")
            truths.append(Truth.of(operator.matches(wanted, found)))
        except ValueError as error:
            truths.append(Truth.UNKNOWN)
            errors.append(str(error))
    return any_of(truths), errors


def _compared(condition: Condition, found: tuple[str, ...], request: Request) -> ConditionResult:
    operator = condition.operator
    if len(found) > 1 and operator.quantifier is None:
        reason = "the request has several values, for which IAM wants ForAnyValue or ForAllValues"
        return ConditionResult(condition, Truth.UNKNOWN, found, reason)
    register = register_of(condition.key)
    if register is not None and operator.kind is not Kind.STRING:
        reason = f"KMS gives a PCR as text; what {operator.name} makes of that is not documented"
        return ConditionResult(condition, Truth.UNKNOWN, found, reason)
    truths, errors = [], []
    for value in found:
        truth, problems = _any_value(condition, value)
        truths.append(~truth if operator.negated else truth)
        errors += problems
    result = all_of(truths) if operator.quantifier is Quantifier.ALL else any_of(truths)
    if result is Truth.UNKNOWN:
        return ConditionResult(condition, result, found, "; ".join(dict.fromkeys(errors)))
    if (result is Truth.YES) is operator.negated:
        return _differing(condition, result, found, register, request)
    zero, debug_mode = "", False
    if register is not None and request.registers is not None:
        zero, debug_mode = explain_zero(register, request.registers)
    excluded = "this value is excluded" if result is Truth.NO else ""
    return ConditionResult(condition, result, found, "; ".join(filter(None, (excluded, zero))), (), debug_mode)


def _differing(
    condition: Condition, truth: Truth, found: tuple[str, ...], register: int | None, request: Request
) -> ConditionResult:
    """No value of the policy's is the request's: that fails, or under a negated operator holds."""
    if register is None or request.registers is None:
        return ConditionResult(condition, truth, found, "the values differ")
    registers = request.registers
    hints = tuple(explain_difference(register, wanted, condition.operator, registers) for wanted in condition.values)
    zero, debug_mode = explain_zero(register, registers)
    reason = zero or "the values differ"
    if not zero and not any(hints) and condition.key.lower().endswith("imagesha384"):
        reason += "; ImageSha384 is PCR0, not the SHA-384 of the image file"
    return ConditionResult(condition, truth, found, reason, hints, debug_mode)
