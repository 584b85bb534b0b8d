"""Key policies from JSON: what is read, and what is refused, with the place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.nsm.keypolicy import Effect, KeyPolicy, PolicyError, Statement, parse_policy
from enclavedbg.nsm.keypolicy.parse import POLICY_LIMIT, Patterns, PrincipalKind, Principals
from enclavedbg.nsm.keypolicy.strictjson import DEPTH_LIMIT, TEXT_LIMIT

ROLE = "arn:aws:iam::111122223333:role/app"
STATEMENT = {"Effect": "Allow", "Principal": {"AWS": ROLE}, "Action": "kms:Decrypt", "Resource": "*"}


def policy(*statements: object, **elements: object) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements), **elements})


def only(**elements: object) -> Statement:
    (statement,) = parse_policy(policy({**STATEMENT, **elements})).statements
    return statement


def without(name: str) -> dict[str, Any]:
    return {element: value for element, value in STATEMENT.items() if element != name}


def refused(data: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_policy(data)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_a_statement() -> None:
    read = only(
        Sid="Use it", Action=["kms:Decrypt", "kms:Generate*"], Condition={"Bool": {"aws:SecureTransport": True}}
    )
    assert (read.number, read.title, read.sid, read.effect) == (1, "statement 'Use it'", "Use it", Effect.ALLOW)
    assert read.principals == Principals(False, ((PrincipalKind.AWS, ROLE),))
    assert read.actions == Patterns(False, ("kms:Decrypt", "kms:Generate*"))
    assert read.resources == Patterns(False, ("*",))
    (condition,) = read.conditions
    assert (condition.operator.name, condition.key, condition.values) == ("Bool", "aws:SecureTransport", ("true",))
    assert condition.variables


def test_numbers_and_booleans_are_text_as_written() -> None:
    values = only(Condition={"NumericEquals": {"a:b": [1, 2.50, "3", False]}}).conditions[0].values
    assert values == ("1", "2.5", "3", "false")
    text = policy({**STATEMENT, "Condition": {"NumericEquals": {"a:b": 7}}}).replace("7}", "1.50e3}")
    assert parse_policy(text).statements[0].conditions[0].values == ("1.50e3",)
    huge = text.replace("1.50e3", "1" * 5000)
    assert parse_policy(huge).statements[0].conditions[0].values == ("1" * 5000,)


def test_forms_of_principals() -> None:
    assert only(Principal="*").principals == Principals(False, ((PrincipalKind.AWS, "*"),))
    assert only(Principal={"AWS": "*"}).principals == only(Principal="*").principals
    several = only(
        Principal={"Service": ["a.amazonaws.com"], "AWS": [ROLE, "111122223333"], "Federated": "f"}
    ).principals
    assert [name for _, name in several.named] == ["a.amazonaws.com", ROLE, "111122223333", "f"]
    negated = parse_policy(policy({**without("Principal"), "NotPrincipal": {"AWS": ROLE}})).statements[0]
    assert negated.principals.negated


def test_titles() -> None:
    read = parse_policy(
        policy(STATEMENT, {**STATEMENT, "Sid": "x"}, {**STATEMENT, "Sid": "x"}, {**STATEMENT, "Sid": ""})
    )
    # A Sid that two have names neither.
    assert [s.title for s in read.statements] == ["statement 1", "statement 2", "statement 3", "statement 4"]
    assert [s.sid for s in read.statements] == [None, "x", "x", None]


def test_one_statement_needs_no_list_and_no_version() -> None:
    read = parse_policy(json.dumps({"Statement": STATEMENT}))
    assert read.version == "2008-10-17" and len(read.statements) == 1
    assert parse_policy(json.dumps({"Statement": []})).statements == ()


def test_what_get_key_policy_prints() -> None:
    bare = policy(STATEMENT)
    assert parse_policy(json.dumps({"Policy": bare, "PolicyName": "default"}, indent=4)) == parse_policy(bare)
    assert parse_policy(json.dumps({"Policy": json.loads(bare)})) == parse_policy(bare)
    assert parse_policy(json.dumps(bare, indent=4)) == parse_policy(bare), "with --query Policy"
    assert refused(json.dumps({"Policy": "{"})).startswith("Policy: not JSON: ")
    assert refused(json.dumps({"Policy": None})) == "the policy: expected an object, found null"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(encoding: str) -> None:
    assert parse_policy(policy(STATEMENT).encode(encoding)) == parse_policy(policy(STATEMENT))


def test_statements_without_action_or_resource_are_read() -> None:
    """KMS takes them, and ignores them."""
    assert parse_policy(policy(without("Action"))).statements[0].actions is None
    assert parse_policy(policy(without("Resource"))).statements[0].resources is None


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Effect": "allow"}, "Statement[0].Effect: found 'allow', expected Allow or Deny"),
        ({"Effect": None}, "Statement[0].Effect: expected text, found null"),
        ({"Sid": 1}, "Statement[0].Sid: expected text, found a number"),
        ({"Actions": "kms:*"}, "Statement[0]: there is no element 'Actions'; expected Sid, Effect"),
        ({"NotAction": "kms:*"}, "Statement[0]: both Action and NotAction, expected one of them"),
        ({"Action": ["kms:*", "Decrypt"]}, "Statement[0].Action[1]: 'Decrypt' names no service"),
        ({"Action": [["kms:*"]]}, "Statement[0].Action[0]: expected text, found a list"),
        ({"Principal": ROLE}, f"Statement[0].Principal: found the text '{ROLE}', expected \"*\" or an object"),
        ({"Principal": {"aws": "*"}}, "Statement[0].Principal: there is no element 'aws'; expected AWS, Service"),
        ({"Principal": {"AWS": [1]}}, "Statement[0].Principal.AWS[0]: expected text, found a number"),
        ({"Condition": []}, "Statement[0].Condition: expected an object, found a list"),
        ({"Condition": {"StringEqual": {}}}, "Statement[0].Condition: there is no condition operator 'StringEqual'"),
        ({"Condition": {"NullIfExists": {}}}, "Statement[0].Condition: there is no condition operator 'NullIfExists'"),
        ({"Condition": {"ForSome:Bool": {}}}, "Statement[0].Condition: there is no condition operator 'ForSome:Bool'"),
        ({"Condition": {"Bool": True}}, "Statement[0].Condition.Bool: expected an object, found true"),
        ({"Condition": {"Bool": {"": True}}}, "Statement[0].Condition.Bool: a condition key without a name"),
        ({"Condition": {"Bool": {"a": [None]}}}, "Statement[0].Condition.Bool['a'][0]: expected text, a number"),
        ({"Condition": {"Bool": {"\x1b": {}}}}, r"Statement[0].Condition.Bool['\x1b']: expected text, a number"),
    ],
)
def test_errors_say_where(elements: dict[str, object], message: str) -> None:
    assert refused(policy({**STATEMENT, **elements})).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing there; expected a key policy in JSON"),
        ("[]", "the policy: expected an object, found a list"),
        ("{}", "the policy: no Statement; is it a key policy?"),
        ('{"Statement":[]', "not JSON: Expecting ',' delimiter (line 1, column 16)"),
        ('{"Statement":[NaN]}', "not JSON: NaN is no value"),
        ('{"Version":"2012-10-18","Statement":[]}', "Version: found '2012-10-18', expected 2008-10-17 or 2012-10-17"),
        ('{"Statement":[],"Statement":[]}', "the policy: 'Statement' is there twice; IAM refuses that"),
        ('{"Statement":[{"Effect":"Allow","Effect":"Deny"}]}', "Statement[0]: 'Effect' is there twice"),
        ('{"Statement":{"Effect":"Allow"}}', "Statement: no Principal; a key policy must have one (an IAM"),
        ("[" * 100_000, f"objects and lists 100000 deep, expected at most {DEPTH_LIMIT}"),
        ('{"Statement":' + "[" * 17 + "]" * 17 + "}", "objects and lists 18 deep"),
        ("\ufeff[1]x", "not JSON: Extra data (line 1, column 4)"),
        ("x" * (TEXT_LIMIT + 1), f"a policy of {TEXT_LIMIT + 1} bytes, expected at most {TEXT_LIMIT}"),
    ],
)  # fmt: skip
def test_no_policy(text: str, message: str) -> None:
    assert refused(text).startswith(message)


def test_condition_keys_given_twice() -> None:
    text = policy({**STATEMENT, "Condition": {"Bool": {"a": 1, "b": 2}}}).replace('"b"', '"a"')
    assert refused(text) == "Statement[0].Condition.Bool: 'a' is there twice; IAM refuses that"


def test_bytes_that_are_no_text() -> None:
    assert refused(b"\x84\x44\xa1\x01") == "not text (byte 0); expected a key policy in JSON"


def test_size_is_without_white_space_as_kms_has_it() -> None:
    statement = {**STATEMENT, "Sid": "s" * (POLICY_LIMIT - 300)}
    assert parse_policy(json.dumps({"Statement": [statement]}, indent=400)).statements
    statement["Sid"] = "white space counts here: " + " " * POLICY_LIMIT
    assert "KMS takes at most 32768" in refused(policy(statement))


def test_brackets_in_text_are_not_depth() -> None:
    assert only(Sid="[{" * 50 + '\\"[').sid is not None


WORDS = st.sampled_from(
    ["Version", "Statement", "Effect", "Allow", "Principal", "AWS", "*", "Action", "kms:*", "Resource", "Condition",
     "Bool", "StringEquals", "Policy", "Sid", "2012-10-17", "\ud800", "\x00", "ForAnyValue:StringLike"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4),
)


def parsed_or_refused(data: str | bytes) -> None:
    try:
        assert isinstance(parse_policy(data), KeyPolicy)
    except PolicyError as error:
        assert str(error).isprintable()


@given(VALUES | st.fixed_dictionaries({"Statement": VALUES}))
def test_any_json(value: object) -> None:
    parsed_or_refused(json.dumps(value))
    parsed_or_refused(json.dumps({"Policy": json.dumps(value)}))


@given(
    st.dictionaries(st.sampled_from([*STATEMENT, "Condition", "NotAction"]), VALUES, max_size=3).map(
        lambda changes: {**STATEMENT, **changes}
    )
)
def test_any_change_of_a_statement(statement: dict[str, object]) -> None:
    parsed_or_refused(policy(statement))


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ aé0-', max_size=60).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    parsed_or_refused(data)


@given(st.data())
def test_any_damage(data: st.DataObject) -> None:
    text = policy({**STATEMENT, "Condition": {"StringEquals": {"kms:RecipientAttestation:PCR0": ["00", "11"]}}})
    at = data.draw(st.integers(0, len(text)))
    parsed_or_refused(text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 9)) :])
