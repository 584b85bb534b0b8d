"""Forgeries: each is refused for the reason it was made for, and the genuine document is not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.findings import Check
from enclavedbg.nsm.forge import FORGERIES, GENUINE, Claims, Original, forge
from enclavedbg.nsm.pcr import ZERO, identity_registers
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.verify import Report, verify
from tests.nsm.support import MODULE_ID, PCR0, PCR1, PCR2, START, entropy

REGISTERS = {0: PCR0, 1: PCR1, 2: PCR2} | identity_registers(instance_id="i-1234567890abcdef0")
CLAIMS = Claims(MODULE_ID, START, {i: REGISTERS.get(i, ZERO) for i in range(16)}, b"a nonce", b"data", b"key")
UNSIGNED = {"altered-pcr", "altered-signature", "other-signer", "short-signature", "damaged-certificate"}
"""Those whose fault is that the signature does not fit, or that have none that could."""


def make_authority(*, repeatable: bool = False) -> Authority:
    return Authority(None, now=lambda: START, random_bytes=entropy(), repeatable=repeatable)


AUTHORITY = make_authority()
ORIGINAL = Original(AUTHORITY, CLAIMS, random.Random(3).randbytes)


def report(document: bytes) -> Report:
    return verify(
        document,
        roots=[Root.of(ORIGINAL.root.der)],
        expect_pcrs={0: PCR0, 1: PCR1, 2: PCR2},
        nonce=b"a nonce",
        user_data=b"data",
    )


@pytest.mark.parametrize("name", GENUINE)
def test_genuine_documents_are_believed(name: str) -> None:
    assert report(GENUINE[name][1](ORIGINAL)).valid
    absent = replace(CLAIMS, public_key=None, user_data=None)
    document = GENUINE[name][1](Original(AUTHORITY, absent, random.Random(4).randbytes))
    assert verify(document, roots=[Root.of(ORIGINAL.root.der)], nonce=b"a nonce").valid


@pytest.mark.parametrize("name", FORGERIES)
def test_refused_for_its_own_reason(name: str) -> None:
    check, make = FORGERIES[name].check, FORGERIES[name].make
    found = report(make(ORIGINAL))
    failed = {failure.check for failure in found.failures}
    assert check in failed
    # What else may fail follows from the fault: a field that cannot be read is not the one expected either.
    follows = {
        Check.FIELDS: {Check.PCRS, Check.NONCE, Check.USER_DATA, Check.PUBLIC_KEY},
        Check.DEBUG_MODE: {Check.PCRS},
        Check.CERTIFICATES: set(),
        Check.SIGNATURE: {Check.PCRS},
        Check.STRUCTURE: {Check.SIGNATURE},
        Check.CHAIN_NAMES: {Check.CONSTRAINTS},
        Check.ROOT: {Check.CHAIN_NAMES, Check.CONSTRAINTS},
    }
    assert failed <= {check} | follows.get(check, set())
    readable = "certificate" in found.reading.values and check is not Check.CERTIFICATES
    if readable and name not in UNSIGNED and name != "unprotected-algorithm":
        assert Check.SIGNATURE not in failed, "only the fault itself gives it away"


@pytest.mark.parametrize("name", FORGERIES)
def test_refused_whatever_the_genuine_document_says(name: str) -> None:
    claims = replace(CLAIMS, user_data=b"something else", public_key=None, nonce=b"")
    original = Original(AUTHORITY, claims, random.Random(5).randbytes)
    found = verify(
        FORGERIES[name].make(original),
        roots=[Root.of(original.root.der)],
        expect_pcrs={0: PCR0, 1: PCR1, 2: PCR2},
        nonce=b"",
        user_data=b"something else",
    )
    assert FORGERIES[name].check in {failure.check for failure in found.failures}


def test_what_the_issue_names_is_there() -> None:
    wanted = {
        "expired-leaf", "wrong-root", "altered-pcr", "wrong-nonce", "duplicate-key", "trailing-byte", "non-ca-issuer",
        "reordered-chain", "debug-pcrs", "other-algorithm", "empty-module-id", "empty-cabundle", "oversized-nonce",
        "oversized-user-data",
    }  # fmt: skip
    assert wanted <= FORGERIES.keys()


def test_all_at_once() -> None:
    made = list(forge(ORIGINAL))
    assert [forgery.name for forgery in made] == list(FORGERIES)
    assert len({forgery.document for forgery in made}) == len(made)
    assert all(forgery.wrong and "\n" not in forgery.wrong for forgery in made)


def test_the_same_seed_forges_the_same() -> None:
    one, other = (Original(make_authority(repeatable=True), CLAIMS, random.Random(3).randbytes) for _ in range(2))
    assert [f.document for f in forge(one)] == [f.document for f in forge(other)]
