"""The verifier: accepts what the module signs, and refuses each forgery for its own reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.nsm.authority import Authority, Credentials
from enclavedbg.nsm.certificates import LEVELS, Level, Link, issue
from enclavedbg.nsm.document import DecodedDocument, sign_document
from enclavedbg.nsm.findings import Check, DocumentError, Status
from enclavedbg.nsm.pcr import identity_registers
from enclavedbg.nsm.record import report_record
from enclavedbg.nsm.roots import AWS_ROOT, AWS_ROOTS, Root
from enclavedbg.nsm.verify import Report, verify
from tests.nsm.real import DEBUG_2024, SIGNED_2022
from tests.nsm.support import MODULE_ID, PCR0, START, believed, entropy, make_module, shared_authority

PCRS = {0: PCR0, 1: b"\x11" * 48, 2: b"\x12" * 48, **{index: bytes(48) for index in range(3, 16)}}
ROOT = shared_authority().root()
DOCUMENT = make_module().attest(user_data=b"user", nonce=b"nonce", public_key=b"key")


def report_of(document: bytes, *, root: bytes = ROOT, **options: Any) -> Report:
    report = verify(document, roots=[Root.of(root)], **options)
    assert [list(Check).index(f.check) for f in report.findings] == sorted(
        list(Check).index(f.check) for f in report.findings
    )
    assert {f.check for f in report.findings} == set(Check), "every check has a line"
    assert all(f.reason and "\n" not in f.reason for f in report.findings)
    return report


def refused(document: bytes, *, root: bytes = ROOT, **options: Any) -> Check:
    """The first check that a document fails."""
    return report_of(document, root=root, **options).failures[0].check


def failed(document: bytes, *, root: bytes = ROOT, **options: Any) -> set[Check]:
    return {failure.check for failure in report_of(document, root=root, **options).failures}


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
    report = report_of(
        DOCUMENT, expect_pcrs={0: PCR0, 3: bytes(48)}, nonce=b"nonce", user_data=b"user", public_key=b"key"
    )
    assert report.valid
    assert report.readable
    assert isinstance(report.document, DecodedDocument)
    assert report.document.module_id == MODULE_ID
    assert report.at == report.document.timestamp
    assert report.root == Root.of(ROOT)


def test_tagged_document_is_believed() -> None:
    believed(b"\xd2" + DOCUMENT, root=ROOT)


def test_chain_made_by_the_test_is_believed() -> None:
    chain = Chain.make()
    believed(chain.document(), root=chain.root)


def test_only_the_pinned_root_is_trusted() -> None:
    other = Chain.make()
    assert refused(DOCUMENT, root=other.root) is Check.ROOT
    assert refused(other.document()) is Check.ROOT
    # The pinned root in front of another's chain does not help either.
    bundle = [ROOT, *(link.der for link in other.links[1:-1])]
    assert refused(other.document(bundle=bundle)) is Check.CHAIN_SIGNATURES


def test_root_of_the_same_name_with_another_key() -> None:
    one, other = Chain.make(), Chain.make()
    bundle = [one.root, *(link.der for link in other.links[1:-1])]
    with pytest.raises(DocumentError, match=r"signature of cabundle\[1\] is not by the key of cabundle\[0\]"):
        believed(other.document(bundle=bundle), root=one.root)


def test_order_of_the_chain() -> None:
    chain = Chain.make()
    ders = [link.der for link in chain.links[:-1]]
    assert refused(chain.document(bundle=[ders[0], ders[2], ders[1], ders[3]]), root=chain.root) is Check.CHAIN_NAMES
    assert refused(chain.document(bundle=ders[:-1]), root=chain.root) is Check.CHAIN_NAMES
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
        believed(DOCUMENT, root=ROOT, at=START + step)
    assert caught.value.check is Check.VALIDITY


def test_validity_at_the_documents_own_time() -> None:
    chain = Chain.make()
    assert refused(chain.document(at=START + timedelta(hours=4)), root=chain.root) is Check.VALIDITY
    believed(DOCUMENT, root=ROOT, at=START + timedelta(hours=2))


def spoiler(at: int, **change: Any) -> Callable[[int, Level], Level]:
    return lambda depth, level: replace(level, **change) if depth == at else level


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoiler(1, path_length=1), r"cabundle\[1\] allows 1 CA certificates below it, 2 are there"),
        (spoiler(2, path_length=0), r"cabundle\[2\] allows 0"),
        (spoiler(3, ca=False, path_length=None), r"cabundle\[3\] is not a CA certificate"),
        (spoiler(4, ca=True), "leaf certificate is a CA"),
        (spoiler(1, may_sign=False), r"cabundle\[1\] may not sign certificates"),
        (spoiler(4, may_sign=False), "leaf certificate may not sign documents"),
    ],
)
def test_constraints(spoil: Callable[[int, Level], Level], message: str) -> None:
    chain = Chain.make(spoil)
    with pytest.raises(DocumentError, match=message) as caught:
        believed(chain.document(), root=chain.root)
    assert caught.value.check is Check.CONSTRAINTS


def leaf_with(chain: Chain, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
    """Another leaf for the chain's key, with only these extensions."""
    return certificate_with(chain, len(chain.links) - 1, *extensions)


