"""`enclavedbg attest policy`: would this KMS key policy allow this enclave, and what else would it allow?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from enclavedbg.eif.text import safe
from enclavedbg.errors import NsmError
from enclavedbg.nsm.document import DecodedDocument
from enclavedbg.nsm.keypolicy import (
    RECIPIENT_ACTIONS,
    ConditionResult,
    Effect,
    KeyPolicy,
    PolicyError,
    PolicyResult,
    StatementResult,
    Truth,
    evaluate,
    parse_policy,
)
from enclavedbg.nsm.keypolicy.strictjson import TEXT_LIMIT
from enclavedbg.nsm.reading import decode_document
from enclavedbg.nsm.x509read import read_public_key
from enclavedbg.options import UsageError
from enclavedbg.verbs.attest.inputs import STDIN, input_name, read_document, read_input
from enclavedbg.verbs.eif.output import print_json

_WORDS = {Truth.YES: "holds", Truth.NO: "fails", Truth.UNKNOWN: "not known"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """POLICY, DOC, --action, --principal, --context, --json."""
    parser.description = (
        "Would this KMS key policy allow this enclave? Exit status: 0 it would, 1 it would not or that is not "
        "known here, 2 one of the files cannot be read. IAM policies, grants and the document's signature are not "
        "looked at."
    )
    parser.add_argument(
        "policy", type=Path, metavar="POLICY", help="the key policy, or what aws kms get-key-policy prints; - is stdin"
    )
    parser.add_argument("document", type=Path, metavar="DOC", help="the attestation document; - is stdin")
    parser.add_argument(
        "--action", default=RECIPIENT_ACTIONS[0], metavar="NAME", help="what the enclave asks for; default: kms:Decrypt"
    )
    parser.add_argument("--principal", metavar="ARN", help="the role whose credentials the enclave uses")
    parser.add_argument(
        "--context",
        type=parse_context,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another condition key of the request, e.g. aws:SourceVpce=vpce-1; KEY= when it has none; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON")


def parse_context(text: str) -> tuple[str, str]:
    """A key and its value; the value may be empty."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, e.g. aws:SourceVpce=vpce-0a1b2c3d")
    return key, value


def run(options: argparse.Namespace) -> int:
    """Print the answer; 0 when the policy allows it."""
    if options.policy == STDIN and options.document == STDIN:
        raise UsageError("policy and document cannot both come from standard input; give one as a file")
    policy = _policy(options.policy)
    document = _document(options.document)
    result = evaluate(
        policy, document.pcrs, action=options.action, principal=options.principal, context=_context(options.context)
    )
    if options.json:
        print_json(record(result, document))
    else:
        print("\n".join(safe(line) for line in lines(result, document)))
    return 0 if result.allowed else 1


def _policy(path: Path) -> KeyPolicy:
    data = read_input(path, limit=TEXT_LIMIT)
    try:
        return parse_policy(data)
    except PolicyError as error:
        # There are two files: say which.
        raise PolicyError(f"{input_name(path)}: {error}") from error


def _document(path: Path) -> DecodedDocument:
    data = read_document(path)
    try:
        return decode_document(data)
    except NsmError as error:
        raise NsmError(f"{input_name(path)}: {error}") from error


