"""Registers: values, locks, and the vectors of AWS's user guide."""

from __future__ import annotations

import pytest

from enclavedbg.errors import NsmError
from enclavedbg.nsm.pcr import ZERO, PcrBank, extended, identity_registers
from enclavedbg.nsm.wire import ErrorCode, NsmRequestError


def code(caught: pytest.ExceptionInfo[NsmRequestError]) -> ErrorCode:
    return caught.value.code


def test_values_of_instance_id_and_role() -> None:
    assert extended(ZERO, b"i-1234567890abcdef0").hex() == (
        "08f996b5d43e047a9eb51e7f548bfee7e164fd7dc8f65541f2ac09d6545ac812719327281c401a67a10fcba87ae79ce0"
    )
    assert extended(ZERO, b"arn:aws:iam::123456789012:role/Webserver").hex() == (
        "78fce75db17cd4e0a3fb8dad3ad128ca5e77edbb2b2c7f75329dccd99aa5f6ef4fc1f1a452e315b9e98f9e312e6921e6"
    )
    registers = identity_registers(
        instance_id="i-1234567890abcdef0", role_arn="arn:aws:iam::123456789012:role/Webserver"
    )
    assert {index: value.hex()[:8] for index, value in registers.items()} == {4: "08f996b5", 3: "78fce75d"}
    assert list(identity_registers(instance_id="i-1234567890abcdef0")) == [4]


def test_bank_at_boot() -> None:
    bank = PcrBank({0: b"\x01" * 48})
    assert bank.describe(0) == (True, b"\x01" * 48)
    assert bank.describe(15) == (True, ZERO)
    assert bank.describe(16) == (False, ZERO)
    assert list(bank.locked()) == list(range(16))
    assert len(bank.values()) == 32


def test_extend_vectors() -> None:
    bank = PcrBank({})
    once = bank.extend(16, b"\x01\x02\x03")
    assert once.hex() == (
        "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8be911098f199958add55d0c27f04826d27b44d949a650694e"
    )
    assert bank.extend(16, b"\x01\x02\x03").hex() == (
        "65ecb1f7ff7536285cb0ef60bdab531a9cdcf41a2dd1ca5e3dea6445de2c937aab5a1e474c534210583289964acbdc45"
    )
    assert bank.describe(16)[1] != once


def test_locks_are_for_ever() -> None:
    bank = PcrBank({})
    bank.lock(20)
    for action in (lambda: bank.lock(20), lambda: bank.extend(20, b"x"), lambda: bank.extend(0, b"x")):
        with pytest.raises(NsmRequestError) as caught:
            action()
        assert code(caught) is ErrorCode.ReadOnlyIndex
    assert bank.describe(20) == (True, ZERO)


def test_lock_range() -> None:
    bank = PcrBank({})
    bank.lock(17)
    assert bank.lock_range(19) == [16, 18]
    assert bank.lock_range(19) == []
    assert bank.lock_range(0) == []
    assert bank.lock_range(32) == list(range(19, 32))
    with pytest.raises(NsmRequestError) as caught:
        bank.lock_range(33)
    assert code(caught) is ErrorCode.InvalidIndex


@pytest.mark.parametrize("index", [32, 65535])
def test_indexes_outside_the_bank(index: int) -> None:
    bank = PcrBank({})
    for action in (lambda: bank.describe(index), lambda: bank.lock(index), lambda: bank.extend(index, b"")):
        with pytest.raises(NsmRequestError) as caught:
            action()
        assert code(caught) is ErrorCode.InvalidIndex


@pytest.mark.parametrize("initial", [{32: ZERO}, {-1: ZERO}, {0: b"short"}])
def test_initial_values_are_checked(initial: dict[int, bytes]) -> None:
    with pytest.raises(NsmError):
        PcrBank(initial)


def test_state_survives_save_and_load() -> None:
    bank = PcrBank({1: b"\x07" * 48})
    bank.extend(30, b"x")
    bank.lock(30)
    other = PcrBank({})
    other.load(bank.save())
    assert other.save() == bank.save()
    assert other.describe(30)[0]
