"""The verifier: accepts what the module signs, and refuses each forgery for its own reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.nsm.authority import Authority, Credentials
from enclavedbg.nsm.certificates import LEVELS, Level, Link, issue
from enclavedbg.nsm.document import Check, DocumentError, sign_document
from enclavedbg.nsm.verify import VerifiedDocument, verify
from tests.nsm.support import MODULE_ID, PCR0, START, entropy, make_module, shared_authority

PCRS = {0: PCR0, 1: b"\x11" * 48, 2: b"\x12" * 48, **{index: bytes(48) for index in range(3, 16)}}
ROOT = shared_authority().root()
DOCUMENT = make_module().attest(user_data=b"user", nonce=b"nonce", public_key=b"key")


def refused(document: bytes, *, root: bytes = ROOT, **options: Any) -> Check:
    with pytest.raises(DocumentError) as caught:
        verify(document, root=root, **options)
    assert "\n" not in str(caught.value)
    return caught.value.check


@dataclass
class Chain:
    """A chain made link by link, so that a test can spoil one of them."""

    links: list[Link]

    @classmethod
    def make(cls, spoil: Callable[[int, Level], Level] = lambda depth, level: level, *, at: datetime = START) -> Chain:
        links: list[Link] = []
        for depth, level in enumerate(LEVELS):
            issuer = links[-1] if links else None
            links.append(issue(spoil(depth, level), issuer=issuer, identity=f"i-test{depth}", serial=depth + 1, now=at))
        return cls(links)

    @property
    def root(self) -> bytes:
        return self.links[0].der

    def document(self, *, at: datetime = START, bundle: list[bytes] | None = None, leaf: bytes | None = None) -> bytes:
        ders = [link.der for link in self.links]
        credentials = Credentials(leaf or ders[-1], tuple(bundle or ders[:-1]), self.links[-1].sign)
        return sign_document(credentials, module_id=MODULE_ID, timestamp=at, pcrs=PCRS)


def test_document_of_the_module_is_believed() -> None:
    verified = verify(
        DOCUMENT, root=ROOT, expect_pcrs={0: PCR0, 3: bytes(48)}, nonce=b"nonce", user_data=b"user", public_key=b"key"
    )
    assert isinstance(verified, VerifiedDocument)
    assert verified.document.module_id == MODULE_ID
    assert verified.checked_at == verified.document.timestamp
    assert len(verified.root_fingerprint) == 32


def test_tagged_document_is_believed() -> None:
    verify(b"\xd2" + DOCUMENT, root=ROOT)


def test_chain_made_by_the_test_is_believed() -> None:
    chain = Chain.make()
    verify(chain.document(), root=chain.root)


def test_only_the_pinned_root_is_trusted() -> None:
    other = Chain.make()
    assert refused(DOCUMENT, root=other.root) is Check.ROOT
    assert refused(other.document()) is Check.ROOT
    # The pinned root in front of another's chain does not help either.
    bundle = [ROOT, *(link.der for link in other.links[1:-1])]
    assert refused(other.document(bundle=bundle)) is Check.CHAIN


def test_root_of_the_same_name_with_another_key() -> None:
    one, other = Chain.make(), Chain.make()
    bundle = [one.root, *(link.der for link in other.links[1:-1])]
    with pytest.raises(DocumentError, match=r"signature of cabundle\[1\] is not by the key of cabundle\[0\]"):
        verify(other.document(bundle=bundle), root=one.root)


def test_order_of_the_chain() -> None:
    chain = Chain.make()
    ders = [link.der for link in chain.links[:-1]]
    assert refused(chain.document(bundle=[ders[0], ders[2], ders[1], ders[3]]), root=chain.root) is Check.CHAIN
    assert refused(chain.document(bundle=ders[:-1]), root=chain.root) is Check.CHAIN
    assert refused(chain.document(bundle=list(reversed(ders))), root=chain.root) is Check.ROOT


@pytest.mark.parametrize(
    ("step", "where"),
    [
        (timedelta(hours=3), "the leaf certificate"),
        (timedelta(seconds=-4), "cabundle"),
        (timedelta(days=-1), "cabundle"),
        (timedelta(days=400 * 30), "cabundle"),
    ],
)
def test_validity(step: timedelta, where: str) -> None:
    with pytest.raises(DocumentError, match=where) as caught:
        verify(DOCUMENT, root=ROOT, at=START + step)
    assert caught.value.check is Check.VALIDITY


def test_validity_at_the_documents_own_time() -> None:
    chain = Chain.make()
    assert refused(chain.document(at=START + timedelta(hours=4)), root=chain.root) is Check.VALIDITY
    verify(DOCUMENT, root=ROOT, at=START + timedelta(hours=2))


def spoiler(at: int, **change: Any) -> Callable[[int, Level], Level]:
    return lambda depth, level: replace(level, **change) if depth == at else level


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoiler(1, path_length=1), r"cabundle\[1\] allows 1 CA certificates below it, 2 are there"),
        (spoiler(2, path_length=0), r"cabundle\[2\] allows 0"),
        (spoiler(3, ca=False, path_length=None), r"cabundle\[3\] is not a CA certificate"),
        (spoiler(4, ca=True), "leaf certificate is a CA"),
    ],
)
def test_constraints(spoil: Callable[[int, Level], Level], message: str) -> None:
    chain = Chain.make(spoil)
    with pytest.raises(DocumentError, match=message) as caught:
        verify(chain.document(), root=chain.root)
    assert caught.value.check is Check.CONSTRAINTS


def leaf_with(chain: Chain, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
    """Another leaf for the chain's key, with only these extensions."""
    old, issuer = chain.links[-1], chain.links[-2]
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.certificate.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(old.key.public_key())
        .serial_number(77)
        .not_valid_before(old.certificate.not_valid_before_utc)
        .not_valid_after(old.certificate.not_valid_after_utc)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer.key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def test_leaf_without_key_usage() -> None:
    chain = Chain.make()
    with pytest.raises(DocumentError, match="digitalSignature"):
        verify(chain.document(leaf=leaf_with(chain)), root=chain.root)