def _context(given: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """A key given several times has several values; one without a value is not in the request."""
    context: dict[str, list[str]] = {}
    for key, value in given:
        context.setdefault(key.lower(), []).extend([value] if value else [])
    return context


def lines(result: PolicyResult, document: DecodedDocument) -> Iterator[str]:
    """For people: the verdict, each statement with its conditions, then findings and notes."""
    yield f"{result.outcome.value}: {result.verdict}"
    for statement in result.statements:
        yield ""
        yield from _statement_lines(statement)
    yield ""
    for finding in result.findings:
        yield f"finding {finding.kind.value}: {finding.message}"
        yield f"  cure: {finding.cure}"
    for note in notes(result, document):
        yield f"note: {note}"


def _statement_lines(result: StatementResult) -> Iterator[str]:
    statement = result.statement
    name = f" '{statement.sid}'" if statement.sid else ""
    yield f"statement {statement.number}{name} ({statement.effect.value}): {_standing(result)}"
    denies = statement.effect is Effect.DENY and result.holds is Truth.YES
    for condition in result.conditions if result.concerned else ():
        # What a statement that denies found is as interesting as what one that allows did not find.
        with_values = denies or condition.truth is not Truth.YES
        yield from (f"  {line}" for line in _condition_lines(condition, with_values=with_values))


def _standing(result: StatementResult) -> str:
    """What a statement does here, in a few words."""
    allows = result.statement.effect is Effect.ALLOW
    if result.holds is Truth.YES:
        return "allows it" if allows else "denies it"
    if not result.concerned:
        return f"not about this: {result.reason}"
    if result.holds is Truth.NO:
        return "does not hold"
    may = "may allow it" if allows else "may deny it"
    return f"{may}: {result.reason}" if result.reason else may


def _condition_lines(result: ConditionResult, *, with_values: bool) -> Iterator[str]:
    condition = result.condition
    reason = f": {result.reason}" if result.reason else ""
    cure = f"; give --context {condition.key}=VALUE, or {condition.key}= if it has none" if result.found is None else ""
    yield f"{_WORDS[result.truth]}: {condition.operator.text} {condition.key}{reason}{cure}"
    if not with_values:
        return
    hints = result.hints or ("",) * len(condition.values)
    for wanted, hint in zip(condition.values, hints, strict=True):
        yield f"  policy    {wanted}"
        if hint:
            yield f"            ^ {hint}"
    for found in result.found or ():
        yield f"  {'document' if result.attested else 'request '}  {found}"


def notes(result: PolicyResult, document: DecodedDocument) -> Iterator[str]:
    """What to keep in mind about the answer."""
    if result.assumed is not None:
        yield f"without --principal ARN, the caller is taken to be {result.assumed}, the only role or user named"
    elif result.principal is None:
        yield "without --principal ARN, the caller is taken to be whom each statement that allows names"
    if result.action == "kms:GenerateRandom":
        # KMS Developer Guide, "AWS KMS permissions": policy type IAM policy.
        yield "kms:GenerateRandom uses no key: IAM policies decide about it, whatever a key policy says"
    if result.action not in RECIPIENT_ACTIONS:
        names = ", ".join(name.removeprefix("kms:") for name in RECIPIENT_ACTIONS)
        yield f"{result.action} takes no attestation document; these do: {names}"
        return
    if document.debug_mode:
        yield "the document is of a debug-mode enclave: its image's PCRs are zeros, and whoever ran it could look in"
    if document.public_key is None:
        yield "the document has no public_key: KMS refuses it, since it encrypts its answer to that key"
    elif not isinstance(read_public_key(document.public_key), RSAPublicKey):
        yield "the public_key is no RSA key in DER: KMS encrypts its answer to that key, with RSAES_OAEP_SHA_256 only"
    yield "KMS wants the document signed under AWS's root; that is not checked here, enclavedbg attest explain does"
    yield (
        "only the key policy is seen: other policies may deny, and a caller from another account than the key's needs "
        "an IAM policy there too"
    )


def record(result: PolicyResult, document: DecodedDocument) -> dict[str, object]:
    """For JSON. A condition's `found` is null when the request's values are not known, and [] when it has none;
    `hints` go with `values`, or there are none.
    """
    return {
        "outcome": result.outcome.value,
        "verdict": result.verdict,
        "action": result.action,
        "principal": result.principal,
        "assumed_principal": result.assumed,
        "because": [statement.statement.number for statement in result.because],
        "module_id": document.module_id,
        "debug_mode": document.debug_mode,
        "statements": [_statement_record(statement) for statement in result.statements],
        "findings": [
            {
                "kind": finding.kind.value,
                "statement": finding.statement.number,
                "certain": finding.certain,
                "message": finding.message,
                "cure": finding.cure,
            }
            for finding in result.findings
        ],
        "notes": list(notes(result, document)),
    }


def _statement_record(result: StatementResult) -> dict[str, object]:
    return {
        "number": result.statement.number,
        "sid": result.statement.sid,
        "effect": result.statement.effect.value,
        "holds": result.holds.value,
        "concerned": result.concerned,
        "reason": result.reason,
        "account": result.account,
        "conditions": [
            {
                "operator": condition.condition.operator.text,
                "key": condition.condition.key,
                "values": list(condition.condition.values),
                "found": None if condition.found is None else list(condition.found),
                "holds": condition.truth.value,
                "reason": condition.reason,
                "hints": list(condition.hints),
                "debug_mode": condition.debug_mode,
            }
            for condition in result.conditions
        ],
    }
