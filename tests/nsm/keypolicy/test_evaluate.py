"""Whole policies: who is meant, which statement wins, what is weak. The policies are AWS's own and their neighbours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.nsm.keypolicy import (
    RECIPIENT_ACTIONS,
    FindingKind,
    Outcome,
    PolicyError,
    PolicyResult,
    Truth,
    evaluate,
    parse_policy,
)
from tests.nsm.support import PCR0, PCR1, PCR2

PCRS = {0: PCR0, 1: PCR1, 2: PCR2, **{index: bytes(48) for index in range(3, 16)}}
DEBUG = {index: bytes(48) for index in range(16)}
ACCOUNT = "111122223333"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/data-processing"
OTHER = f"arn:aws:iam::{ACCOUNT}:role/other"
SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/data-processing/i-1234567890abcdef0"
IMAGE = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": PCR0.hex()}}
WRONG = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": "cd" * 48}}
ZEROS = {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "00" * 48}}
ALLOWED, NOT_ALLOWED, UNDECIDED = Outcome.ALLOWED, Outcome.NOT_ALLOWED, Outcome.UNDECIDED
WITHOUT, DEBUG_MODE = FindingKind.WITHOUT_ATTESTATION, FindingKind.DEBUG_MODE
ANY_IMAGE = FindingKind.ANY_IMAGE

ROOT = {
    "Sid": "Enable IAM User Permissions",
    "Effect": "Allow",
    "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
    "Action": "kms:*",
    "Resource": "*",
}
"""The default key policy."""
ADMINISTRATORS = {
    "Sid": "Allow access for Key Administrators",
    "Effect": "Allow",
    "Principal": {"AWS": [f"arn:aws:iam::{ACCOUNT}:user/KMSAdminUser"]},
    "Action": ["kms:Create*", "kms:Describe*", "kms:Enable*", "kms:Get*", "kms:TagResource"],
    "Resource": "*",
}


def enclave(condition: Mapping[str, object] | None = IMAGE, **changes: object) -> dict[str, Any]:
    """AWS's example for an enclave."""
    statement = {
        "Sid": "Enable enclave data processing",
        "Effect": "Allow",
        "Principal": {"AWS": ROLE},
        "Action": list(RECIPIENT_ACTIONS),
        "Resource": "*",
        **({} if condition is None else {"Condition": condition}),
        **changes,
    }
    return {name: value for name, value in statement.items() if value is not None}


def deny(condition: Mapping[str, object] | None = None, **changes: object) -> dict[str, Any]:
    return enclave(condition, **{"Sid": "No", "Effect": "Deny", "Principal": "*", **changes})


def answer(*statements: Mapping[str, object], pcrs: Mapping[int, bytes] = PCRS, **request: Any) -> PolicyResult:
    return evaluate(parse_policy(json.dumps({"Version": "2012-10-17", "Statement": statements})), pcrs, **request)


def kinds(result: PolicyResult) -> list[tuple[FindingKind, int, bool]]:
    return [(finding.kind, finding.statement.number, finding.certain) for finding in result.findings]


def test_the_right_image() -> None:
    result = answer(ADMINISTRATORS, enclave(), principal=ROLE)
    assert result.allowed and result.outcome is ALLOWED
    assert result.verdict == "statement 'Enable enclave data processing' allows kms:Decrypt to this enclave"
    assert [each.statement.number for each in result.because] == [2]
    assert [each.holds for each in result.statements] == [Truth.NO, Truth.YES]
    assert not result.statements[0].right_action and "kms:Create*" in result.statements[0].reason
    assert not result.findings


def test_another_image() -> None:
    result = answer(ADMINISTRATORS, enclave(WRONG), principal=ROLE)
    assert (result.outcome, result.because) == (NOT_ALLOWED, ())
    assert result.verdict == "statement 'Enable enclave data processing' does not hold for this enclave (ImageSha384)"
    (failed,) = result.statements[1].failed
    assert failed.found == (PCR0.hex(),)


def test_conditions_are_joined_by_and() -> None:
    both = {"StringEquals": {"kms:RecipientAttestation:PCR0": PCR0.hex(), "kms:RecipientAttestation:PCR1": PCR1.hex()}}
    assert answer(enclave(both)).allowed
    both["StringEquals"]["kms:RecipientAttestation:PCR2"] = "cd" * 48
    result = answer(enclave(both))
    assert not result.allowed and result.verdict.endswith("(PCR2)")
    assert answer(enclave({**IMAGE, "StringNotEquals": {"kms:RecipientAttestation:PCR1": PCR1.hex()}})).allowed is False