def certificate_with(chain: Chain, place: int, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
    """Another certificate for the key at a place of the chain, with only these extensions."""
    old, issuer = chain.links[place], chain.links[place - 1]
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


def _signing_usage() -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def test_leaf_without_key_usage() -> None:
    chain = Chain.make()
    with pytest.raises(DocumentError, match="digitalSignature"):
        believed(chain.document(leaf=leaf_with(chain)), root=chain.root)


def test_unknown_critical_extension() -> None:
    chain = Chain.make()
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(DocumentError, match=r"the extension 1\.2\.3\.4, which must not be ignored"):
        believed(chain.document(leaf=leaf_with(chain, (_signing_usage(), False), (unknown, True))), root=chain.root)
    believed(chain.document(leaf=leaf_with(chain, (_signing_usage(), False), (unknown, False))), root=chain.root)


@pytest.mark.parametrize(
    ("extension", "oid"),
    [
        (x509.NameConstraints([x509.DNSName("example.com")], None), "2.5.29.30"),
        (x509.PolicyConstraints(0, None), "2.5.29.36"),
    ],
)
def test_constraints_that_are_not_understood(extension: x509.ExtensionType, oid: str) -> None:
    chain = Chain.make()
    leaf = leaf_with(chain, (_signing_usage(), False), (extension, False))
    with pytest.raises(DocumentError, match=f"the extension {oid}, which must not be ignored"):
        believed(chain.document(leaf=leaf), root=chain.root)


def test_ca_without_the_extensions_of_one() -> None:
    chain = Chain.make()
    above, below = chain.links[:3], chain.links[4:]
    assert len(below) == 1
    instance = certificate_with(chain, 3)
    bundle = [*(link.der for link in above), instance]
    reasons = {f.reason for f in report_of(chain.document(bundle=bundle), root=chain.root).failures}
    assert reasons == {
        "cabundle[3] is not a CA certificate, and issued the next one",
        "cabundle[3] may not sign certificates (key usage keyCertSign)",
    }


def test_leaf_with_the_path_length_of_a_ca() -> None:
    chain = Chain.make()
    constraints = x509.UnrecognizedExtension(x509.BasicConstraints.oid, bytes.fromhex("3003020100"))
    leaf = leaf_with(chain, (_signing_usage(), False), (constraints, True))
    assert refused(chain.document(leaf=leaf), root=chain.root) is Check.CERTIFICATES


def test_key_that_is_not_of_an_elliptic_curve() -> None:
    chain = Chain.make()
    issuer, old = chain.links[-2], chain.links[-1].certificate
    rsa_leaf = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(rsa.generate_private_key(65537, 2048).public_key())
        .serial_number(1)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .sign(issuer.key, hashes.SHA384())
    )
    with pytest.raises(DocumentError, match="has a key that is not of P-384"):
        believed(chain.document(leaf=rsa_leaf.public_bytes(serialization.Encoding.DER)), root=chain.root)


