"""Signing images: what is written reads back strictly, whatever the signature before."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import SectionType, describe, read_eif
from enclavedbg.eif.format import CRC_OFFSET, HEADER_SIZE, OFFSETS_AT, SIZES_AT
from enclavedbg.eif.sign import SigningKey, load_signing_key, sign_eif
from enclavedbg.eif.signature import read_signature, verify_signature
from enclavedbg.eif.source import open_source
from enclavedbg.eif.walk import walk_eif
from enclavedbg.eif.writer import assemble
from enclavedbg.errors import EifError
from tests.eif.signing import CURVES, SINCE, certificate_pem, key_pem

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType
SECTIONS = [(KERNEL, b"KERNEL"), (CMDLINE, b"c"), (METADATA, b"null"), (RAMDISK, b"R0"), (RAMDISK, b"R1")]
SOUND = assemble(SECTIONS)
EC_KEYS = [ec.generate_private_key(curve) for curve in CURVES]
KEYS = [load_signing_key(key_pem(key), certificate_pem(key)) for key in EC_KEYS]


def signed(image: bytes, key: SigningKey = KEYS[1]) -> bytes:
    file = io.BytesIO()
    with open_source(image) as source:
        sign_eif(source, file, key=key)
    return file.getvalue()


def with_crc(image: bytes) -> bytes:
    crc = zlib.crc32(image[HEADER_SIZE:], zlib.crc32(image[:CRC_OFFSET]))
    return image[:CRC_OFFSET] + crc.to_bytes(4, "big") + image[HEADER_SIZE:]


@pytest.mark.parametrize("which", range(3))
def test_a_signature_is_added_behind_everything(which: int) -> None:
    pem = b"text before\n" + certificate_pem(EC_KEYS[which]) + b"\n\n"
    key = load_signing_key(key_pem(EC_KEYS[which], sec1=True), pem)
    file = io.BytesIO()
    with open_source(SOUND) as source:
        result = sign_eif(source, file, key=key)
    image = read_eif(file.getvalue())
    assert [s.type for s in image.sections] == [kind for kind, _ in SECTIONS] + [SIGNATURE]
    assert [bytes(s.data) for s in image.sections[:-1]] == [data for _, data in SECTIONS]
    assert not result.replaced and image.signature is not None
    verify_signature(read_signature(image.signature), result.measurements.pcr0, at=SINCE)
    with open_source(file.getvalue()) as source:
        description = describe(source)
    assert description.measurements == result.measurements and description.signature_check is True
    # The PEM is stored byte for byte, as an array of integers in which those from 24 on take two bytes.
    encoded = b"".join(bytes((0x18, b)) if b >= 24 else bytes((b,)) for b in pem)
    assert encoded in image.signature


@pytest.mark.parametrize("position", [0, 3, 5])
def test_a_signature_is_replaced_where_it_was(position: int) -> None:
    old = bytes(read_eif(signed(SOUND, KEYS[0])).sections[-1].data)
    before = assemble([*SECTIONS[:position], (SIGNATURE, old), *SECTIONS[position:]])
    after = signed(before, KEYS[2])
    image = read_eif(after)
    assert [s.type for s in image.sections].index(SIGNATURE) == position
    assert [(s.type, bytes(s.data)) for s in image.sections if s.type is not SIGNATURE] == SECTIONS
    assert len(image.sections[position].data) != len(old)
    with open_source(after) as source:
        assert walk_eif(source).problems == ()


def test_the_size_that_the_reference_signer_forgets_is_put_right() -> None:
    image = signed(SOUND)
    stale = with_crc(image[: SIZES_AT + 40] + struct.pack(">Q", 5) + image[SIZES_AT + 48 :])
    with pytest.raises(EifError, match="signature"):
        read_eif(stale)
    assert len(read_eif(signed(stale)).sections) == 6


def test_version_2_becomes_3_and_3_stays() -> None:
    parts = [section for section in SECTIONS if section[0] is not METADATA]
    for version in (2, 3):
        image = read_eif(signed(assemble(parts, version=version)))
        assert image.header.version == 3 and image.certificate == KEYS[1].der


def test_images_that_are_not_signed() -> None:
    hidden = struct.pack(">HHQ", KERNEL, 0, 4) + b"EVIL"
    misleading = assemble([*SECTIONS[:3], (RAMDISK, hidden)])
    at = misleading.index(hidden)
    misleading = misleading[:OFFSETS_AT] + struct.pack(">Q", at) + misleading[OFFSETS_AT + 8 :]
    misleading = with_crc(misleading[:SIZES_AT] + struct.pack(">Q", 4) + misleading[SIZES_AT + 8 :])
    for image, message in [
        (SOUND[:-1] + b"X", "CRC-32"),
        (SOUND[:-1], "ends at"),
        (with_crc(b"XXXX" + SOUND[4:]), "not an EIF"),
        (b"\x7fELF" + bytes(600), "ELF"),
        (assemble(SECTIONS[1:]), "no kernel"),
        (assemble([*SECTIONS, (9, b"")]), "type 9"),
        (assemble(SECTIONS, version=5), "version 5"),
        (assemble([*SECTIONS, *[(RAMDISK, b"")] * 27]), "32 sections"),
        (misleading, "other sections"),
        (b"", "0 bytes"),
    ]:
        with pytest.raises(EifError, match=message):
            signed(image)
    assert len(read_eif(signed(assemble([*SECTIONS, *[(RAMDISK, b"")] * 26]))).sections) == 32


def test_keys_and_certificates_that_do_not_do() -> None:
    good, pem = key_pem(EC_KEYS[1]), certificate_pem(EC_KEYS[1])
    locked = key_pem(EC_KEYS[1], passphrase=b"word")
    other = ec.generate_private_key(ec.SECP256K1())
    cases: list[tuple[bytes, bytes, bytes | None, str]] = [
        (good, certificate_pem(EC_KEYS[2]), None, "do not belong together"),
        (key_pem(rsa.generate_private_key(65537, 2048)), pem, None, "an RSA key cannot sign"),
        (key_pem(ed25519.Ed25519PrivateKey.generate()), pem, None, "Ed25519PrivateKey"),
        (key_pem(other), certificate_pem(other), None, "secp256k1"),
        (locked, pem, None, "--passphrase-file"),
        (locked, pem, b"wrong", "check the passphrase"),
        (good, pem, b"word", "has no passphrase"),
        (pem, pem, None, "private key cannot be read"),
        (good, good, None, "certificate cannot be read"),
        (b"", b"", None, "private key cannot be read"),
    ]
    for key, certificate, passphrase, message in cases:
        with pytest.raises(EifError, match=message) as caught:
            load_signing_key(key, certificate, passphrase=passphrase)
        assert "\n" not in str(caught.value)
    assert load_signing_key(locked, pem, passphrase=b"word").pem == pem


def test_a_certificate_file_that_is_too_long() -> None:
    key = load_signing_key(key_pem(EC_KEYS[1]), certificate_pem(EC_KEYS[1]) + b"#" * 16_000)
    with pytest.raises(EifError, match="the format allows 32768"):
        signed(SOUND, key)


def test_large_images_are_copied_in_pieces(tmp_path: Path) -> None:
    big = bytes(range(256)) * 5000
    path = tmp_path / "a.eif"
    path.write_bytes(assemble([*SECTIONS, (RAMDISK, big)]))
    with open_source(path) as source, (tmp_path / "b.eif").open("w+b") as file:
        sign_eif(source, file, key=KEYS[0])
    assert bytes(read_eif(tmp_path / "b.eif").ramdisks[-1]) == big


@given(
    st.binary(max_size=50),
    st.binary(max_size=50).filter(lambda c: 0 not in c),
    st.lists(st.binary(max_size=50), max_size=4),
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_signing_again_and_again_changes_nothing_else(
    kernel: bytes, cmdline: bytes, ramdisks: list[bytes], keys: list[SigningKey]
) -> None:
    parts = [(KERNEL, kernel), (CMDLINE, cmdline), (METADATA, b"null"), *((RAMDISK, r) for r in ramdisks)]
    image = assemble(parts)
    for key in keys:
        image = signed(image, key)
    found = read_eif(image)
    assert [(s.type, bytes(s.data)) for s in found.sections[:-1]] == parts
    assert found.certificate == keys[-1].der