def test_debug_mode_is_named() -> None:
    result = answer(enclave(), pcrs=DEBUG)
    assert result.verdict.endswith("(ImageSha384; the enclave ran in debug mode)")
    # Beside something else that fails.
    more = enclave({**IMAGE, "StringEquals": {"kms:ViaService": "x", "kms:RecipientAttestation:PCR3": "33" * 48}})
    assert answer(more, pcrs=DEBUG, context={"kms:ViaService": "y"}).verdict.endswith(
        "does not hold for this enclave (ImageSha384, ViaService, PCR3; the enclave ran in debug mode)"
    )
    assert answer(deny({"StringNotEquals": IMAGE["StringEqualsIgnoreCase"]}), pcrs=DEBUG).verdict == (
        "statement 'No' denies kms:Decrypt to this enclave (ImageSha384; the enclave ran in debug mode)"
    )


def test_a_deny_wins() -> None:
    result = answer(enclave(), enclave(), deny(IMAGE), principal=ROLE)
    assert result.outcome is NOT_ALLOWED and result.because[0].statement.number == 3
    assert answer(enclave(), deny(WRONG), principal=ROLE).allowed
    assert answer(deny(WRONG), principal=ROLE).verdict == "no statement allows kms:Decrypt to this caller"
    assert answer().outcome is NOT_ALLOWED


def test_a_deny_that_is_not_known_leaves_it_open() -> None:
    maybe = deny({"Bool": {"aws:SecureTransport": "false"}})
    result = answer(enclave(), maybe)
    assert result.outcome is UNDECIDED and "aws:SecureTransport" in result.verdict
    assert answer(enclave(), maybe, context={"AWS:securetransport": "true"}).allowed
    assert answer(enclave(), maybe, context={"aws:SecureTransport": ["false"]}).outcome is NOT_ALLOWED
    # Nothing would allow it anyway.
    assert answer(enclave(WRONG), maybe).outcome is NOT_ALLOWED
    assert answer(enclave(WRONG), enclave({"Bool": {"a:b": "true"}}, Sid="b"), maybe).outcome is UNDECIDED