def test_first_and_last_second_of_a_certificate() -> None:
    chain = Chain.make()
    leaf = chain.links[-1].certificate
    for at, second in ((leaf.not_valid_before_utc, -1), (leaf.not_valid_after_utc, 1)):
        believed(chain.document(), root=chain.root, at=at)
        with pytest.raises(DocumentError, match="is valid from"):
            believed(chain.document(), root=chain.root, at=at + timedelta(seconds=second))


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
        believed(chain.document(leaf=der), root=chain.root)


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
    assert believed(document, root=ROOT, allow_debug=True).debug_mode


def test_expectations() -> None:
    assert refused(DOCUMENT, expect_pcrs={0: PCR0, 1: bytes(48)}) is Check.PCRS
    assert refused(DOCUMENT, expect_pcrs={20: bytes(48)}) is Check.PCRS
    assert refused(DOCUMENT, nonce=b"other") is Check.NONCE
    assert refused(DOCUMENT, user_data=b"other") is Check.USER_DATA
    assert refused(DOCUMENT, public_key=b"other") is Check.PUBLIC_KEY
    assert refused(make_module().attest(), nonce=b"") is Check.NONCE


def test_expected_values_of_the_wrong_form() -> None:
    payload = cbor2.loads(cbor2.loads(DOCUMENT)[2])
    parts = cbor2.loads(DOCUMENT)
    parts[2] = cbor2.dumps({**payload, "nonce": "nonce", "pcrs": {**payload["pcrs"], 99: PCR0}})
    report = report_of(cbor2.dumps(parts), nonce=b"nonce", user_data=b"user", expect_pcrs={0: PCR0})
    assert status(report, Check.NONCE) == (Status.FAIL, "not of the right form, not the 5 bytes expected")
    assert status(report, Check.USER_DATA)[0] is Status.PASS
    assert status(report, Check.PCRS)[1].startswith("PCR0 is not known, as the registers are not of the right form")
    record = report_record(report)["document"]
    assert (record["pcrs"], record["debug_mode"], record["nonce"]) == (None, None, None)


@pytest.mark.parametrize("header", [{1: -35.0}, {True: -35}, {1.0: -35}, {1: -35, 2: []}, {1: "ES384"}, [1, -35]])
def test_headers_that_only_look_right(header: object) -> None:
    _, unprotected, payload, signature = cbor2.loads(DOCUMENT)
    document = cbor2.dumps([cbor2.dumps(header), unprotected, payload, signature])
    assert status(report_of(document), Check.PROTECTED_HEADER)[0] is Status.FAIL


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_image_register_that_is_missing(index: int) -> None:
    chain = Chain.make()
    credentials = Credentials(chain.links[-1].der, tuple(link.der for link in chain.links[:-1]), chain.links[-1].sign)
    pcrs = {other: value for other, value in PCRS.items() if other != index}
    document = sign_document(credentials, module_id=MODULE_ID, timestamp=START, pcrs=pcrs)
    assert status(report_of(document, root=chain.root), Check.DEBUG_MODE) == (
        Status.FAIL, f"PCR{index} missing: nothing says which image ran"
    )  # fmt: skip


def test_any_buffer_is_a_document_and_a_time_needs_a_zone() -> None:
    for form in (bytearray(DOCUMENT), memoryview(DOCUMENT)):
        assert verify(form, roots=[Root.of(ROOT)]).valid
    for name in ("at", "now"):
        with pytest.raises(ValueError, match=f"{name} is .* expected an aware datetime"):
            report_of(DOCUMENT, **{name: datetime(2026, 11, 27)})


