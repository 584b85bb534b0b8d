"""The CBOR reader against the examples of RFC 8949, damaged items and cbor2's writer."""

from __future__ import annotations

import math
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.nsm.cbor import MAX_DEPTH, CborError, DuplicateKeyError, Simple, Tagged, TrailingBytesError, decode


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("1903e8", 1000),
        ("1bffffffffffffffff", 2**64 - 1),
        ("3bffffffffffffffff", -(2**64)),
        ("1b0000000000000005", 5),
        ("f93c00", 1.0),
        ("fa47c35000", 100000.0),
        ("fb3ff199999999999a", 1.1),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("f7", Simple(23)),
        ("f8ff", Simple(255)),
        ("c11a514b67b0", Tagged(1, 1363896240)),
        ("4401020304", b"\x01\x02\x03\x04"),
        ("62c3bc", "ü"),
        ("83010203", [1, 2, 3]),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("5f42010243030405ff", b"\x01\x02\x03\x04\x05"),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
    ],
)
def test_examples_of_the_rfc(encoded: str, value: object) -> None:
    found = decode(bytes.fromhex(encoded))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "encoded",
    [
        "",  # nothing
        "18",  # number cut off
        "1c" + "00" * 16,  # reserved additional information
        "4201",  # string cut off
        "5bffffffffffffffff00",  # longer than memory
        "9bffffffffffffffff00",
        "bbffffffffffffffff00",
        "8201",  # array cut off
        "a161",  # key cut off
        "a101",  # value missing
        "61ff",  # not UTF-8
        "7f61c3 61bcff",  # a character split over chunks
        "5f6161ff",  # chunk of another type
        "5f5f4101ffff",  # nested indefinite string
        "5f4101",  # no break
        "9f01",
        "bf0102",
        "bf01ff",  # break in place of a value
        "ff",  # break alone
        "82ff00",
        "c1ff",
        "f800",  # simple value below 32 in two bytes
        "fc" + "00" * 16,
        "a1f600",  # keys that are no integer, text or bytes
        "a1f500",
        "a18000",
        "a1f93c0000",
        "81" * (MAX_DEPTH + 1) + "00",
        "81" * 40,
        "c1" * 4000 + "00",
    ],
)
def test_damaged_items_are_refused(encoded: str) -> None:
    with pytest.raises(CborError):
        decode(bytes.fromhex(encoded))


def test_the_deepest_that_is_read() -> None:
    found = decode(bytes.fromhex("81" * MAX_DEPTH + "00"))
    for _ in range(MAX_DEPTH):
        (found,) = found
    assert found == 0


def test_trailing_bytes_and_duplicate_keys_have_errors_of_their_own() -> None:
    with pytest.raises(TrailingBytesError, match="1 bytes follow the item at byte 1"):
        decode(b"\x00\x00")
    with pytest.raises(DuplicateKeyError, match="occurs twice at byte 3"):
        decode(bytes.fromhex("a2010118 0102"))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_a_cbor_error(data: bytes) -> None:
    try:
        decode(data)
    except CborError as error:
        assert 0 <= error.offset <= len(data)


KEYS = st.one_of(st.integers(-(2**64), 2**64 - 1), st.text(max_size=8), st.binary(max_size=8))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), KEYS, st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@given(VALUES)
def test_what_cbor2_writes_is_read_back(value: Any) -> None:
    encoded = cbor2.dumps(value)
    assert decode(encoded) == value
    with pytest.raises(CborError):
        decode(encoded[:-1])


def test_not_a_number() -> None:
    assert math.isnan(decode(bytes.fromhex("f97e00")))
