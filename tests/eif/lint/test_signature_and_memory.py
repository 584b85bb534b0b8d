"""The rules on signature and memory."""

from __future__ import annotations

import gzip
from datetime import timedelta

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from enclavedbg.eif import measure, read_eif
from enclavedbg.eif.lint import lint
from enclavedbg.eif.lint.memory import memory_needed
from enclavedbg.eif.lint.subject import Subject
from enclavedbg.eif.signature import make_signature
from enclavedbg.eif.source import open_source
from enclavedbg.eif.walk import walk_eif
from tests.eif.lint.images import CMDLINE, NOW, bootstrap, findings, ids, image, ramdisk
from tests.eif.signing import SINCE, certificate_pem

KEY = ec.generate_private_key(ec.SECP384R1())
PEM = certificate_pem(KEY, days=3650)
PCR0 = measure(read_eif(image())).pcr0
MIB = 1 << 20


def signed(pem: bytes = PEM, *, key: ec.EllipticCurvePrivateKey = KEY, pcr0: bytes = PCR0) -> bytes:
    return image(signature=make_signature(pcr0, key=key, pem=pem))


def test_a_good_signature() -> None:
    assert ids(signed()) == []


def test_validity_of_the_certificate() -> None:
    end = SINCE + timedelta(days=3650)
    assert ids(signed(), now=SINCE - timedelta(seconds=1)) == ["certificate-not-yet-valid"]
    assert ids(signed(), now=SINCE) == [] == ids(signed(), now=end - timedelta(days=31))
    assert ids(signed(), now=end - timedelta(days=29)) == ["certificate-ends-soon"]
    assert ids(signed(), now=end + timedelta(seconds=1)) == ["certificate-expired"]
    assert "CN=signer" in findings(signed(), now=end + timedelta(days=1))["certificate-expired"].evidence


def test_signatures_that_do_not_fit() -> None:
    assert ids(signed(pcr0=bytes(48))) == ["signature-other-image"]
    other = ec.generate_private_key(ec.SECP384R1())
    assert ids(signed(key=other)) == ["signature-invalid"]
    assert ids(image(signature=b"no CBOR")) == ["signature-unreadable"]
    k1 = ec.generate_private_key(ec.SECP256K1())
    section = cbor2.loads(make_signature(PCR0, key=KEY, pem=PEM))
    section[0]["signing_certificate"] = list(certificate_pem(k1, days=3650))
    assert ids(image(signature=cbor2.dumps(section))) == ["signature-key"]


def test_rsa_is_named(rsa_pem: bytes) -> None:
    section = cbor2.loads(make_signature(PCR0, key=KEY, pem=PEM))
    section[0]["signing_certificate"] = list(rsa_pem)
    assert "RSA" in findings(image(signature=cbor2.dumps(section)))["signature-key"].message


@pytest.fixture
def rsa_pem() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return certificate_pem(key, days=3650)  # type: ignore[arg-type]


def needed(data: bytes) -> int:
    with open_source(data) as source:
        found = memory_needed(Subject(memoryview(data), walk_eif(source), None, NOW))
    assert found is not None
    return found


def test_memory_is_said_when_none_is_given() -> None:
    report = lint(image(), now=NOW)
    assert [finding.id for finding in report.findings] == ["memory-needed"]
    assert "at least 64 MiB of memory; nitro-cli wants 64 MiB" in report.findings[0].message


def test_kernel_packed_and_unpacked_files_count() -> None:
    """Kernel of the tests: 16 MiB and 1 MiB; 24 MiB headroom; the files, 40 MiB of zeros, pack to next to nothing."""
    files = ramdisk(bootstrap() | {"big": bytes(40 * MIB)})
    packed = image(ramdisks=[gzip.compress(files, 1)])
    assert 121 <= needed(packed) / MIB <= 123  # 41 + 2 * 40: a tmpfs takes half of the memory
    ramfs = image(ramdisks=[gzip.compress(files, 1)], cmdline=CMDLINE + b" root=/dev/ram0")
    assert 81 <= needed(ramfs) / MIB <= 83  # 41 + 40
    plain = image(ramdisks=[files], cmdline=CMDLINE + b" root=/dev/ram0")
    assert 121 <= needed(plain) / MIB <= 123  # 41 + 40 packed + 40 unpacked


def test_memory_given_is_judged() -> None:
    data = image(ramdisks=[ramdisk(bootstrap() | {"big": bytes(40 * MIB), "cmd": b"", "rootfs": None})])
    size = -(-len(data) // MIB)
    found = findings(data, memory=100 * MIB)
    assert {"memory-too-small", "memory-four-times"} <= found.keys()
    assert f"nitro-cli wants {4 * size} MiB" in found["memory-four-times"].message
    assert not {id for id in findings(data, memory=256 * MIB) if id.startswith("memory")}
    assert "memory-unit" in ids(image(), memory=62 * MIB) and "memory-unit" in ids(image(), memory=65 * MIB)


def test_files_with_several_names_count_once() -> None:
    once = needed(image(app={"rootfs/big": bytes(8 * MIB)}))
    assert once - needed(image()) in range(15 * MIB, 18 * MIB)
