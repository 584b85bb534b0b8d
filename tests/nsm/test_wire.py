"""Messages against the vectors of the device's description."""

from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.nsm.wire import (
    REQUEST_LIMIT,
    Attestation,
    DescribeNSM,
    DescribePCR,
    ErrorAnswer,
    ErrorCode,
    ExtendedPcr,
    ExtendPCR,
    GetRandom,
    Locked,
    LockPCR,
    LockPCRs,
    ModuleDescription,
    NsmRequestError,
    PcrDescription,
    RandomBytes,
    Request,
    Response,
    SignedDocument,
    decode_request,
    encode_request,
    encode_response,
)

REQUESTS: list[tuple[str, Request]] = [
    ("6b44657363726962654e534d", DescribeNSM()),
    ("6947657452616e646f6d", GetRandom()),
    ("a16b4465736372696265504352a165696e64657800", DescribePCR(0)),
    ("a16b4465736372696265504352a165696e646578181f", DescribePCR(31)),
    ("a169457874656e64504352a265696e64657810646461746143010203", ExtendPCR(16, b"\x01\x02\x03")),
    ("a1674c6f636b504352a165696e64657810", LockPCR(16)),
    ("a1684c6f636b50435273a16572616e67651820", LockPCRs(32)),
    ("a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6", Attestation()),
]


@pytest.mark.parametrize(("encoded", "request_"), REQUESTS)
def test_request_vectors(encoded: str, request_: Request) -> None:
    assert decode_request(bytes.fromhex(encoded)) == request_
    assert encode_request(request_).hex() == encoded


@pytest.mark.parametrize(
    ("encoded", "request_"),
    [
        # integers in every width
        ("a16b4465736372696265504352a165696e64657819001f", DescribePCR(31)),
        ("a16b4465736372696265504352a165696e6465781a0000001f", DescribePCR(31)),
        ("a16b4465736372696265504352a165696e6465781b000000000000001f", DescribePCR(31)),
        # indefinite maps and strings
        ("bf6b4465736372696265504352bf65696e64657800ffff", DescribePCR(0)),
        ("7f6347657466" + b"Random".hex() + "ff", GetRandom()),
        (
            "a169457874656e64504352bf65696e6465781064646174615f41014202 03ffff".replace(" ", ""),
            ExtendPCR(16, b"\1\2\3"),
        ),
        # text in place of bytes
        ("a169457874656e64504352a265696e64657810646461746163616263", ExtendPCR(16, b"abc")),
        # unknown fields, other order
        ("a1674c6f636b504352a2617800 65696e64657810".replace(" ", ""), LockPCR(16)),
        # missing optional fields
        ("a16b4174746573746174696f6ea0", Attestation()),
        ("a16b4174746573746174696f6ea1656e6f6e636540", Attestation(nonce=b"")),
    ],
)
def test_other_legal_forms(encoded: str, request_: Request) -> None:
    assert decode_request(bytes.fromhex(encoded)) == request_


def refused(data: bytes) -> ErrorCode:
    with pytest.raises(NsmRequestError) as caught:
        decode_request(data)
    return caught.value.code


@pytest.mark.parametrize(
    "item",
    [
        None,
        5,
        [],
        {},
        "getrandom",
        "DescribePCR",
        "Attestation",
        {"GetRandom": {}},
        {"DescribeNSM": None},
        {5: {}},
        {"DescribePCR": {"index": 0}, "LockPCR": {"index": 0}},
        {"DescribePCR": {}},
        {"DescribePCR": [0]},
        {"DescribePCR": {"index": -1}},
        {"DescribePCR": {"index": 65536}},
        {"DescribePCR": {"index": True}},
        {"DescribePCR": {"index": "0"}},
        {"DescribePCR": {"index": 0.0}},
        {"ExtendPCR": {"index": 0}},
        {"ExtendPCR": {"index": 0, "data": None}},
        {"ExtendPCR": {"index": 0, "data": [1, 2]}},
        {"LockPCRs": {"index": 0}},
        {"Attestation": {"nonce": 5}},
        {"Attestation": None},
    ],
)
def test_what_does_not_decode_is_an_invalid_operation(item: object) -> None:
    assert refused(cbor2.dumps(item)) is ErrorCode.InvalidOperation


