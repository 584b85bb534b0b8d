"""Comparison of images: every aspect, which PCR each moves, and that what is said to move really does."""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import measure, read_eif, write_eif
from enclavedbg.eif.contents import open_contents
from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.diff import Comparison, diff
from enclavedbg.eif.format import SectionType
from enclavedbg.eif.writer import assemble
from enclavedbg.errors import EifError
from tests.eif.test_filesystem import FILE, file, folder, link

BASE = [folder("d"), file("d/a", b"one"), file("b", b"two"), link("l", "b")]
KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType


def image(
    *,
    kernel: bytes = b"KERNEL",
    cmdline: bytes = b"console=ttyS0",
    ramdisks: Sequence[bytes] = (write_newc(BASE), write_newc(BASE)),
    metadata: dict[str, object] | None = None,
    signature: bytes | None = None,
) -> bytes:
    return write_eif(
        kernel=kernel, cmdline=cmdline, ramdisks=ramdisks, metadata=metadata or {"a": 1}, signature=signature
    )


def compared(old: bytes, new: bytes) -> Comparison:
    return diff(open_contents(old), open_contents(new))


def aspects(old: bytes, new: bytes) -> list[tuple[str, str, str | None, tuple[int, ...]]]:
    return [(d.where, d.aspect, d.path, d.pcrs) for d in compared(old, new).differences]


def second(*entries: CpioEntry) -> bytes:
    """An image whose second ramdisk holds these."""
    return image(ramdisks=[write_newc(BASE), write_newc(entries)])


def changed(index: int, **values: object) -> list[CpioEntry]:
    entries = list(BASE)
    entries[index] = replace(entries[index], **values)  # type: ignore[arg-type]
    return entries


def test_the_same() -> None:
    comparison = compared(image(), image())
    assert comparison.same and comparison.same_measured and not comparison.moved
    assert comparison.old == measure(read_eif(image()))


def test_sections() -> None:
    assert aspects(image(), image(kernel=b"KERNAL")) == [("kernel", "content", None, (0, 1))]
    (words,) = compared(image(), image(cmdline=b"quiet")).differences
    assert (words.where, words.old, words.new, words.pcrs) == ("cmdline", "console=ttyS0", "quiet", (0, 1))
    assert aspects(image(), image(ramdisks=[write_newc(BASE)])) == [("ramdisk1", "removed", None, (0, 2))]
    assert aspects(image(ramdisks=[]), image(ramdisks=[b"x"])) == [("ramdisk0", "added", None, (0, 1))]


def test_what_no_register_covers() -> None:
    old = image(metadata={"Name": "a", "Build": {"Time": 1}, "Same": [1, {"x": None}]})
    new = image(metadata={"Name": "b", "Build": {"Tool": 1}, "Same": [1, {"x": None}]})
    comparison = compared(old, new)
    assert not comparison.same and comparison.same_measured
    assert aspects(old, new) == [
        ("metadata", "content", "Name", ()),
        ("metadata", "removed", "Build.Time", ()),
        ("metadata", "added", "Build.Tool", ()),
    ]
    parts = [(KERNEL, b"K"), (CMDLINE, b"c"), (METADATA, b"{}"), (RAMDISK, write_newc(BASE))]
    flagged = assemble(parts, flags=1)
    assert aspects(assemble(parts), flagged) == [("header", "flags", None, ())]
    assert aspects(assemble(parts), assemble([*parts[:2], parts[3], parts[2]])) == [("sections", "order", None, ())]
    spaced = assemble([*parts[:2], (METADATA, b"{ }"), parts[3]])
    assert aspects(assemble(parts), spaced) == [("metadata", "encoding", None, ())]
    stale = bytearray(assemble(parts))
    stale[0x220] ^= 1
    assert aspects(assemble(parts), bytes(stale)) == [("file", "content", None, ())]


def test_order_of_measured_sections() -> None:
    one = [(KERNEL, b"K"), (CMDLINE, b"c"), (METADATA, b"{}")]
    assert aspects(assemble(one), assemble([one[1], one[0], one[2]])) == [("sections", "order", None, (0, 1))]


