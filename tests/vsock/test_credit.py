from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import VsockError
from enclavedbg.vsock.credit import BUFFER_SIZE, U32, ReceiveCredit, SendCredit

near_wrap = st.one_of(st.integers(0, U32), st.integers(U32 - 300_000, U32), st.integers(0, 10))


def test_send_credit_across_the_wrap() -> None:
    credit = SendCredit(sent=U32 - 9, peer_fwd_cnt=U32 - 9)
    credit.update(100, U32 - 9)
    assert credit.free == 100
    credit.spend(60)
    assert credit.sent == 50
    assert credit.free == 40
    credit.update(100, 20)
    assert credit.free == 70


def test_a_peer_that_shrinks_its_buffer_leaves_no_negative_credit() -> None:
    credit = SendCredit()
    credit.update(1000, 0)
    credit.spend(600)
    credit.update(500, 0)
    assert credit.free == 0
    credit.update(500, 300)
    assert credit.free == 200


def test_a_huge_buffer_does_not_make_us_keep_more_than_our_limit() -> None:
    credit = SendCredit()
    credit.update(U32, 0)
    assert credit.free == BUFFER_SIZE
    credit.spend(BUFFER_SIZE)
    assert credit.free == 0


def test_a_peer_that_claims_more_than_it_was_sent_gets_nothing() -> None:
    credit = SendCredit()
    credit.update(1000, 5)
    assert credit.free == 0


def test_spending_without_credit_is_refused() -> None:
    credit = SendCredit()
    credit.update(10, 0)
    with pytest.raises(VsockError, match="11 bytes are more than the peer's credit of 10"):
        credit.spend(11)
    assert credit.sent == 0


@given(near_wrap, st.integers(0, 1 << 20), st.lists(st.tuples(st.booleans(), st.integers(0, 70_000)), max_size=40))
def test_send_credit_is_that_of_unbounded_counters(start: int, buf_alloc: int, steps: list[tuple[bool, int]]) -> None:
    credit = SendCredit(sent=start, peer_fwd_cnt=start)
    sent = read = 0
    credit.update(buf_alloc, start)
    for sending, amount in steps:
        if sending:
            count = min(amount, credit.free)
            credit.spend(count)
            sent += count
        else:
            read += min(amount, sent - read)
            credit.update(buf_alloc, (start + read) & U32)
        assert credit.free == min(buf_alloc, BUFFER_SIZE) - (sent - read)
        assert 0 <= credit.free <= BUFFER_SIZE


@given(near_wrap, st.lists(st.tuples(st.sampled_from(["take", "pass", "tell"]), st.integers(0, 70_000)), max_size=40))
def test_receive_credit_is_that_of_unbounded_counters(start: int, steps: list[tuple[str, int]]) -> None:
    credit = ReceiveCredit(received=start, forwarded=start, advertised=start)
    received = forwarded = told = 0
    for step, amount in steps:
        if step == "take":
            fits = received - forwarded + amount <= BUFFER_SIZE
            assert credit.accept(amount) is fits
            received += amount if fits else 0
        elif step == "pass":
            amount = min(amount, received - forwarded)
            credit.forward(amount)
            forwarded += amount
        else:
            told = forwarded
            assert credit.advertise() == (BUFFER_SIZE, (start + forwarded) & U32)
            assert not credit.update_due
        assert credit.buffered == received - forwarded
        assert credit.free == BUFFER_SIZE - credit.buffered
        seen_by_peer = BUFFER_SIZE - (received - told)
        if forwarded > told and seen_by_peer < 65536:
            assert credit.update_due, "a peer that sees less than one full packet of room must be told"
        if forwarded == told:
            assert not credit.update_due


def test_more_cannot_be_passed_on_than_came() -> None:
    credit = ReceiveCredit()
    credit.accept(5)
    with pytest.raises(VsockError, match="6 bytes passed on, but only 5 were waiting"):
        credit.forward(6)