def test_renewed_documents_stay_valid() -> None:
    """A long run: every document verifies at its own time under the one root."""
    at = [START]
    authority = Authority(None, now=lambda: at[0], random_bytes=entropy())
    module = make_module(authority=authority, now=lambda: at[0])
    leaves = set()
    for _ in range(40):
        verified = believed(module.attest(), root=authority.root())
        leaves.add(verified.certificate)
        at[0] += timedelta(hours=7)
    assert len(leaves) == 40


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_no_flipped_byte_is_believed(at: int, flip: int) -> None:
    data = bytearray(DOCUMENT)
    data[at] ^= flip
    with pytest.raises(DocumentError):
        believed(bytes(data), root=ROOT)


def test_odd_certificates_do_not_write_to_standard_error(recwarn: pytest.WarningsRecorder) -> None:
    """cryptography warns of negative serial numbers; the person at the terminal did not make the certificate."""
    der = shared_authority().credentials(MODULE_ID).certificate
    serial = 0x0123456789ABCDEF << 64 | int(START.timestamp())
    assert (spoilt := der.replace(serial.to_bytes(16, "big"), b"\x81" + bytes(15))) != der
    chain = Chain.make()
    assert refused(chain.document(leaf=spoilt), root=chain.root) is Check.CHAIN_NAMES
    assert not recwarn.list


# ---- reports ----


def status(report: Report, check: Check) -> tuple[Status, str]:
    (finding,) = [f for f in report.findings if f.check is check]
    return finding.status, finding.reason


def test_documents_from_ec2_are_believed() -> None:
    signed = verify(SIGNED_2022, now=datetime(2026, 11, 27, tzinfo=UTC))
    assert signed.valid
    assert signed.root == AWS_ROOT
    assert signed.document.pcrs[8] != bytes(48)
    assert status(signed, Check.MODULE_ID)[0] is Status.PASS
    state, reason = status(signed, Check.VALID_NOW)
    assert state is Status.NOT_APPLICABLE
    assert reason.startswith("expired 1533 d")
    assert [f.check for f in verify(SIGNED_2022, at=datetime(2026, 11, 27, tzinfo=UTC)).failures] == [
        Check.VALIDITY
    ] * 4
    debug = verify(DEBUG_2024)
    assert [f.check for f in debug.failures] == [Check.DEBUG_MODE]
    assert verify(DEBUG_2024, allow_debug=True).valid
    assert [f.check for f in verify(DEBUG_2024, roots=[Root.of(ROOT)], allow_debug=True).failures] == [Check.ROOT]


