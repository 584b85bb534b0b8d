"""Selectors: what people write, which exchanges it means, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import NsmError
from enclavedbg.nsm.selector import Counter, Selector, SelectorError, parse_selector
from enclavedbg.nsm.wire import (
    Attestation,
    DescribePCR,
    ErrorAnswer,
    ErrorCode,
    ExtendPCR,
    GetRandom,
    Locked,
    LockPCR,
    Request,
)


def selector(text: str) -> Selector:
    found, between = parse_selector(text.split(), answered=True)
    assert between == []
    return found


@pytest.mark.parametrize(
    ("text", "request_", "fits"),
    [
        ("Attestation", Attestation(), True),
        ("attestation", Attestation(), True),
        ("Attestation", GetRandom(), False),
        ("Attestation", None, False),
        ("LockPCR", LockPCR(1), True),
        ("any", None, True),
        ("*", GetRandom(), True),
        ("ExtendPCR if index == 16", ExtendPCR(16, b""), True),
        ("ExtendPCR if index == 0x10", ExtendPCR(16, b""), True),
        ("ExtendPCR if index=16", ExtendPCR(17, b""), False),
        ("ExtendPCR if index>=16 and index < 18", ExtendPCR(17, b""), True),
        ("ExtendPCR if index>=16 and index < 18", ExtendPCR(18, b""), False),
        ("ExtendPCR if data.size > 3", ExtendPCR(18, b"abcd"), True),
        ("ExtendPCR if data == hex:616263", ExtendPCR(18, b"abc"), True),
        ("ExtendPCR if data contains b", ExtendPCR(18, b"abc"), True),
        ("ExtendPCR if data contains x", ExtendPCR(18, b"abc"), False),
        ("Attestation if nonce == abc", Attestation(nonce=b"abc"), True),
        ("Attestation if nonce == 0x616263", Attestation(nonce=b"abc"), True),
        ("Attestation if nonce == base64:YWJj", Attestation(nonce=b"abc"), True),
        ("Attestation if nonce == text:none", Attestation(nonce=b"none"), True),
        ("Attestation if nonce == none", Attestation(nonce=b"abc"), False),
        ("Attestation if nonce == none", Attestation(), True),
        ("Attestation if nonce != none", Attestation(), False),
        ("Attestation if nonce != abc", Attestation(), True),
        ("Attestation if nonce contains abc", Attestation(), False),
        ("Attestation if nonce.size >= 0", Attestation(), False),
        ("Attestation if user_data == a=b", Attestation(user_data=b"a=b"), True),
    ],
)
def test_what_fits(text: str, request_: Request | None, fits: bool) -> None:
    assert selector(text).fits(request_) is fits


def test_conditions_on_the_answer() -> None:
    refused = selector("LockPCR if error == ReadOnlyIndex")
    assert refused.fits(LockPCR(0), ErrorAnswer(ErrorCode.ReadOnlyIndex))
    assert not refused.fits(LockPCR(0), ErrorAnswer(ErrorCode.InvalidIndex))
    assert not refused.fits(LockPCR(0), Locked("LockPCR"))
    assert selector("any if error != none").fits(None, ErrorAnswer(ErrorCode.InvalidOperation))
    assert not selector("any if error != none").fits(LockPCR(0), Locked("LockPCR"))


def test_the_nth_that_fits() -> None:
    counter = Counter(selector("DescribePCR#2 if index == 5"))
    wanted = [counter.wants(DescribePCR(index)) for index in (5, 4, 5, 5)]
    assert wanted == [False, False, True, False]
    assert counter.seen == 3
    every = Counter(selector("DescribePCR"))
    assert [every.wants(DescribePCR(1)) for _ in range(2)] == [True, True]


def test_words_between_are_given_back_and_the_text_is_kept() -> None:
    found, between = parse_selector(["attestation#3", "delay", "2s", "if", "nonce", "==", "a b"], answered=False)
    assert between == ["delay", "2s"]
    assert (found.kind, found.nth, found.text) == ("Attestation", 3, "Attestation#3 if nonce == a b")
    assert found.fits(Attestation(nonce=b"a b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no request is named"),
        ("Attest", "there is no request 'Attest'"),
        ("Attestation#0", "counted from 1"),
        ("Attestation#x", "there is no request"),
        ("Attestation if", "nothing is no whole condition"),
        ("Attestation if nonce ==", "'nonce ==' is no whole condition"),
        ("Attestation if nonce == a b", "'b' follows a condition"),
        ("Attestation if nonce == a and", "nothing is no whole condition"),
        ("Attestation if index == 1", "no field 'index'; expected one of user_data"),
        ("Attestation if nonce < 5", "cannot be compared with '<'"),
        ("ExtendPCR if index contains 5", "cannot be compared"),
        ("ExtendPCR if index == five", "is a number"),
        ("ExtendPCR if data == hex:5", "expected pairs of hex digits"),
        ("GetRandom if error == Oops", "there is no error 'Oops'"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(NsmError, match=message) as caught:
        parse_selector(text.split(), answered=True)
    assert "\n" not in str(caught.value)


WORDS = st.sampled_from(
    ["Attestation", "ExtendPCR#2", "any", "if", "and", "nonce", "index", "data.size", "error", "==", "<", "contains",
     "none", "16", "hex:00", "0x", "nonce==x", "InvalidIndex", "drop", ""]
)  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=9))
def test_any_words_give_a_selector_or_an_error(words: list[str]) -> None:
    try:
        found, _ = parse_selector(words, answered=True)
    except NsmError:
        return
    for request in (None, Attestation(), Attestation(nonce=b"x"), ExtendPCR(16, b""), GetRandom()):
        assert found.fits(request, ErrorAnswer(ErrorCode.InvalidIndex)) in (True, False)


def test_selector_error_is_the_packages() -> None:
    assert issubclass(SelectorError, NsmError)
