"""Roots: the published fingerprints, files in PEM and DER, the authority of this user."""

from __future__ import annotations

from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from enclavedbg.errors import NsmError
from enclavedbg.nsm.authority import FILE_NAME, Authority
from enclavedbg.nsm.roots import AWS_GOVCLOUD_ROOT, AWS_ROOT, AWS_ROOTS, Root, development_root, roots_from
from tests.nsm.real import GOVCLOUD_ROOT_PEM, SIGNED_2022
from tests.nsm.support import START, entropy

AWS_DER: bytes = cbor2.loads(cbor2.loads(SIGNED_2022)[2])["cabundle"][0]


def test_fingerprint_is_that_of_the_root_in_real_documents() -> None:
    assert Root.of(AWS_DER).fingerprint == AWS_ROOT.fingerprint
    assert roots_from(GOVCLOUD_ROOT_PEM, AWS_GOVCLOUD_ROOT.name) == [AWS_GOVCLOUD_ROOT]
    assert AWS_ROOTS == (AWS_ROOT, AWS_GOVCLOUD_ROOT)


def test_only_der_makes_a_root() -> None:
    with pytest.raises(NsmError, match="mine is no certificate in DER; roots_from reads one in PEM"):
        Root.of(GOVCLOUD_ROOT_PEM, "mine")


def test_files() -> None:
    pem = x509.load_der_x509_certificate(AWS_DER).public_bytes(Encoding.PEM)
    for data in (AWS_DER, pem, b"a comment\n" + pem):
        assert roots_from(data, "the file") == [Root("the file", AWS_ROOT.fingerprint)]


@pytest.mark.parametrize("data", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\n", AWS_DER[:-1], AWS_DER + b"\0"])
def test_files_that_hold_none(data: bytes) -> None:
    with pytest.raises(NsmError, match="the file holds no certificate") as caught:
        roots_from(data, "the file")
    assert "\n" not in str(caught.value)


def test_development_root(tmp_path: Path) -> None:
    assert development_root(tmp_path) is None
    assert list(tmp_path.iterdir()) == [], "looking makes none"
    authority = Authority(tmp_path, now=lambda: START, random_bytes=entropy())
    der = authority.root()
    assert development_root(tmp_path) == Root.of(der, "the development root")
    assert authority.root_link().der == der
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(NsmError, match="chmod 600"):
        development_root(tmp_path)
