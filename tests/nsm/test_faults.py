"""Faults on demand: how they are written, and what the module does then."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import NsmError
from enclavedbg.nsm.events import NsmEvent, NsmExchange
from enclavedbg.nsm.faults import Effects, FaultTable, parse_fault
from enclavedbg.nsm.wire import (
    Attestation,
    DescribePCR,
    ErrorCode,
    ExtendPCR,
    GetRandom,
    LockPCR,
    Request,
    encode_request,
)
from tests.nsm.support import make_module

CAPACITY = 0x3000


@pytest.mark.parametrize(
    ("text", "effects"),
    [
        ("Attestation error InternalError", Effects(error=ErrorCode.InternalError, text="error InternalError")),
        ("Attestation:error:InternalError", Effects(error=ErrorCode.InternalError, text="error InternalError")),
        ("GetRandom#3 drop", Effects(drop=True, text="drop")),
        ("any delay 1.5s", Effects(delay_ns=1_500_000_000, text="delay 1.5s")),
        ("LockPCR:cut:0", Effects(cut=0, text="cut 0")),
        ("LockPCR:cut:0 if index == 20", Effects(cut=0, text="cut 0")),
    ],
)
def test_forms(text: str, effects: Effects) -> None:
    assert parse_fault(text).effects == effects


def test_a_fault_is_shown_as_it_can_be_typed() -> None:
    for text in ("Attestation#2 error InternalError if nonce == abc", "any drop", "GetRandom delay 2s"):
        assert str(parse_fault(text)) == text
        assert parse_fault(str(parse_fault(text))) == parse_fault(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no request is named"),
        ("Attestation", "nothing to do to the request is named; expected error NAME, delay TIME, drop or cut BYTES"),
        ("Attestation explode", "is nothing to do to a request"),
        ("Attestation error", "expected error with one of InvalidArgument"),
        ("Attestation error Oops", "expected error with one of"),
        ("Attestation delay", "is nothing to do"),
        ("Attestation delay soon", "is no time"),
        ("Attestation delay 25h", "expected a nanosecond to 24h"),
        ("Attestation delay 0.0000001ms", "expected a nanosecond to 24h"),
        ("Attestation cut " + "1" * 5000, "the number of bytes"),
        ("Attestation cut \u00b2", "the number of bytes"),
        ("Attestation cut -1", "the number of bytes"),
        ("Attestation cut 12288", "the number of bytes"),
        ("Attestation drop twice", "is nothing to do"),
        ("Attestation 'drop", "no closing quotation"),
        ("Attestation drop if error == none", "no field 'error'; only an answer has one"),
        ("any drop if nonce == none", "it has none to compare; name another request"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(NsmError, match=message) as caught:
        parse_fault(text)
    assert "\n" not in str(caught.value)


def answers(fault: str, *requests: Request) -> list[object]:
    """What a module with this fault answers; bytes that are no CBOR as they are."""
    module = make_module()
    module.faults.add(parse_fault(fault))
    found: list[object] = []
    for request in requests:
        answer = module.handle(encode_request(request), CAPACITY)
        try:
            found.append(None if answer is None else cbor2.loads(answer))
        except cbor2.CBORDecodeError:
            found.append(answer)
    return found


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_can_be_had(code: ErrorCode) -> None:
    assert answers(f"LockPCR error {code.name}", LockPCR(20)) == [{"Error": code.name}]


def test_an_injected_error_leaves_the_registers_alone() -> None:
    first, second = answers("ExtendPCR#1 error InternalError", ExtendPCR(16, b"\1\2\3"), ExtendPCR(16, b"\1\2\3"))
    assert first == {"Error": "InternalError"}
    assert isinstance(second, dict)
    assert second["ExtendPCR"]["data"].hex().startswith("cb178fcd"), "as if extended for the first time"


def test_the_nth_request_of_a_kind_alone() -> None:
    asked = (LockPCR(20), GetRandom(), LockPCR(21), LockPCR(22))
    found = answers("LockPCR#2 error InternalError", *asked)
    assert found[0] == "LockPCR"
    assert found[2:] == [{"Error": "InternalError"}, "LockPCR"]


def test_conditions() -> None:
    found = answers("DescribePCR error InternalError if index == 5", DescribePCR(4), DescribePCR(5))
    assert found[0] != {"Error": "InternalError"}
    assert found[1] == {"Error": "InternalError"}


def test_dropped_and_cut() -> None:
    assert answers("LockPCR drop", LockPCR(20)) == [None]
    assert answers("LockPCR cut 3", LockPCR(20)) == [b"gLo"]
    assert answers("LockPCR cut 0", LockPCR(20)) == [b""]


def test_events_say_what_the_fault_did() -> None:
    events: list[NsmEvent] = []
    module = make_module(emit=events.append)
    module.faults.add(parse_fault("LockPCR#1 drop"))
    module.faults.add(parse_fault("GetRandom cut 3"))
    module.faults.add(parse_fault("Attestation error InternalError"))
    for request in (LockPCR(20), GetRandom(), Attestation(), DescribePCR(0)):
        module.handle(encode_request(request), CAPACITY)
    dropped, cut, error, plain = [event for event in events if isinstance(event, NsmExchange)]
    assert dropped.response is None
    assert dropped.summary().startswith("LockPCR index=20 -> no answer, ")
    assert dropped.summary().endswith(" ms [fault: drop]")
    assert (cut.response_size, cut.fault) == (3, "cut 3")
    assert (error.error, error.fault) == ("InternalError", "error InternalError")
    assert plain.fault == ""
    assert "fault" not in plain.summary()


def test_several_faults_for_one_request() -> None:
    table = FaultTable()
    for text in ("LockPCR delay 1s", "LockPCR cut 4", "any delay 2s", "LockPCR drop"):
        table.add(parse_fault(text))
    text = "delay 1s, delay 2s, cut 4"
    assert table.effects(LockPCR(20)) == Effects(delay_ns=3_000_000_000, cut=4, text=text, delayed_by=frozenset({1, 3}))


def test_table() -> None:
    table = FaultTable()
    removed: list[int] = []
    table.on_remove = removed.append
    one, two = table.add(parse_fault("LockPCR drop")), table.add(parse_fault("any#5 drop"))
    table.effects(LockPCR(20))
    assert [(n, str(f), seen) for n, f, seen in table.listing()] == [(1, "LockPCR drop", 1), (2, "any#5 drop", 1)]
    assert str(table.remove(one)) == "LockPCR drop"
    assert table.remove(one) is None
    assert table.effects(LockPCR(20)) == Effects()
    assert table.remove(two) is not None
    assert removed == [1, 2]
    assert table.add(parse_fault("any drop")) == 3, "a number is never used twice"


KINDS = st.sampled_from(["Attestation", "any", "GetRandom#2", "ExtendPCR#0", "LockPCR"])
ACTIONS = st.one_of(
    st.sampled_from(["drop", "error InternalError", "error x", "delay 1s", "cut"]),
    st.builds("delay {}{}".format, st.floats(0, 1e12, allow_nan=False), st.sampled_from(["", "ms", "h", "x"])),
    st.builds("cut {}".format, st.one_of(st.integers(), st.text("0123456789\u00b2", max_size=5000))),
)
CONDITIONS = st.sampled_from(["", " if index == 5", " if data contains x", " if nonce == none", " if"])


@given(st.builds("{} {}{}".format, KINDS, ACTIONS, CONDITIONS))
def test_any_fault_of_the_right_form_is_one_or_an_error(text: str) -> None:
    try:
        fault = parse_fault(text)
    except NsmError as error:
        assert "\n" not in str(error)
    else:
        effects = fault.effects
        assert effects.drop or effects.error or effects.delay_ns > 0 or effects.cut is not None


@given(st.text(max_size=40))
def test_any_text_gives_a_fault_or_an_error(text: str) -> None:
    try:
        fault = parse_fault(text)
    except NsmError as error:
        assert "\n" not in str(error).replace(text, "")
    else:
        assert parse_fault(str(fault)) == fault