@given(st.integers(0, len(SIGNED_2022) - 1), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_no_flipped_byte_of_a_real_document_is_believed(at: int, flip: int) -> None:
    data = bytearray(SIGNED_2022)
    data[at] ^= flip
    assert not verify(bytes(data)).valid


def test_our_documents_are_not_awss() -> None:
    assert {f.check for f in verify(DOCUMENT).failures} == {Check.ROOT}
    assert {f.check for f in verify(DOCUMENT, roots=[]).failures} == {Check.ROOT}
    assert verify(DOCUMENT, roots=[*AWS_ROOTS, Root.of(ROOT)]).valid


def test_a_misplaced_root_is_named() -> None:
    chain = Chain.make()
    ders = [link.der for link in chain.links[:-1]]
    report = report_of(chain.document(bundle=list(reversed(ders))), root=chain.root)
    assert "that is cabundle[3], so the order is wrong" in status(report, Check.ROOT)[1]


def test_every_fault_is_a_line() -> None:
    chain = Chain.make(spoiler(3, ca=False, path_length=None))
    document = chain.document(at=START + timedelta(hours=4))
    report = report_of(document, root=ROOT, nonce=b"n", expect_pcrs={0: bytes(48), 1: b"\x11" * 48})
    assert failed(document, root=ROOT) == {Check.ROOT, Check.CONSTRAINTS, Check.VALIDITY}
    assert {f.check for f in report.failures} >= {Check.NONCE, Check.PCRS}
    lines = [(f.status, f.reason[:7]) for f in report.findings if f.check is Check.PCRS]
    assert lines == [(Status.FAIL, "PCR0 is"), (Status.PASS, "PCR1 is")]
    assert status(report, Check.SIGNATURE)[0] is Status.PASS


def test_debug_mode_is_given_as_the_reason() -> None:
    report = report_of(make_module(debug_mode=True).attest(), expect_pcrs={0: PCR0})
    assert "PCR0 is zero, as in debug mode, expected 1010" in status(report, Check.PCRS)[1]


def test_instance_in_the_module_id() -> None:
    right = identity_registers(instance_id="i-1234567890abcdef0")
    for registers, expected in (
        (right, Status.PASS),
        ({4: b"\x04" * 48}, Status.FAIL),
        ({4: bytes(48)}, Status.NOT_APPLICABLE),
    ):
        module = make_module(measurements={0: PCR0, 1: PCR0, 2: PCR0} | registers)
        assert status(report_of(module.attest()), Check.MODULE_ID)[0] is expected


@pytest.mark.parametrize(
    ("hours", "expected", "words"),
    [
        (1, Status.PASS, "for another 1 h 59 min"),
        (5, Status.NOT_APPLICABLE, "expired 2 h 0 min ago"),
        (100, Status.NOT_APPLICABLE, "expired 4 d 1 h ago"),
        (-1, Status.NOT_APPLICABLE, "not valid yet"),
    ],
)
def test_whether_it_is_still_valid_is_said_and_decides_nothing(hours: int, expected: Status, words: str) -> None:
    report = report_of(DOCUMENT, now=START + timedelta(hours=hours))
    assert report.valid
    state, reason = status(report, Check.VALID_NOW)
    assert state is expected
    assert words in reason


def test_values_are_not_in_what_is_said_of_them() -> None:
    report = report_of(DOCUMENT, nonce=b"other", user_data=b"user", public_key=b"key")
    for check in (Check.NONCE, Check.USER_DATA, Check.PUBLIC_KEY):
        reason = status(report, check)[1]
        assert not any(value in reason for value in ("other", "6e6f6e6365", "75736572", "6b6579"))


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_give_a_report(data: bytes) -> None:
    report = report_of(data)
    assert not report.valid
    with pytest.raises(DocumentError):
        _ = report.document


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_damaged_documents_give_a_report(at: int, flip: int, cut: int) -> None:
    data = bytearray(DOCUMENT)
    data[at] ^= flip
    report_of(bytes(data[: len(data) - cut]))


def test_a_check_that_was_left_out_is_no_reason_to_believe() -> None:
    report = report_of(DOCUMENT)
    for check in (Check.ROOT, Check.SIGNATURE, Check.VALIDITY):
        rest = tuple(finding for finding in report.findings if finding.check is not check)
        cut = replace(report, findings=rest)
        assert not cut.valid
        assert cut.verdict == f"NOT VALID; failed checks: {check.value}"
        with pytest.raises(DocumentError, match="not checked"):
            _ = cut.document


def test_odd_bundles() -> None:
    chain = Chain.make()
    ders = [link.der for link in chain.links[:-1]]
    twice = report_of(chain.document(bundle=[ders[0], *ders]), root=chain.root)
    assert ("cabundle[1] is there twice") in [f.reason for f in twice.failures]
    many = report_of(chain.document(bundle=[b"x"] * 17), root=chain.root)
    assert [f.reason for f in many.failures] == ["a bundle of 17 certificates, expected at most 16"]


def test_certificates_that_disagree_with_themselves() -> None:
    """The signature's algorithm stands in a certificate twice; only the outer one is not signed."""
    chain = Chain.make()
    leaf = chain.links[-1].der
    sha384, rsa = bytes.fromhex("06082a8648ce3d040303"), bytes.fromhex("06092a864886f70d01010c")
    head, _, tail = leaf.rpartition(sha384)
    # Two lengths grow by one: that of the algorithm, and that of the certificate.
    grown = head[:-1] + bytes([head[-1] + 1]) + rsa + tail
    grown = grown[:2] + (int.from_bytes(grown[2:4], "big") + 1).to_bytes(2, "big") + grown[4:]
    assert refused(chain.document(leaf=grown), root=chain.root) is Check.CERTIFICATES
