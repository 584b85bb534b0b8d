"""The development authority: shape, renewal, and what it keeps on disk."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import threading
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from enclavedbg.errors import NsmError
from enclavedbg.nsm.authority import FILE_NAME, Authority, Credentials, default_folder
from enclavedbg.nsm.certificates import LEAF, issue, to_pem
from enclavedbg.nsm.x509read import summarise
from tests.nsm.support import MODULE_ID, START, SetClock, entropy


def make(folder: Path | None = None, *, clock: SetClock | None = None, seed: int = 1) -> Authority:
    return Authority(folder, now=clock or SetClock(), random_bytes=entropy(seed))


def load(credentials: Credentials) -> list[x509.Certificate]:
    """Root first, leaf last."""
    return [x509.load_der_x509_certificate(der) for der in (*credentials.cabundle, credentials.certificate)]


def common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_shape_of_the_chain() -> None:
    chain = load(make().credentials(MODULE_ID))
    lifetimes = [certificate.not_valid_after_utc - certificate.not_valid_before_utc for certificate in chain]
    assert lifetimes == [
        timedelta(days=30 * 365),
        timedelta(days=20, hours=1),
        timedelta(days=6),
        timedelta(hours=24),
        timedelta(hours=3),
    ]
    constraints = [c.extensions.get_extension_for_class(x509.BasicConstraints) for c in chain]
    assert [(c.critical, c.value.ca, c.value.path_length) for c in constraints] == [
        (True, True, None),
        (True, True, 2),
        (True, True, 1),
        (True, True, 0),
        (True, False, None),
    ]
    usages = [c.extensions.get_extension_for_class(x509.KeyUsage) for c in chain]
    assert [u.critical for u in usages] == [True, True, True, True, False]
    assert [(u.value.digital_signature, u.value.key_cert_sign, u.value.crl_sign) for u in usages] == [
        (True, True, True),
        (True, True, True),
        (True, True, True),
        (False, True, False),
        (True, False, False),
    ]
    assert usages[-1].value.content_commitment
    assert chain[-1].not_valid_before_utc == (START - timedelta(seconds=3)).replace(microsecond=0)
    for certificate in chain:
        assert len(certificate.public_bytes(serialization.Encoding.DER)) <= 1024
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp384r1"
        assert certificate.signature_hash_algorithm is not None
        assert certificate.signature_hash_algorithm.name == "sha384"


def test_names_cannot_be_mistaken() -> None:
    chain = load(make().credentials(MODULE_ID))
    for certificate in chain:
        text = certificate.subject.rfc4514_string().lower()
        assert "not for production" in text
        assert common_name(certificate).endswith(".enclavedbg.invalid")
        assert "amazon" not in text
        assert "aws" not in text
    assert common_name(chain[-1]) == f"{MODULE_ID}.enclavedbg.invalid"
    assert common_name(chain[-2]) == "i-1234567890abcdef0.enclavedbg.invalid"


def test_serial_of_the_leaf_is_slot_and_time() -> None:
    leaf = load(make().credentials(MODULE_ID))[-1]
    assert leaf.serial_number >> 64 == 0x0123456789ABCDEF
    assert leaf.serial_number & (1 << 64) - 1 == int(START.timestamp())
    assert load(make().credentials("made-up"))[-1].serial_number > 0


def test_longest_module_id_fits() -> None:
    credentials = make().credentials("i" * 45)
    assert all(len(der) <= 1024 for der in (*credentials.cabundle, credentials.certificate))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command; install it with: apt install openssl")
def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    credentials = make().credentials(MODULE_ID)
    pems = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in load(credentials)]
    (tmp_path / "root.pem").write_bytes(pems[0])
    (tmp_path / "between.pem").write_bytes(b"".join(pems[1:4]))
    (tmp_path / "leaf.pem").write_bytes(pems[4])
    # At the time of the made-up clock, and without revocation lists.
    command = ["openssl", "verify", "-attime", str(int(START.timestamp())), "-CAfile", "root.pem"]
    command += ["-untrusted", "between.pem", "leaf.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "leaf.pem: OK\n", done.stderr
    (tmp_path / "between.pem").write_bytes(b"".join(pems[1:3]))
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=False).returncode != 0


def test_a_clock_that_is_set_back_makes_a_leaf_of_its_time() -> None:
    clock = SetClock()
    authority = make(clock=clock)
    before = authority.credentials(MODULE_ID).certificate
    clock.advance(seconds=-2)
    assert authority.credentials(MODULE_ID).certificate == before, "leaves begin three seconds early"
    clock.advance(minutes=-30)
    chain = load(authority.credentials(MODULE_ID))
    assert all(c.not_valid_before_utc <= clock.at <= c.not_valid_after_utc for c in chain), "roots begin an hour early"


def test_leaf_is_renewed_before_it_expires() -> None:
    clock = SetClock()
    authority = make(clock=clock)
    first = authority.credentials(MODULE_ID)
    clock.advance(hours=2, minutes=45)
    assert authority.credentials(MODULE_ID).certificate == first.certificate
    clock.advance(minutes=10)
    second = authority.credentials(MODULE_ID)
    assert second.certificate != first.certificate
    assert second.cabundle == first.cabundle


@pytest.mark.parametrize(("hours", "kept"), [(4, 4), (22, 3), (24 * 6, 2), (24 * 21, 1)])
def test_chain_is_renewed_as_far_up_as_needed(hours: int, kept: int) -> None:
    clock = SetClock()
    authority = make(clock=clock)
    first = authority.credentials(MODULE_ID)
    clock.advance(hours=hours)
    second = authority.credentials(MODULE_ID)
    same = [a == b for a, b in zip(first.cabundle, second.cabundle, strict=True)]
    assert same == [True] * kept + [False] * (4 - kept)
    assert len(second.cabundle) == 4
    for certificate in load(second):
        assert certificate.not_valid_before_utc <= clock.at
        assert clock.at + timedelta(hours=2) < certificate.not_valid_after_utc


def test_another_module_gets_a_leaf_of_its_own() -> None:
    authority = make()
    first = authority.credentials(MODULE_ID)
    second = authority.credentials("i-other-enc1")
    assert second.certificate != first.certificate
    assert second.cabundle[0] == first.cabundle[0]
    assert common_name(load(second)[-1]).startswith("i-other-enc1.")


def test_root_is_kept_between_runs(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "authority"
    root = make(folder).root()
    assert make(folder).root() == root
    assert make(folder).credentials(MODULE_ID).cabundle[0] == root
    assert make(tmp_path / "other").root() != root
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]


def test_ephemeral_root_is_made_afresh() -> None:
    authority = make()
    assert authority.root() == authority.root()
    assert authority.root() != make(seed=2).root()


def test_repeatable_authority_signs_the_same_again() -> None:
    """The same bytes for keys and the same times: certificates and signatures are then the same, bit for bit."""

    def run(*, repeatable: bool) -> tuple[bytes, ...]:
        authority = Authority(None, now=SetClock(), random_bytes=entropy(), repeatable=repeatable)
        credentials = authority.credentials(MODULE_ID)
        return (*credentials.cabundle, credentials.certificate, credentials.sign(b"x"))

    assert run(repeatable=True) == run(repeatable=True)
    assert run(repeatable=False) != run(repeatable=False), "by default a signature is made with randomness of its own"
    authority = Authority(None, now=SetClock(), random_bytes=entropy(2), repeatable=True)
    assert authority.root() != run(repeatable=True)[0]


def test_damaged_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    make(tmp_path).root()
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    for content in (b"", b"\x00\xff" * 100, whole[: len(whole) // 2], whole.replace(b"A", b"B")):
        path.write_bytes(content)
        with pytest.raises(NsmError, match="move the file away"):
            make(tmp_path).root()


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a").root()
    make(tmp_path / "b", seed=2).root()
    one, other = (tmp_path / name / FILE_NAME for name in "ab")
    marker = b"-----BEGIN PRIVATE KEY"
    certificate = one.read_bytes().partition(marker)[0]
    one.write_bytes(certificate + marker + other.read_bytes().partition(marker)[2])
    with pytest.raises(NsmError, match="do not belong together"):
        make(tmp_path / "a").root()


def test_what_is_no_authority_is_refused_with_the_cure(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(NsmError, match=message) as caught:
            make(tmp_path / name).root()
        assert "\n" not in str(caught.value)

    for name in ("fifo", "folder", "curve", "leaf"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo" / FILE_NAME, 0o600)
    refused("fifo", "is no regular file")
    (tmp_path / "folder" / FILE_NAME).mkdir()
    refused("folder", "is no regular file")
    link = make(seed=9).root_link()
    # secp224k1 in place of secp384r1: a curve that the library does not know.
    pkcs8 = (serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    der = link.key.private_bytes(*pkcs8)
    other = der.replace(bytes.fromhex("2b81040022"), bytes.fromhex("2b81040020"))
    assert other != der
    key = b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(other) + b"-----END PRIVATE KEY-----\n"
    private(tmp_path / "curve", link.certificate.public_bytes(serialization.Encoding.PEM) + key)
    refused("curve", "no CA certificate with a private key in it")
    private(tmp_path / "leaf", to_pem(issue(LEAF, issuer=None, identity="x", serial=1, now=START)))
    refused("leaf", "a certificate that is not a CA's")


def private(folder: Path, content: bytes) -> None:
    (folder / FILE_NAME).write_bytes(content)
    (folder / FILE_NAME).chmod(0o600)


def test_warnings_of_other_threads_are_left_as_they_were() -> None:
    """The filters belong to the process, and certificates are read on several threads."""
    der = make().root()
    before = list(warnings.filters)

    def read() -> None:
        for _ in range(300):
            summarise(der)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make(tmp_path).root()
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(NsmError, match="chmod 600"):
        make(tmp_path).root()


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NsmError, match="cannot be kept"):
        make(tmp_path / "file" / "authority").root()


def test_clock_outside_the_life_of_the_root(tmp_path: Path) -> None:
    make(tmp_path).root()
    for days in (-2, 365 * 30):
        clock = SetClock()
        clock.advance(days=days)
        with pytest.raises(NsmError, match="set the clock"):
            make(tmp_path, clock=clock).root()


def test_default_folder() -> None:
    assert default_folder({"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/enclavedbg/authority")
    assert default_folder({"XDG_STATE_HOME": "", "HOME": "/h"}) == Path("/h/.local/state/enclavedbg/authority")
    assert default_folder({"XDG_STATE_HOME": "relative", "HOME": "/h"}) == Path("/h/.local/state/enclavedbg/authority")


def test_summary_of_a_certificate() -> None:
    authority = make()
    summary = summarise(authority.credentials(MODULE_ID).certificate)
    assert MODULE_ID in summary.subject
    assert summary.key == "secp384r1"
    assert summary.not_after - summary.not_before == timedelta(hours=3)
    with pytest.raises(NsmError, match="cannot be read"):
        summarise(b"rubbish")