def test_other_keys_are_not_guessed() -> None:
    via = enclave({**IMAGE, "StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}})
    assert answer(via).outcome is UNDECIDED and "kms:ViaService" in answer(via).verdict
    assert answer(via, context={"kms:viaservice": "s3.us-east-1.amazonaws.com"}).allowed
    assert answer(via, context={"kms:ViaService": "ec2.us-east-1.amazonaws.com"}).outcome is NOT_ALLOWED
    assert answer(via, context={"kms:ViaService": []}).outcome is NOT_ALLOWED
    # One that fails decides, whatever the other.
    assert answer(via, pcrs={**PCRS, 0: PCR1}).outcome is NOT_ALLOWED


def test_the_account_leaves_it_to_iam_policies() -> None:
    for principal in ({"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, {"AWS": ACCOUNT}):
        for caller in (None, ROLE, SESSION):
            result = answer({**ROOT, "Principal": principal}, principal=caller)
            assert result.outcome is UNDECIDED
            assert result.verdict.endswith(f"leaves it to the IAM policies of account {ACCOUNT}")
            assert result.because[0].account == ACCOUNT
    assert answer(ROOT, principal=f"arn:aws:iam::{ACCOUNT}:root").allowed
    assert answer(ROOT, principal="arn:aws:iam::444455556666:role/x").outcome is NOT_ALLOWED
    assert answer(ROOT, enclave(), principal=ROLE).allowed
    both = answer(ROOT, enclave(WRONG), principal=ROLE)
    assert both.outcome is UNDECIDED and "(ImageSha384), and statement 'Enable IAM" in both.verdict
    assert answer({**ROOT, "Condition": WRONG}, principal=ROLE).outcome is NOT_ALLOWED
    assert answer(enclave(), deny(Principal={"AWS": ACCOUNT}), principal=ROLE).outcome is NOT_ALLOWED


@pytest.mark.parametrize(
    ("named", "caller", "outcome"),
    [
        ("*", ROLE, ALLOWED),
        ({"AWS": "*"}, "arn:aws:iam::444455556666:user/bob", ALLOWED),
        ({"AWS": [OTHER, ROLE]}, ROLE, ALLOWED),
        ({"AWS": ROLE}, SESSION, ALLOWED),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:role/path/data-processing"}, SESSION, ALLOWED),
        ({"AWS": SESSION}, SESSION, ALLOWED),
        ({"AWS": SESSION}, ROLE, UNDECIDED),
        ({"AWS": SESSION}, SESSION + "0", NOT_ALLOWED),
        ({"AWS": SESSION}, OTHER, NOT_ALLOWED),
        ({"AWS": ACCOUNT}, f"arn:aws:iam::{ACCOUNT}:root", ALLOWED),
        ({"AWS": ROLE}, OTHER, NOT_ALLOWED),
        ({"AWS": ROLE.lower().replace("data", "Data")}, ROLE, NOT_ALLOWED),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:role/*"}, ROLE, NOT_ALLOWED),
        ({"AWS": "AROAEXAMPLE"}, ROLE, NOT_ALLOWED),
        ({"AWS": "AROAEXAMPLE"}, None, NOT_ALLOWED),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:user/bob"}, f"arn:aws:sts::{ACCOUNT}:federated-user/bob", UNDECIDED),
        ({"Service": "ec2.amazonaws.com"}, ROLE, NOT_ALLOWED),
        ({"Service": "ec2.amazonaws.com"}, None, NOT_ALLOWED),
        ({"Service": "ec2.amazonaws.com"}, "ec2.amazonaws.com", ALLOWED),
        ({"Federated": "cognito-identity.amazonaws.com"}, ROLE, UNDECIDED),
        ({"Federated": "cognito-identity.amazonaws.com"}, None, UNDECIDED),
        ({"Federated": "cognito-identity.amazonaws.com"}, f"arn:aws:iam::{ACCOUNT}:user/bob", NOT_ALLOWED),
        ({"AWS": []}, ROLE, NOT_ALLOWED),
        ({"AWS": [ACCOUNT, ROLE]}, None, ALLOWED),
    ],
)
def test_principals(named: object, caller: str | None, outcome: Outcome) -> None:
    assert answer(enclave(Principal=named), principal=caller).outcome is outcome


def test_a_role_that_is_not_meant_is_named_in_the_verdict() -> None:
    assert answer(enclave(), principal=OTHER).verdict.endswith(f"does not hold for this caller: it is about {ROLE}")


def test_without_a_principal_a_deny_for_some_is_open() -> None:
    some = deny(Principal={"AWS": OTHER})
    assert answer(enclave(Principal={"AWS": [ROLE, SESSION]}), some).outcome is UNDECIDED
    assert answer(enclave(Principal="*"), some).outcome is UNDECIDED
    assert answer(enclave(), some, principal=ROLE).allowed
    assert answer(enclave(Principal="*"), some, principal=OTHER).outcome is NOT_ALLOWED
    assert answer(enclave(), deny(Principal={"Service": "ec2.amazonaws.com"})).allowed


@pytest.mark.parametrize("who", [ROLE, ACCOUNT, f"arn:aws:iam::{ACCOUNT}:root"])
def test_without_a_principal_the_only_one_who_is_allowed_is_the_caller(who: str) -> None:
    other_image = {"StringNotEquals": {"kms:RecipientAttestation:PCR1": "cd" * 48}}
    result = answer(ROOT, ADMINISTRATORS, enclave(), deny(other_image, Principal={"AWS": who}))
    assert (result.outcome, result.principal, result.assumed) == (NOT_ALLOWED, None, ROLE)
    assert answer(enclave(), deny({"ArnNotEquals": {"aws:PrincipalArn": ROLE}})).allowed
    assert answer(enclave(), principal=OTHER).assumed is None
    # An account that may be meant, beside the role; a statement that KMS ignores.
    theirs = enclave(WRONG, Principal={"AWS": "arn:aws:iam::444455556666:root"})
    assert answer(enclave(), theirs).assumed is None
    assert answer(
        enclave(None, Action="kms:*"), {**ROOT, "Condition": IMAGE}, deny(Principal={"AWS": ROLE})
    ).outcome is (UNDECIDED)
    assert answer(enclave(Resource=None), {**ROOT, "Condition": IMAGE}).assumed is None
    # No role or user, or not only one.
    for principal in ("*", {"AWS": [ROLE, OTHER]}, {"AWS": ACCOUNT}, {"Federated": "accounts.google.com"}):
        assert answer(enclave(Principal=principal)).assumed is None


@pytest.mark.parametrize(
    ("left_out", "caller", "outcome"),
    [
        ([ROLE, ACCOUNT], ROLE, ALLOWED),
        ([ROLE, ACCOUNT], SESSION, ALLOWED),
        # AWS wants both, and says that it might deny when one is missing.
        ([ROLE], ROLE, UNDECIDED),
        ([ACCOUNT], ROLE, UNDECIDED),
        ([OTHER], ROLE, NOT_ALLOWED),
        ([OTHER], None, NOT_ALLOWED),
        (["*"], None, ALLOWED),
    ],
)
def test_not_principal(left_out: Sequence[str], caller: str | None, outcome: Outcome) -> None:
    statement = deny(Principal=None, NotPrincipal={"AWS": left_out})
    assert answer(enclave(), statement, principal=caller).outcome is outcome


def test_not_principal_with_allow_is_not_supported_by_aws() -> None:
    statement = enclave(Principal=None, NotPrincipal={"AWS": [OTHER, ACCOUNT]})
    result = answer(statement, principal="arn:aws:iam::444455556666:role/x")
    assert result.outcome is UNDECIDED and "AWS does not support NotPrincipal with Allow" in result.verdict
    assert answer(statement, principal=OTHER).outcome is NOT_ALLOWED
    assert answer(enclave(Principal="*"), deny(Principal=None, NotPrincipal={"AWS": OTHER})).outcome is UNDECIDED


@pytest.mark.parametrize(
    ("elements", "allowed"),
    [
        ({"Action": "kms:Decrypt"}, True),
        ({"Action": "KMS:decrypt"}, True),
        ({"Action": ["kms:Encrypt", "kms:De*"]}, True),
        ({"Action": "kms:D?crypt"}, True),
        ({"Action": "*"}, True),
        ({"Action": "kms:Decryp"}, False),
        ({"Action": []}, False),
        ({"Action": None, "NotAction": "kms:Encrypt"}, True),
        ({"Action": None, "NotAction": ["kms:dec*"]}, False),
        ({"Action": None}, False),
        ({"Resource": None}, False),
        ({"Resource": None, "NotResource": "*"}, False),
        ({"Resource": ["arn:aws:kms:*:*:key/1", "*"]}, True),
    ],
)
def test_actions_and_resources(elements: dict[str, object], allowed: bool) -> None:
    assert answer(enclave(**elements)).outcome is (ALLOWED if allowed else NOT_ALLOWED)


def test_a_statement_that_kms_ignores_is_not_what_fails() -> None:
    result = answer(enclave(Action=None), enclave(Resource=None))
    assert result.verdict == "no statement allows kms:Decrypt to this caller"
    assert [(each.right_action, each.concerned) for each in result.statements] == [(False, False)] * 2


def test_a_resource_that_may_be_the_key() -> None:
    result = answer(enclave(Resource="arn:aws:kms:us-east-1:111122223333:key/1"))
    assert result.outcome is UNDECIDED and "which may or may not be this key" in result.verdict


def test_actions_asked_for() -> None:
    only = enclave(Action="kms:GenerateDataKey*")
    assert answer(only, action="GenerateDataKey").action == "kms:GenerateDataKey"
    assert answer(only, action="kms:generatedatakeypair").action == "kms:GenerateDataKeyPair"
    assert answer(only, action="kms:GenerateDataKeyPair").allowed
    # There KMS has none of the keys.
    result = answer(enclave(Action="kms:*"), action="kms:Sign")
    assert result.outcome is NOT_ALLOWED and not result.findings
    assert "takes no attestation document" in result.statements[0].conditions[0].reason


@pytest.mark.parametrize(
    "request_",
    [
        {"action": "kms:*"},
        {"action": "kms:Decrypt\n"},
        {"action": ""},
        {"principal": "bob"},
        {"principal": ""},
        {"principal": "arn:aws:iam::1:role/x"},
        {"principal": f"arn:aws:iam::{ACCOUNT}:role/*"},
        {"context": {"kms:RecipientAttestation:PCR0": "00"}},
        {"context": {"a:b": "1", "A:B": "2"}},
    ],
)
def test_questions_that_make_no_sense(request_: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as caught:
        answer(enclave(), **request_)
    assert str(caught.value).isprintable()


# Findings.


def test_access_without_attestation() -> None:
    users = enclave(None, Sid="Allow use of the key", Action=["kms:Encrypt", "kms:Decrypt"])
    result = answer(users, enclave(WRONG))
    assert result.allowed and "with or without an enclave" in result.verdict
    assert kinds(result) == [(WITHOUT, 1, True)]
    assert ROLE in result.findings[0].message
    # An attested statement is the better reason.
    assert answer(users, enclave()).because[0].statement.number == 2
    assert kinds(answer(users, enclave(), action="kms:GenerateDataKey")) == []


def test_the_default_policy_lets_iam_policies_decrypt() -> None:
    result = answer(ROOT, enclave(), principal=ROLE)
    assert result.allowed and kinds(result) == [(WITHOUT, 1, True)]
    assert f"lets the IAM policies of account {ACCOUNT} allow kms:Decrypt" in result.findings[0].message
    # What AWS advises.
    assert not answer({**{k: v for k, v in ROOT.items() if k != "Action"}, "NotAction": "kms:Decrypt"}).findings


@pytest.mark.parametrize(
    "condition",
    [
        {"StringEqualsIfExists": {"kms:RecipientAttestation:PCR0": PCR0.hex()}},
        {"StringNotEquals": {"kms:RecipientAttestation:PCR0": "00" * 48}},
        {"ForAllValues:StringEquals": {"kms:RecipientAttestation:PCR0": PCR0.hex()}},
        {"Null": {"kms:RecipientAttestation:PCR40": "true"}},
        {"StringEquals": {"kms:CallerAccount": ACCOUNT}},
    ],
)
def test_conditions_that_hold_without_a_document(condition: dict[str, object]) -> None:
    result = answer(enclave(condition), principal=ROLE)
    assert result.allowed and kinds(result) == [(WITHOUT, 1, True)]


def test_a_guard_closes_it() -> None:
    guard = deny({"StringNotEqualsIgnoreCase": IMAGE["StringEqualsIgnoreCase"]})
    null = deny({"Null": {"kms:RecipientAttestation:ImageSha384": "true"}})
    assert kinds(answer(ROOT, guard, enclave(), principal=ROLE)) == []
    # A document is asked for, and nothing about its image.
    result = answer(ROOT, null, enclave(), principal=ROLE)
    assert kinds(result) == [(DEBUG_MODE, 1, True)]
    assert f"lets the IAM policies of account {ACCOUNT} allow kms:Decrypt in debug-mode" in result.findings[0].message
    # It is for others only.
    for_other = {**guard, "Principal": {"AWS": OTHER}}
    assert kinds(answer(ROOT, for_other, enclave(), principal=ROLE)) == [(WITHOUT, 1, True)]
    # It depends.
    with_more = deny({**guard["Condition"], "Bool": {"aws:SecureTransport": "true"}})
    (finding,) = answer(ROOT, with_more, enclave(), principal=ROLE).findings
    assert not finding.certain and "statement 'No'" in finding.message


def test_what_access_depends_on() -> None:
    key = enclave(None, Resource="arn:aws:kms:us-east-1:111122223333:key/1")
    (finding,) = answer(key).findings
    assert not finding.certain and "it depends: its Resource is arn:aws:kms:us-east-1" in finding.message
    others = enclave(None, Principal=None, NotPrincipal={"AWS": OTHER})
    (finding,) = answer(others).findings
    assert not finding.certain and "AWS does not support NotPrincipal with Allow" in finding.message
    # One caller for sure, the other perhaps.
    maybe = deny({"Bool": {"aws:SecureTransport": "false"}}, Principal={"AWS": OTHER})
    for condition, kind in ((None, WITHOUT), (ZEROS, DEBUG_MODE)):
        for both in ([ROLE, OTHER], [OTHER, ROLE]):
            (finding,) = answer(enclave(condition, Principal={"AWS": both}), maybe).findings
            assert (finding.kind, finding.certain) == (kind, True)
            assert OTHER not in finding.message


def test_access_by_an_identity_provider() -> None:
    google, amazon = {"Federated": "accounts.google.com"}, {"Federated": "www.amazon.com"}
    assert kinds(answer(enclave(None, Principal=google))) == [(WITHOUT, 1, True)]
    assert kinds(answer(enclave(None, Principal=google), deny(Principal=amazon))) == [(WITHOUT, 1, True)]
    assert kinds(answer(enclave(None, Principal=google), deny(Principal=google))) == []
    assert kinds(answer(enclave(None), deny(Principal={"AWS": f"arn:aws:iam::{ACCOUNT}:user/x"}))) == [
        (WITHOUT, 1, True)
    ]


def test_access_that_depends_on_other_keys() -> None:
    via = enclave({"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}, Principal="*", Sid="via")
    # Whatever this request has: the next one may have another.
    (finding,) = answer(via, enclave(), context={"kms:ViaService": []}, principal=ROLE).findings
    assert (finding.kind, finding.certain) == (WITHOUT, False)
    assert "may allow kms:Decrypt to everybody" in finding.message and "kms:ViaService" in finding.message


def test_zeros_are_any_debug_mode_enclave() -> None:
    result = answer(enclave(ZEROS), pcrs=DEBUG)
    assert result.allowed and kinds(result) == [(DEBUG_MODE, 1, True)]
    assert "zeros will do for kms:RecipientAttestation:PCR0" in result.findings[0].message
    # It is there whatever the document.
    assert kinds(answer(enclave(ZEROS))) == [(DEBUG_MODE, 1, True)]
    empty = enclave({"StringLike": {"kms:RecipientAttestation:PCR0": ["", "*"]}})
    assert "the conditions on the image let zeros pass" in answer(empty).findings[0].message
    either = {"StringEquals": {"kms:RecipientAttestation:PCR0": ["00" * 48, PCR0.hex()]}}
    assert "zeros will do" in answer(enclave(either)).findings[0].message
    assert kinds(answer(enclave(either))) == [(DEBUG_MODE, 1, True)]
    # Not if the image is named beside.
    assert kinds(answer(enclave({**ZEROS, "StringEquals": {"kms:RecipientAttestation:PCR1": PCR1.hex()}}))) == []
    assert kinds(answer(enclave(ZEROS), deny(ZEROS))) == []
    assert kinds(answer(enclave({"StringLike": {"kms:RecipientAttestation:PCR0": "*"}}))) == [(DEBUG_MODE, 1, True)]


def test_a_policy_that_does_not_ask_for_the_image() -> None:
    role = enclave({"StringEquals": {"kms:RecipientAttestation:PCR3": "33" * 48}})
    (finding,) = answer(role).findings
    assert finding.kind is DEBUG_MODE and "nothing asks which image runs" in finding.message
    # A signing certificate is one of the image's registers.
    assert kinds(answer(enclave({"StringEquals": {"kms:RecipientAttestation:PCR8": "88" * 48}}))) == []


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ({"Null": {"kms:RecipientAttestation:ImageSha384": "true"}}, "the conditions on the image let zeros pass"),
        ({"StringNotEquals": {"kms:RecipientAttestation:PCR0": [PCR0.hex(), "00" * 48]}}, "zeros will do for"),
        ({"StringNotEquals": {"kms:RecipientAttestation:PCR16": "16" * 48}}, "nothing asks which image runs"),
    ],
)
def test_a_deny_that_debug_mode_gets_past(condition: dict[str, object], why: str) -> None:
    result = answer(enclave(None), deny(condition), pcrs={**DEBUG, 16: b"\x16" * 48}, principal=ROLE)
    assert result.allowed
    assert result.verdict.endswith("to this enclave; without its document statement 'No' denies it")
    ((kind, number, _),) = kinds(result)
    assert (kind, number) == (DEBUG_MODE, 1) and why in result.findings[0].message
    # It is for others, so there is no guard.
    result = answer(enclave(None), deny(condition, Principal={"AWS": OTHER}), principal=ROLE)
    assert kinds(result) == [(WITHOUT, 1, True)]
    assert "with or without an enclave" in result.verdict


def test_what_denies_without_the_document_may_depend() -> None:
    guard = {"Null": {"kms:RecipientAttestation:ImageSha384": "true"}, "Bool": {"aws:SecureTransport": "true"}}
    assert "without its document statement 'No' may deny it" in answer(enclave(None), deny(guard)).verdict
    surely = deny({"Null": {"kms:RecipientAttestation:PCR1": "true"}}, Sid="Surely")
    verdict = answer(enclave(None), deny(guard), surely).verdict
    assert "without its document statement 'Surely' denies it" in verdict


def test_why_debug_mode_passes_is_said_of_the_right_values() -> None:
    null = deny({"Null": {"kms:RecipientAttestation:PCR0": "true"}})
    # It keeps zeros out, when something holds that is not known.
    perhaps = deny(
        {"StringEquals": {"kms:RecipientAttestation:PCR1": "00" * 48}, "Bool": {"aws:x": "true"}}, Sid="Some"
    )
    (finding,) = answer(enclave(None), null, perhaps).findings
    assert (finding.kind, finding.certain) == (DEBUG_MODE, False)
    assert "in debug-mode enclaves (it depends: statement 'Some')" in finding.message
    assert finding.message.endswith("the conditions on the image let zeros pass")
    # It is about somebody else.
    other = deny({"StringNotEquals": {"kms:RecipientAttestation:PCR1": "00" * 48}}, Principal={"AWS": OTHER})
    (finding,) = answer(enclave({"StringEquals": {"kms:RecipientAttestation:PCR3": "33" * 48}}), other).findings
    assert finding.message.endswith("nothing asks which image runs")


def test_debug_mode_is_kept_out_and_any_image_is_not() -> None:
    null = deny({"Null": {"kms:RecipientAttestation:ImageSha384": "true"}})
    zeros = deny(ZEROS)
    role = {"StringEquals": {"kms:RecipientAttestation:PCR3": "33" * 48}}
    for statements, certain in (([enclave(None), null, zeros], True), ([enclave(role), zeros], False)):
        (finding,) = answer(*statements).findings
        assert (finding.kind, finding.certain) == (ANY_IMAGE, certain)
        assert f"allow{'s' if certain else ''} kms:Decrypt to {ROLE} in enclaves of any image" in finding.message
    (finding,) = answer(enclave({"StringNotEquals": {"kms:RecipientAttestation:PCR0": "00" * 48}}), null).findings
    assert finding.kind is ANY_IMAGE and finding.message.endswith("the conditions on the image let others pass")
    # Which image, or who signed it, is asked.
    signed = {"StringEquals": {"kms:RecipientAttestation:PCR8": "88" * 48}}
    assert [answer(enclave(c), zeros).findings for c in (IMAGE, signed)] == [(), ()]
    assert answer(enclave(None), null, zeros, deny({"StringNotEquals": signed["StringEquals"]})).findings == ()


def test_a_deny_of_debug_mode_says_so() -> None:
    result = answer(enclave(None), deny(ZEROS), pcrs=DEBUG)
    assert result.verdict.endswith("denies kms:Decrypt to this enclave (PCR0; the enclave ran in debug mode)")
    excluded = enclave({"StringNotEquals": ZEROS["StringEqualsIgnoreCase"]})
    result = answer(excluded, pcrs=DEBUG)
    assert result.verdict.endswith("does not hold for this enclave (PCR0; the enclave ran in debug mode)")
    assert "debug mode" not in answer(excluded).verdict


def test_a_policy_made_to_take_long_is_refused() -> None:
    names = {"Service": [f"{n:x}.amazonaws.com" for n in range(700)]}
    values = {"StringEquals": {"kms:RecipientAttestation:PCR0": [f"{n:x}" for n in range(2000)]}}
    anything = {"StringLike": {"kms:RecipientAttestation:PCR0": "*"}}
    with pytest.raises(PolicyError, match="too many to try one by one: 1402100 comparisons, expected at most 200000"):
        answer(enclave(anything, Principal=names), deny(values))
    # The same work for another action is not done.
    assert answer(enclave(), enclave(anything, Principal=names, Action="kms:Encrypt"), deny(values)).allowed


def test_a_policy_for_hundreds_of_roles_or_accounts_is_not() -> None:
    roles = [f"arn:aws:iam::{n:012d}:role/enclave" for n in range(750)]
    guard = deny({"Null": {"kms:RecipientAttestation:ImageSha384": "true"}})
    assert answer(enclave(Principal={"AWS": roles}), guard, principal=roles[-1]).allowed
    accounts = [f"{n:012d}" for n in range(1700)]
    assert answer(enclave(Principal={"AWS": accounts}), guard).outcome is UNDECIDED


# Anything.

NAMES = st.sampled_from(
    [
        "*",
        ROLE,
        OTHER,
        SESSION,
        ACCOUNT,
        f"arn:aws:iam::{ACCOUNT}:root",
        "AROAEXAMPLE",
        "arn:aws:iam::444455556666:root",
    ]
)
PRINCIPALS = st.just("*") | st.dictionaries(
    st.sampled_from(["AWS", "Service", "Federated"]), st.lists(NAMES, max_size=3)
)
CONDITIONS = st.dictionaries(
    st.sampled_from(
        ["StringEquals", "StringNotEquals", "StringLikeIfExists", "ForAllValues:StringLike", "Null", "Bool"]
    ),
    st.dictionaries(
        st.sampled_from(
            ["kms:RecipientAttestation:PCR0", "kms:RecipientAttestation:PCR3", "kms:ViaService", "aws:PrincipalArn"]
        ),
        st.lists(st.sampled_from([PCR0.hex(), "00" * 48, "true", "*", "${x}", ROLE]), max_size=2),
        max_size=2,
    ),
    max_size=2,
)
STATEMENTS = st.fixed_dictionaries(
    {
        "Effect": st.sampled_from(["Allow", "Deny"]),
        "Action": st.sampled_from(["kms:*", "kms:Decrypt", "kms:Encrypt", "*"]),
        "Resource": st.sampled_from(["*", "arn:aws:kms:us-east-1:111122223333:key/1"]),
        "Condition": CONDITIONS,
    }
).flatmap(
    lambda statement: st.tuples(st.sampled_from(["Principal", "NotPrincipal"]), PRINCIPALS).map(
        lambda named: {**statement, named[0]: named[1]}
    )
)
DOCUMENTS = st.dictionaries(st.integers(0, 31), st.sampled_from([PCR0, bytes(48), b"\x33" * 32]), max_size=4)
CONTEXTS = st.dictionaries(
    st.sampled_from(["kms:ViaService", "a:b"]), st.lists(st.sampled_from(["*", "s"]), max_size=2)
)
CALLERS = st.none() | st.sampled_from([ROLE, OTHER, SESSION, ACCOUNT, "ec2.amazonaws.com"])


@given(st.lists(STATEMENTS, max_size=4), DOCUMENTS, CALLERS, CONTEXTS)
def test_any_policy_has_a_legal_answer(
    statements: list[dict[str, Any]], pcrs: dict[int, bytes], caller: str | None, context: dict[str, list[str]]
) -> None:
    result = answer(*statements, pcrs=pcrs, principal=caller, context=context)
    assert result.allowed is (result.outcome is ALLOWED)
    assert result.verdict and "\n" not in result.verdict
    assert len(result.statements) == len(statements)
    effects = {(each.statement.effect.value, each.holds) for each in result.statements}
    allows = effects & {("Allow", Truth.YES), ("Allow", Truth.UNKNOWN)}
    if ("Deny", Truth.YES) in effects or not allows:
        assert result.outcome is NOT_ALLOWED
    elif not any(holds is Truth.UNKNOWN for _, holds in effects):
        assert result.outcome is ALLOWED
    assert all(finding.statement.effect.value == "Allow" and finding.message for finding in result.findings)


@given(st.lists(STATEMENTS, max_size=3), DOCUMENTS, CALLERS, CONTEXTS)
def test_a_deny_for_everybody_closes_any_policy(
    statements: list[dict[str, Any]], pcrs: dict[int, bytes], caller: str | None, context: dict[str, list[str]]
) -> None:
    result = answer(*statements, deny(), pcrs=pcrs, principal=caller, context=context)
    assert result.outcome is NOT_ALLOWED and not result.findings


@given(st.lists(STATEMENTS, max_size=3), DOCUMENTS, st.sampled_from([ROLE, OTHER]), CONTEXTS)
def test_what_is_decided_stays_so_when_more_is_known(
    statements: list[dict[str, Any]], pcrs: dict[int, bytes], caller: str, context: dict[str, list[str]]
) -> None:
    before = answer(*statements, pcrs=pcrs, principal=caller)
    after = answer(*statements, pcrs=pcrs, principal=caller, context=context)
    assert before.outcome in (UNDECIDED, after.outcome)
    assert before.findings == after.findings