def test_bytes_that_only_change_section_move_nothing() -> None:
    old, new = image(kernel=b"ab", cmdline=b"c"), image(kernel=b"a", cmdline=b"bc")
    assert compared(old, new).same_measured
    assert aspects(old, new) == [("kernel", "content", None, ()), ("cmdline", "content", None, ())]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (changed(1, data=b"won"), [("content", "/d/a")]),
        (changed(1, mode=stat.S_IFREG | 0o600), [("mode", "/d/a")]),
        (changed(2, uid=1), [("owner", "/b")]),
        (changed(2, gid=1), [("owner", "/b")]),
        (changed(0, mtime=9), [("mtime", "/d")]),
        (changed(0, nlink=5), [("links", "/d")]),
        (changed(2, rdev=(1, 2)), [("device", "/b")]),
        (changed(3, data=b"d"), [("target", "/l")]),
        (changed(1, name="./d/a"), [("name", "/d/a")]),
        (changed(2, mode=stat.S_IFIFO | 0o644, data=b""), [("type", "/b"), ("content", "/b")]),
        (changed(2, name="c"), [("removed", "/b"), ("added", "/c")]),
        ([*BASE, file("b", b"again")], [("added", "/b")]),
        ([BASE[0], BASE[2], BASE[1], BASE[3]], [("order", None), ("inodes", None)]),
        (changed(1, ino=99), [("inodes", None)]),
    ],
)
def test_files(entries: list[CpioEntry], expected: list[tuple[str, str | None]]) -> None:
    assert aspects(second(*BASE), second(*entries)) == [("ramdisk1", a, path, (0, 2)) for a, path in expected]
    first = [image(ramdisks=[write_newc(e)]) for e in (BASE, entries)]
    assert aspects(*first) == [("ramdisk0", a, path, (0, 1)) for a, path in expected]


def packed(data: bytes) -> bytes:
    return image(ramdisks=[write_newc(BASE), data])


def test_how_a_ramdisk_was_packed() -> None:
    plain = write_newc(BASE)
    untrailed = plain[: plain.rindex(b"070701")]
    lower = plain.replace(b"000041ED", b"000041ed")
    two = write_newc(BASE[:2]) + write_newc(BASE[2:])
    for one, other, expected in [
        (plain, gzip.compress(plain), "compression"),
        (gzip.compress(plain, mtime=1), gzip.compress(plain, mtime=2), "parameters"),
        (lzma.compress(plain), lzma.compress(plain, check=lzma.CHECK_CRC32), "parameters"),
        (gzip.compress(plain, 5, mtime=1), gzip.compress(plain, 6, mtime=1) + bytes(4), "padding"),
        (plain, plain + bytes(512), "padding"),
        (plain, untrailed, "trailer"),
        (plain, lower, "encoding"),
        (write_newc([file("empty")]), write_newc([file("empty")]).replace(b"070701", b"070702"), "encoding"),
        (plain, two, "archives"),
    ]:
        found = [aspect for _, aspect, _, _ in aspects(packed(one), packed(other))]
        assert found[0] == expected, (expected, found)
    assert "inodes" in [aspect for _, aspect, _, _ in aspects(packed(plain), packed(two))]


def test_a_ramdisk_that_cannot_be_read_is_compared_as_a_whole() -> None:
    (found,) = compared(packed(write_newc(BASE)), packed(b"rubbish")).differences
    assert (found.where, found.aspect, found.pcrs) == ("ramdisk1", "content", (0, 2))
    assert "neither a cpio archive" in str(found.new)


def signed(name: str, cose: bytes) -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime(2024, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA384())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(cose)}])


def test_signatures() -> None:
    one, other = signed("one", b"1"), signed("other", b"1")
    assert aspects(image(), image(signature=one)) == [("signature", "added", None, (8,))]
    (found,) = compared(image(signature=one), image(signature=other)).differences
    assert (found.aspect, found.old, found.pcrs) == ("certificate", "CN=one, serial number 5", (8,))
    value = cbor2.loads(one)
    value[0]["signature"] = [2]
    again = image(signature=cbor2.dumps(value))
    assert aspects(image(signature=one), again) == [("signature", "signature", None, ())]
    assert compared(image(signature=one), again).same_measured
    reordered = cbor2.dumps([dict(reversed(cbor2.loads(one)[0].items()))])
    assert aspects(image(signature=one), image(signature=reordered)) == [("signature", "encoding", None, ())]
    with pytest.raises(EifError, match="signature section"):
        compared(image(signature=one), image(signature=b"\0"))


ENTRIES = st.lists(
    st.builds(
        CpioEntry,
        name=st.sampled_from(["a", "b", "./a", "d/c"]),
        mode=st.sampled_from([FILE, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777]),
        data=st.sampled_from([b"", b"x", b"y"]),
        mtime=st.integers(0, 1),
    ),
    max_size=3,
)
RAMDISKS = st.lists(
    st.one_of(ENTRIES.map(write_newc), ENTRIES.map(write_newc).map(gzip.compress), st.just(b"bad")), max_size=3
)
IMAGES = st.builds(
    image,
    kernel=st.sampled_from([b"k", b"kk"]),
    cmdline=st.sampled_from([b"c", b"kc"]),
    ramdisks=RAMDISKS,
    metadata=st.sampled_from([{"a": 1}, {"a": [2]}]),
)


@given(IMAGES, IMAGES)
@settings(max_examples=150, deadline=None)
def test_moved_registers_are_explained(old: bytes, new: bytes) -> None:
    comparison = compared(old, new)
    assert comparison.same == (old == new)
    before, after = measure(read_eif(old)).as_mapping(), measure(read_eif(new)).as_mapping()
    assert comparison.moved == tuple(pcr for pcr in before if before[pcr] != after[pcr])
    assert {pcr for d in comparison.differences for pcr in d.pcrs} == set(comparison.moved)