def test_damaged_requests_are_an_invalid_operation() -> None:
    assert refused(b"") is ErrorCode.InvalidOperation
    assert refused(cbor2.dumps("GetRandom") + b"\x00") is ErrorCode.InvalidOperation
    assert refused(bytes.fromhex("a16b4465736372696265504352a265696e6465780065696e64657801")) is (
        ErrorCode.InvalidOperation
    )


def test_request_limit() -> None:
    overhead = len(encode_request(ExtendPCR(16, bytes(4000)))) - 4000
    largest = ExtendPCR(16, bytes(REQUEST_LIMIT - overhead))
    assert len(encode_request(largest)) == 4096
    assert decode_request(encode_request(largest)) == largest
    assert refused(encode_request(ExtendPCR(16, bytes(REQUEST_LIMIT - overhead + 1)))) is ErrorCode.InputTooLarge


@pytest.mark.parametrize(
    ("response", "encoded"),
    [
        (Locked("LockPCR"), "674c6f636b504352"),
        (Locked("LockPCRs"), "684c6f636b50435273"),
        (ErrorAnswer(ErrorCode.InvalidIndex), "a1654572726f726c496e76616c6964496e646578"),
        (ErrorAnswer(ErrorCode.ReadOnlyIndex), "a1654572726f726d526561644f6e6c79496e646578"),
        (RandomBytes(b"\x55" * 256), "a16947657452616e646f6da16672616e646f6d590100" + "55" * 256),
    ],
)
def test_response_vectors(response: Response, encoded: str) -> None:
    assert encode_response(response).hex() == encoded


def test_responses_hold_their_fields() -> None:
    described = ModuleDescription(1, 2, 3, "i-x", 32, (0, 5))
    assert cbor2.loads(encode_response(described)) == {
        "DescribeNSM": {
            "version_major": 1,
            "version_minor": 2,
            "version_patch": 3,
            "module_id": "i-x",
            "max_pcrs": 32,
            "locked_pcrs": [0, 5],
            "digest": "SHA384",
        }
    }
    assert cbor2.loads(encode_response(PcrDescription(True, b"v"))) == {"DescribePCR": {"lock": True, "data": b"v"}}
    assert cbor2.loads(encode_response(ExtendedPcr(b"v"))) == {"ExtendPCR": {"data": b"v"}}
    assert cbor2.loads(encode_response(SignedDocument(b"d"))) == {"Attestation": {"document": b"d"}}


def test_error_numbers_are_those_of_the_c_library() -> None:
    assert [code.name for code in sorted(ErrorCode, key=lambda code: code.value)] == [
        "InvalidArgument",
        "InvalidIndex",
        "InvalidResponse",
        "ReadOnlyIndex",
        "InvalidOperation",
        "BufferTooSmall",
        "InputTooLarge",
        "InternalError",
    ]
    assert min(code.value for code in ErrorCode) == 1


@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_an_error(data: bytes) -> None:
    try:
        request = decode_request(data)
    except NsmRequestError as error:
        assert error.code is ErrorCode.InvalidOperation
    else:
        assert decode_request(encode_request(request)) == request


FIELDS = st.dictionaries(
    st.sampled_from(["index", "data", "range", "nonce", "user_data", "public_key", "x"]),
    st.one_of(st.none(), st.integers(-2, 70000), st.binary(max_size=9), st.text(max_size=3), st.booleans()),
)
NAMES = st.sampled_from(["DescribePCR", "ExtendPCR", "LockPCR", "LockPCRs", "Attestation", "GetRandom"])


@given(NAMES, FIELDS)
def test_any_fields_give_a_request_or_an_error(name: str, fields: dict[str, object]) -> None:
    try:
        request = decode_request(cbor2.dumps({name: fields}))
    except NsmRequestError as error:
        assert error.code is ErrorCode.InvalidOperation
    else:
        assert request.name == name