def test_unknown_critical_extension() -> None:
    chain = Chain.make()
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(DocumentError, match=r"unknown critical extension 1\.2\.3\.4"):
        verify(chain.document(leaf=leaf_with(chain, (unknown, True))), root=chain.root)


def test_certificates_of_other_kinds() -> None:
    chain = Chain.make()
    assert refused(chain.document(leaf=b"rubbish"), root=chain.root) is Check.CERTIFICATES
    assert refused(chain.document(leaf=chain.links[-1].der + b"\x00"), root=chain.root) is Check.CERTIFICATES
    key = ec.generate_private_key(ec.SECP256R1())
    name = chain.links[-1].certificate.subject
    other = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=1))
        .sign(key, hashes.SHA384())
    )
    der = other.public_bytes(serialization.Encoding.DER)
    with pytest.raises(DocumentError, match=r"not of P-384"):
        verify(chain.document(leaf=der), root=chain.root)


def test_altered_payload_or_signature() -> None:
    item = cbor2.loads(DOCUMENT)
    payload = cbor2.loads(item[2])
    payload["pcrs"][0] = b"\x99" * 48
    item[2] = cbor2.dumps(payload)
    assert refused(cbor2.dumps(item)) is Check.SIGNATURE
    for signature in (bytes(96), b"\xff" * 96, make_module().attest()[-96:]):
        item = cbor2.loads(DOCUMENT)
        item[3] = signature
        assert refused(cbor2.dumps(item)) is Check.SIGNATURE


def test_debug_mode_is_refused_unless_allowed() -> None:
    document = make_module(debug_mode=True).attest()
    assert refused(document) is Check.DEBUG_MODE
    assert verify(document, root=ROOT, allow_debug=True).document.debug_mode


def test_expectations() -> None:
    assert refused(DOCUMENT, expect_pcrs={0: PCR0, 1: bytes(48)}) is Check.PCRS
    assert refused(DOCUMENT, expect_pcrs={20: bytes(48)}) is Check.PCRS
    assert refused(DOCUMENT, nonce=b"other") is Check.NONCE
    assert refused(DOCUMENT, user_data=b"other") is Check.USER_DATA
    assert refused(DOCUMENT, public_key=b"other") is Check.PUBLIC_KEY
    assert refused(make_module().attest(), nonce=b"") is Check.NONCE


def test_renewed_documents_stay_valid() -> None:
    """A long run: every document verifies at its own time under the one root."""
    at = [START]
    authority = Authority(None, now=lambda: at[0], random_bytes=entropy())
    module = make_module(authority=authority, now=lambda: at[0])
    leaves = set()
    for _ in range(40):
        verified = verify(module.attest(), root=authority.root())
        leaves.add(verified.document.certificate)
        at[0] += timedelta(hours=7)
    assert len(leaves) == 40


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_no_flipped_byte_is_believed(at: int, flip: int) -> None:
    data = bytearray(DOCUMENT)
    data[at] ^= flip
    with pytest.raises(DocumentError):
        verify(bytes(data), root=ROOT)


def test_odd_certificates_do_not_write_to_standard_error(recwarn: pytest.WarningsRecorder) -> None:
    """cryptography warns of negative serial numbers; the person at the terminal did not make the certificate."""
    der = shared_authority().credentials(MODULE_ID).certificate
    serial = 0x0123456789ABCDEF << 64 | int(START.timestamp())
    assert (spoilt := der.replace(serial.to_bytes(16, "big"), b"\x81" + bytes(15))) != der
    chain = Chain.make()
    assert refused(chain.document(leaf=spoilt), root=chain.root) is Check.CHAIN
    assert not recwarn.list
