"""Conditions: each operator, missing keys, several values, and what is said of a register that differs."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.nsm.keypolicy.conditions import ConditionResult, judge_condition
from enclavedbg.nsm.keypolicy.operators import glob_matches, parse_operator
from enclavedbg.nsm.keypolicy.parse import Condition
from enclavedbg.nsm.keypolicy.principals import Caller, parse_caller
from enclavedbg.nsm.keypolicy.request import RECIPIENT_ACTIONS, Request
from enclavedbg.nsm.keypolicy.truth import Truth, all_of, any_of

VALUE = bytes.fromhex("ab" * 48)
ROLE = "arn:aws:iam::111122223333:role/path/app"
REGISTERS = {0: VALUE, 1: b"\x11" * 48, 3: bytes(48), 4: hashlib.sha384(bytes(48) + b"i-1").digest(), 8: bytes(48)}
YES, NO, UNKNOWN = Truth.YES, Truth.NO, Truth.UNKNOWN

OPERATORS = [
    *(
        f"String{name}"
        for name in ("Equals", "NotEquals", "EqualsIgnoreCase", "NotEqualsIgnoreCase", "Like", "NotLike")
    ),
    *(f"Arn{name}" for name in ("Equals", "NotEquals", "Like", "NotLike")),
    *(
        f"{kind}{name}"
        for kind in ("Numeric", "Date")
        for name in ("Equals", "NotEquals", "LessThan", "LessThanEquals", "GreaterThan", "GreaterThanEquals")
    ),
    *("Bool", "BinaryEquals", "IpAddress", "NotIpAddress", "Null"),
]


def judge(
    operator: str,
    values: str | list[str],
    found: list[str] | None = None,
    *,
    key: str = "a:key",
    registers: Mapping[int, bytes | None] | None = REGISTERS,
    action: str = "kms:Decrypt",
    caller: Caller | None = None,
    variables: bool = True,
) -> ConditionResult:
    """A condition, for a request with the values found under `a:key`; None is not known."""
    context = {} if found is None else {"a:key": tuple(found)}
    wanted = (values,) if isinstance(values, str) else tuple(values)
    condition = Condition(parse_operator(operator), key, wanted, variables)
    return judge_condition(condition, Request(action, registers, caller, context))


def attested(operator: str, values: str | list[str], key: str = "PCR0", **request: object) -> ConditionResult:
    return judge(operator, values, key=f"kms:RecipientAttestation:{key}", **request)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operator", "wanted", "found", "truth"),
    [
        ("StringEquals", "a", "a", YES),
        ("StringEquals", "a", "A", NO),
        ("StringNotEquals", "a", "A", YES),
        ("StringEqualsIgnoreCase", "a", "A", YES),
        ("StringNotEqualsIgnoreCase", "a", "A", NO),
        ("StringLike", "a*c?", "abbcd", YES),
        ("StringLike", "A*", "abc", NO),
        ("StringNotLike", "a*", "abc", NO),
        ("stringlike", "a*", "abc", YES),
        ("StringEqualsIfExists", "a", "a", YES),
        ("ArnLike", "arn:aws:iam::*:role/*", ROLE, YES),
        ("ArnEquals", "arn:aws:iam::111122223333:role/path/*", ROLE, YES),
        ("ArnLike", "arn:*:role/path/app", ROLE, NO),
        ("ArnNotLike", "arn:*", ROLE, YES),
        ("ArnLike", "arn:aws:iam::444455556666:role/*", ROLE, NO),
        ("ArnLike", "arn:aws:iam::*:role/*", "app", UNKNOWN),
        ("ArnLike", "*", "arn:aws:iam", UNKNOWN),
        ("ArnLike", "*", "a:b:c:d:e:f", UNKNOWN),
        ("NumericEquals", "5", "5.0", YES),
        ("NumericNotEquals", "5", "6", YES),
        ("NumericLessThan", "5", "4", YES),
        ("NumericLessThan", "5", "5", NO),
        ("NumericLessThanEquals", "5", "5", YES),
        ("NumericGreaterThan", "5", "-6", NO),
        ("NumericGreaterThanEquals", "5", "5", YES),
        ("NumericEquals", "five", "5", UNKNOWN),
        ("NumericEquals", "5", "NaN", UNKNOWN),
        ("DateGreaterThan", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", YES),
        ("DateLessThan", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+02:00", YES),
        ("DateEquals", "1767225600", "2026-01-01", YES),
        ("DateEquals", "2026", "2026-01-01", UNKNOWN),
        ("Bool", "true", "TRUE", YES),
        ("Bool", "false", "true", NO),
        ("Bool", "yes", "true", UNKNOWN),
        ("BinaryEquals", "QUI=", "QUI=", YES),
        ("BinaryEquals", "QUI=", "QUM=", NO),
        ("BinaryEquals", "QU", "QUM=", UNKNOWN),
        ("BinaryEquals", "Q U I=", "QUI=", UNKNOWN),
        ("IpAddress", "203.0.113.0/24", "203.0.113.9", YES),
        ("IpAddress", "203.0.113.9", "203.0.113.9", YES),
        ("IpAddress", "203.0.113.77/24", "203.0.113.9", YES),
        ("NotIpAddress", "2001:db8::/32", "2001:db8::1", NO),
        ("IpAddress", "2001:db8::/32", "203.0.113.9", NO),
        ("IpAddress", "everywhere", "203.0.113.9", UNKNOWN),
    ],
)
def test_operators(operator: str, wanted: str, found: str, truth: Truth) -> None:
    result = judge(operator, wanted, [found])
    assert result.truth is truth
    assert result.found == (found,)
    assert bool(result.reason) or truth is YES


def test_values_are_joined_by_or_and_for_negation_by_nor() -> None:
    assert judge("StringEquals", ["a", "b"], ["b"]).truth is YES
    assert judge("StringEquals", ["a", "b"], ["c"]).truth is NO
    assert judge("StringNotEquals", ["a", "b"], ["b"]).truth is NO
    assert judge("StringNotEquals", ["a", "b"], ["c"]).truth is YES
    # One that cannot be compared leaves it open, unless another decides.
    assert judge("NumericEquals", ["x", "5"], ["5"]).truth is YES
    assert judge("NumericEquals", ["x", "5"], ["6"]).truth is UNKNOWN
    assert judge("NumericNotEquals", ["x", "5"], ["5"]).truth is NO
    assert judge("StringEquals", [], ["a"]).truth is NO
    assert judge("StringNotEquals", [], ["a"]).truth is YES


def test_a_missing_key() -> None:
    for operator in OPERATORS:
        if operator == "Null":
            continue
        negated = "Not" in operator
        assert judge(operator, "x", []).truth is Truth.of(negated), operator
        assert judge(f"{operator}IfExists", "x", []).truth is YES, operator
        assert judge(f"ForAllValues:{operator}", "x", []).truth is YES, operator
        assert judge(f"ForAnyValue:{operator}", "x", []).truth is NO, operator
        # Against the letter of the guide: seen on AWS itself.
        assert judge(f"ForAnyValue:{operator}IfExists", "x", []).truth is NO, operator
    assert "no such key" in judge("StringEquals", "x", []).reason


def test_null() -> None:
    assert judge("Null", "true", []).truth is YES
    assert judge("Null", "true", ["a"]).truth is NO
    assert judge("Null", "false", ["a"]).truth is YES
    assert judge("Null", ["True", "false"], []).truth is YES
    assert judge("Null", "true", ["a"]).reason == "the request has the key"
    maybe = judge("Null", "maybe", [])
    assert maybe.truth is UNKNOWN and maybe.reason == "'maybe' is neither true nor false"
    assert judge("Null", "true").truth is UNKNOWN


def test_a_key_that_is_not_known_is_not_guessed() -> None:
    for operator in OPERATORS:
        for form in (operator, f"ForAnyValue:{operator}", f"ForAllValues:{operator}"):
            result = judge(form, "*")
            assert (result.truth, result.found) == (UNKNOWN, None)
            assert result.reason == "the request's value is not known here"


def test_an_attestation_key_that_is_mistyped() -> None:
    for key in ("kms:RecipientAttestaton:PCR0", "kms:recipientattestations:PCR0", "kms:ReceipientAttestation:PCR0"):
        lookup = Request("kms:Decrypt", {}, None, {}).look_up(key)
        assert lookup.values is None and lookup.note.endswith(" (did you mean kms:RecipientAttestation:PCR0?)")
    assert "did you mean" not in Request("kms:Decrypt", {}, None, {}).look_up("kms:EncryptionContext:PCR0").note


def test_several_values_in_the_request() -> None:
    assert judge("StringEquals", "a", ["a", "b"]).truth is UNKNOWN
    assert judge("ForAnyValue:StringEquals", "a", ["a", "b"]).truth is YES
    assert judge("ForAnyValue:StringEquals", "c", ["a", "b"]).truth is NO
    assert judge("ForAllValues:StringEquals", ["a", "b"], ["a", "b"]).truth is YES
    assert judge("ForAllValues:StringEquals", "a", ["a", "b"]).truth is NO
    assert judge("ForAnyValue:StringNotEquals", "a", ["a", "b"]).truth is YES
    assert judge("ForAllValues:StringNotEquals", "a", ["a", "b"]).truth is NO


def test_policy_variables() -> None:
    assert judge("StringEquals", "${aws:username}", ["bob"]).truth is UNKNOWN
    assert judge("StringNotEquals", ["${aws:username}", "bob"], ["bob"]).truth is NO
    assert judge("StringEquals", "${x}", ["${x}"], variables=False).truth is YES


def test_keys_that_follow_from_the_caller() -> None:
    role, session = parse_caller(ROLE), parse_caller("arn:aws:sts::111122223333:assumed-role/app/i-1")
    for caller in (role, session):
        assert judge("StringEquals", "111122223333", key="aws:principalaccount", caller=caller).truth is YES
        assert judge("StringEquals", "444455556666", key="kms:CallerAccount", caller=caller).truth is NO
    assert judge("ArnLike", ROLE, key="aws:PrincipalArn", caller=role).truth is YES
    # A session does not say its role's path.
    assert judge("ArnLike", ROLE, key="aws:PrincipalArn", caller=session).truth is UNKNOWN
    assert judge("StringEquals", "x", key="aws:PrincipalAccount").truth is UNKNOWN


# The keys of attestation.


def test_registers_by_their_keys() -> None:
    value = VALUE.hex()
    for key in ("PCR0", "ImageSha384", "pcr0", "imagesha384"):
        assert attested("StringEquals", value, key).truth is YES
    assert judge("StringEquals", value, key="KMS:recipientattestation:PCR0").truth is YES
    assert attested("StringEquals", value, "PCR1").truth is NO
    assert attested("StringLike", "ab*", "PCR0").truth is YES
    assert attested("Null", "false", "PCR0").truth is YES


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("PCR20", "the document has no PCR20: it holds locked registers only"),
        ("PCR32", "KMS has no such key; there are ImageSha384 and PCR0 to PCR31"),
        ("PCR00", "KMS has no such key"),
        ("ImageSha256", "KMS has no such key"),
        ("NitroTPMPCR4", "it is for NitroTPM"),
    ],
)
def test_registers_that_are_missing(key: str, why: str) -> None:
    for operator, truth in (("StringEquals", NO), ("StringNotEquals", YES), ("StringEqualsIfExists", YES)):
        result = attested(operator, VALUE.hex(), key)
        assert (result.truth, result.found) == (truth, ())
        assert why in result.reason
    assert attested("Null", "true", key).truth is YES


def test_there_may_be_no_document() -> None:
    assert "no attestation document" in attested("StringEquals", VALUE.hex(), registers=None).reason
    result = attested("StringEquals", VALUE.hex(), action="kms:Sign")
    assert result.truth is NO and "kms:Sign takes no attestation document" in result.reason
    for action in RECIPIENT_ACTIONS:
        assert attested("StringEquals", VALUE.hex(), action=action.lower()).truth is YES
    assert judge("StringEquals", "x", key="kms:RecipientAttestation").truth is NO


def test_a_register_is_text() -> None:
    for operator in OPERATORS:
        if not operator.startswith("String") and operator != "Null":
            result = attested(operator, "5")
            assert result.truth is UNKNOWN and "not documented" in result.reason


@pytest.mark.parametrize(
    ("operator", "key", "wanted", "hint"),
    [
        ("StringEquals", "PCR0", VALUE.hex().upper(), "equal but for upper case: write it in lower case, or use"),
        ("StringLike", "PCR0", VALUE.hex().upper(), "equal but for upper case"),
        ("StringEqualsIgnoreCase", "PCR0", "0x" + VALUE.hex(), "equal but for 0x"),
        ("StringEquals", "PCR0", f"{VALUE.hex()}\n", "equal but for white space, separators or a name"),
        ("StringEquals", "PCR0", VALUE.hex(":").upper(), "equal but for white space, separators or a name"),
        ("StringEquals", "PCR0", f"sha384:{VALUE.hex()}", "equal but for white space, separators or a name"),
        ("StringEquals", "PCR0", "ab" * 32, "64 hexadecimal digits; a PCR has 96"),
        ("StringEquals", "PCR0", "ab*", "* and ? are wildcards in StringLike only"),
        ("StringLike", "PCR0", "abc*", ""),
        ("StringEquals", "PCR0", "<PCR0>", "not hexadecimal digits; KMS gives 96 of them"),
        ("StringEquals", "PCR0", "", "not hexadecimal digits"),
        ("StringEquals", "PCR0", base64.b64encode(VALUE).decode(), "the document's value in base64"),
        ("StringEquals", "PCR0", "11" * 48, "this is the document's PCR1"),
        ("StringEquals", "PCR0", "00" * 48, "all zeros, as a debug-mode enclave has"),
        ("StringEquals", "PCR1", "00" * 48, "all zeros, as a debug-mode enclave has"),
        ("StringEquals", "PCR4", "00" * 48, "all zeros"),
        ("StringEquals", "PCR4", "i-1", "PCR4 is a hash of the instance id: SHA-384 of 48 zero bytes and it, and here"),
        ("StringEquals", "PCR3", ROLE, "PCR3 is a hash of the role ARN: SHA-384 of 48 zero bytes and it"),
        ("StringEquals", "PCR3", "role", "not hexadecimal digits"),
        ("StringEquals", "PCR0", ROLE, "not hexadecimal digits"),
        ("StringEquals", "PCR0", "00" + "cd" * 47, ""),
        ("StringEquals", "PCR0", "cd" * 48, ""),
    ],
)
def test_what_is_wrong_with_a_value(operator: str, key: str, wanted: str, hint: str) -> None:
    result = attested(operator, ["ee" * 48, wanted], key)
    assert result.truth is NO
    first, second = result.hints
    assert first == ""
    assert second.startswith(hint) and bool(second) is bool(hint)
    negated = attested(operator.replace("String", "StringNot"), ["ee" * 48, wanted], key)
    assert negated.truth is YES and negated.hints[1].startswith(hint)


def test_a_digest_that_is_not_extended() -> None:
    certificate = hashlib.sha384(b"certificate").digest()
    registers = {8: hashlib.sha384(bytes(48) + certificate).digest()}
    assert "not yet extended" in attested("StringEquals", certificate.hex(), "PCR8", registers=registers).hints[0]


def test_zeros_of_the_document() -> None:
    debug = {0: bytes(48), 1: bytes(48), 2: bytes(48), 3: b"\x33" * 48, 8: bytes(48)}
    for key in ("PCR0", "ImageSha384", "PCR1", "PCR2", "PCR8"):
        result = attested("StringEquals", VALUE.hex(), key, registers=debug)
        assert result.debug_mode and "the enclave ran in debug mode" in result.reason
    assert not attested("StringEquals", VALUE.hex(), "PCR3", registers=debug).debug_mode
    # One register of the image is enough, and a zero byte is not.
    for registers, debug_mode in (({0: bytes(48), 1: VALUE}, True), ({0: b"\0" + bytes([1] * 47), 1: VALUE}, False)):
        assert attested("StringEquals", VALUE.hex(), registers=registers).debug_mode is debug_mode
    for key, meaning in (("PCR3", "no IAM role"), ("PCR8", "not signed")):
        result = attested("StringEquals", VALUE.hex(), key)
        assert not result.debug_mode and meaning in result.reason


def test_image_sha384_is_explained_when_nothing_else_is() -> None:
    assert "not the SHA-384 of the image file" in attested("StringEquals", "cd" * 48, "ImageSha384").reason
    for values, key in ((["cd" * 48], "PCR0"), (["cd" * 48, "0x00"], "ImageSha384")):
        assert attested("StringEquals", values, key).reason == "the values differ"


# Operators and truths for themselves.


def test_operators_by_name() -> None:
    for name in OPERATORS:
        assert parse_operator(name.upper()).name == name
    operator = parse_operator("foranyvalue:stringlikeifexists")
    assert operator.quantifier is not None and operator.if_exists and operator.name == "StringLike"
    for name in ("", "String", "StringEqualsIfExistsIfExists", "ForAllValues:", ":StringEquals", "x" * 9999):
        with pytest.raises(ValueError, match="there is no condition operator"):
            parse_operator(name)


@given(st.text(alphabet="ab*?", max_size=8), st.text(alphabet="ab", max_size=8))
def test_wildcards_by_their_definition(pattern: str, text: str) -> None:
    def matches(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(matches(pattern[1:], text[skipped:]) for skipped in range(len(text) + 1))
        return bool(text) and pattern[0] in ("?", text[0]) and matches(pattern[1:], text[1:])

    assert glob_matches(pattern, text) is matches(pattern, text)


def test_wildcards_are_quick() -> None:
    assert not glob_matches("*a" * 5000 + "b", "a" * 6000)


def test_truths() -> None:
    for truths in itertools.product(Truth, repeat=2):
        assert any_of(truths) is ~all_of(~truth for truth in truths)
        assert all_of(truths) is all_of(reversed(truths))
    assert all_of([]) is YES and any_of([]) is NO
    assert all_of([UNKNOWN, NO]) is NO and any_of([UNKNOWN, NO]) is UNKNOWN


TEXTS = st.sampled_from(
    ["true", "5", "1e5", "2026-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "10.0.0.1", "::/0",
     "QUI=", ROLE, "arn:::::", VALUE.hex(), "${x}", "*", "\ud800"]
) | st.text(max_size=20)  # fmt: skip


@given(
    st.sampled_from(OPERATORS),
    st.sampled_from(["", "ForAnyValue:", "ForAllValues:"]),
    st.booleans(),
    st.lists(TEXTS, max_size=3),
    st.none() | st.lists(TEXTS, max_size=3),
    st.sampled_from(["a:key", "kms:RecipientAttestation:PCR0", "kms:RecipientAttestation:PCR9"]),
)
def test_any_condition(
    name: str, prefix: str, if_exists: bool, wanted: list[str], found: list[str] | None, key: str
) -> None:
    operator = f"{prefix}{name}{'IfExists' if if_exists and name != 'Null' else ''}"
    result = judge(operator, wanted, found, key=key)
    assert result.truth is not UNKNOWN or result.reason
    assert not result.hints or len(result.hints) == len(wanted)
    # A negated operator says the opposite of its own, as long as the key is there and has one value.
    if "Not" in name and not prefix and found and len(found) == 1 and key == "a:key":
        assert judge(operator.replace("Not", ""), wanted, found).truth is ~result.truth


GLOBS = st.text("ab*?", max_size=7)


@given(GLOBS, st.text("ab\n", max_size=8))
def test_stars_and_question_marks(pattern: str, text: str) -> None:
    wanted = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    assert glob_matches(pattern, text) == (re.fullmatch(wanted, text, re.DOTALL) is not None)


def test_a_pattern_longer_than_the_text_is_not_even_compiled() -> None:
    pattern = "*".join("ab" * 16_000)
    assert not glob_matches(pattern, "ab")
    assert glob_matches("*" * 32_000 + "ab", "ab")
