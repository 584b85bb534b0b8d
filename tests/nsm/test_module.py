"""The secure module: every request, every error, any bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import NsmError
from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.document import MapEncoding
from enclavedbg.nsm.events import NsmEvent, NsmExchange, NsmRequest, PcrChange
from enclavedbg.nsm.module import SecureModule, make_module_id
from enclavedbg.nsm.pcr import ZERO
from enclavedbg.nsm.reading import decode_document
from enclavedbg.nsm.wire import (
    Attestation,
    DescribeNSM,
    DescribePCR,
    ErrorCode,
    ExtendPCR,
    GetRandom,
    LockPCR,
    LockPCRs,
    NsmRequestError,
    Request,
    encode_request,
)
from tests.nsm.support import MODULE_ID, PCR0, START, believed, entropy, make_module, shared_authority

CAPACITY = 0x3000


def ask(module: SecureModule, request: Request, capacity: int = CAPACITY) -> object:
    return cbor2.loads(module.handle(encode_request(request), capacity))


def test_describe_nsm() -> None:
    assert ask(make_module(), DescribeNSM()) == {
        "DescribeNSM": {
            "version_major": 1,
            "version_minor": 0,
            "version_patch": 0,
            "module_id": MODULE_ID,
            "max_pcrs": 32,
            "locked_pcrs": list(range(16)),
            "digest": "SHA384",
        }
    }


def test_get_random_has_the_form_that_linux_compares() -> None:
    module = make_module()
    answers = {module.handle(b"iGetRandom", CAPACITY) for _ in range(3)}
    assert len(answers) == 3
    for answer in answers:
        assert len(answer) == 278
        assert answer[:22].hex() == "a16947657452616e646f6da16672616e646f6d590100"


def test_registers() -> None:
    module = make_module()
    assert ask(module, DescribePCR(0)) == {"DescribePCR": {"lock": True, "data": PCR0}}
    assert ask(module, DescribePCR(16)) == {"DescribePCR": {"lock": False, "data": ZERO}}
    value = module.bank.describe(16)[1]
    assert ask(module, ExtendPCR(16, b"")) != {"ExtendPCR": {"data": value}}
    assert ask(module, LockPCR(16)) == "LockPCR"
    assert ask(module, LockPCRs(20)) == "LockPCRs"
    assert ask(module, LockPCRs(20)) == "LockPCRs"
    assert module.describe().locked_pcrs == tuple(range(20))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (DescribePCR(32), "InvalidIndex"),
        (ExtendPCR(32, b""), "InvalidIndex"),
        (LockPCR(32), "InvalidIndex"),
        (LockPCRs(33), "InvalidIndex"),
        (ExtendPCR(0, b"x"), "ReadOnlyIndex"),
        (LockPCR(15), "ReadOnlyIndex"),
        (Attestation(nonce=bytes(1025)), "InputTooLarge"),
        (Attestation(user_data=bytes(1025)), "InputTooLarge"),
        (Attestation(public_key=bytes(1025)), "InputTooLarge"),
        (ExtendPCR(16, bytes(4090)), "InputTooLarge"),
    ],
)
def test_errors(request_: Request, error: str) -> None:
    events: list[NsmEvent] = []
    assert ask(make_module(emit=events.append), request_) == {"Error": error}
    asked, event = events
    assert isinstance(asked, NsmRequest)
    assert isinstance(event, NsmExchange)
    assert event.error == error
    assert event.reason


def test_attestation_takes_1024_bytes_in_each_field() -> None:
    module = make_module()
    answer = ask(module, Attestation(b"u" * 1024, b"n" * 1024, b"k" * 1024))
    assert isinstance(answer, dict)
    document = decode_document(answer["Attestation"]["document"])
    assert (document.user_data, document.nonce, document.public_key) == (b"u" * 1024, b"n" * 1024, b"k" * 1024)


def test_attestation_holds_all_locked_registers() -> None:
    module = make_module()
    ask(module, ExtendPCR(20, b"x"))
    ask(module, LockPCR(20))
    ask(module, ExtendPCR(21, b"x"))
    document = module.attest()
    verified = believed(document, root=shared_authority().root())
    assert list(verified.pcrs) == [*range(16), 20]
    assert verified.pcrs[20] == module.bank.describe(20)[1]


def test_answer_that_does_not_fit() -> None:
    module = make_module()
    assert ask(module, GetRandom(), 278) != {"Error": "BufferTooSmall"}
    assert ask(module, GetRandom(), 277) == {"Error": "BufferTooSmall"}
    assert ask(module, Attestation(), 4096) == {"Error": "BufferTooSmall"}
    assert ask(module, DescribePCR(99), 20) == {"Error": "InvalidIndex"}
    assert ask(module, GetRandom(), 22) == {"Error": "BufferTooSmall"}
    assert module.handle(b"iGetRandom", 21) == b""
    assert module.handle(b"iGetRandom", 0) == b""


def test_debug_mode_zeroes_what_identifies_the_image() -> None:
    values = {index: bytes([index + 1]) * 48 for index in (0, 1, 2, 3, 4, 8)}
    module = make_module(debug_mode=True, measurements=values)
    found = [module.bank.describe(index)[1] for index in range(10)]
    assert [value != ZERO for value in found] == [False, False, False, True, True, False, False, False, False, False]
    assert list(decode_document(module.attest()).pcrs) == list(range(16))


def test_state_survives_save_and_load() -> None:
    module = make_module()
    ask(module, ExtendPCR(16, b"x"))
    other = make_module()
    other.load(module.save())
    assert ask(other, DescribePCR(16)) == ask(module, DescribePCR(16))


def test_events_tell_what_happened() -> None:
    events: list[NsmEvent] = []
    module = make_module(emit=events.append)
    ask(module, ExtendPCR(16, b"secret"))
    ask(module, LockPCRs(18))
    ask(module, Attestation(nonce=b"secret"))
    module.handle(b"\xff", CAPACITY)
    kinds = [event.kind.removeprefix("nsm.") for event in events]
    exchange = ["request", "exchange"]
    assert kinds == ["request", "pcr", "exchange", "request", "pcr", "pcr", "exchange", *exchange, *exchange]
    asked = [event for event in events if isinstance(event, NsmRequest)]
    assert [event.summary() for event in asked[2:]] == [
        "Attestation user_data=none nonce=6 bytes public_key=none",
        "1 bytes",
    ]
    assert [event.name for event in asked] == ["ExtendPCR", "LockPCRs", "Attestation", "?"]
    changes = [event for event in events if isinstance(event, PcrChange)]
    assert [(change.index, change.action) for change in changes] == [(16, "extended"), (16, "locked"), (17, "locked")]
    assert changes[0].value == module.bank.describe(16)[1]
    extend, lock, attest, rubbish = [event for event in events if isinstance(event, NsmExchange)]
    assert extend.summary().startswith(f"ExtendPCR index=16 data=6 bytes -> data={changes[0].value.hex()[:16]}..., ")
    assert lock.summary().startswith("LockPCRs range=18 -> ok, ")
    assert attest.summary().startswith("Attestation user_data=none nonce=6 bytes public_key=none -> document=")
    assert rubbish.summary().startswith("1 bytes -> InvalidOperation (the request is not CBOR")
    assert rubbish.name == "?"
    assert not any("secret" in event.summary() or b"secret".hex() in event.summary() for event in events)
    assert all(event.duration_ns >= 0 for event in (extend, lock, attest, rubbish))


def test_authority_that_cannot_be_had_is_an_internal_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    authority = Authority(tmp_path / "file" / "folder", now=lambda: START, random_bytes=entropy())
    events: list[NsmEvent] = []
    module = make_module(authority=authority, emit=events.append)
    assert ask(module, Attestation()) == {"Error": "InternalError"}
    assert "cannot be kept" in events[-1].summary()
    with pytest.raises(NsmError, match="cannot be kept"):
        module.prepare()


def test_attest_refuses_what_the_guest_may_not_send() -> None:
    with pytest.raises(NsmRequestError) as caught:
        make_module().attest(nonce=bytes(1025))
    assert caught.value.code is ErrorCode.InputTooLarge


def test_map_encodings() -> None:
    for encoding, first in ((MapEncoding.DEFINITE, 0xA9), (MapEncoding.INDEFINITE, 0xBF)):
        document = make_module(map_encoding=encoding).attest(nonce=b"n")
        assert cbor2.loads(document)[2][0] == first
        assert believed(document, root=shared_authority().root(), nonce=b"n").pcrs[0] == PCR0


def test_module_ids() -> None:
    made = make_module_id(entropy())
    prefix, _, slot = made.partition("-enc")
    assert len(made) == 39
    assert prefix.startswith("i-")
    int(prefix[2:], 16)
    int(slot, 16)
    assert make_module_id(entropy(), instance_id="i-1234567890abcdef0").startswith("i-1234567890abcdef0-enc")
    for wrong in ("", "a b", "x" * 46, "i/enc"):
        with pytest.raises(NsmError, match="module id"):
            SecureModule(
                authority=shared_authority(),
                measurements={},
                module_id=wrong,
                now=lambda: START,
                random_bytes=entropy(),
            )


def test_import_does_not_load_cryptography() -> None:
    """Start-up is measured: the library takes longer to load than all else."""
    code = "import sys, enclavedbg.nsm.module; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


NAMES = {"DescribeNSM", "GetRandom", "DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs", "Attestation", "Error"}


def assert_legal(answer: bytes) -> None:
    item = cbor2.loads(answer)
    assert cbor2.dumps(item) == answer
    name = item if isinstance(item, str) else next(iter(item))
    assert name in NAMES
    if name == "Error":
        assert item["Error"] in {code.name for code in ErrorCode}


@given(st.binary(max_size=120))
@settings(deadline=None)
def test_any_bytes_get_a_legal_answer(data: bytes) -> None:
    assert_legal(make_module().handle(data, CAPACITY))


REQUESTS = st.one_of(
    st.builds(DescribeNSM),
    st.builds(GetRandom),
    st.builds(DescribePCR, st.integers(0, 40)),
    st.builds(ExtendPCR, st.integers(0, 40), st.binary(max_size=40)),
    st.builds(LockPCR, st.integers(0, 40)),
    st.builds(LockPCRs, st.integers(0, 40)),
    st.builds(Attestation, *[st.none() | st.binary(max_size=20)] * 3),
)


@given(st.lists(st.tuples(REQUESTS, st.integers(0, 600) | st.just(CAPACITY)), max_size=6))
@settings(deadline=None, max_examples=50)
def test_any_requests_get_answers_that_fit(requests: list[tuple[Request, int]]) -> None:
    module = make_module()
    for request, capacity in requests:
        answer = module.handle(encode_request(request), capacity)
        assert len(answer) <= capacity
        if answer:
            assert_legal(answer)
        else:
            assert capacity < 22
