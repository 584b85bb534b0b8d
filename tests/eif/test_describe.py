"""describe-eif's rules: what is reported, what ends the command."""

from __future__ import annotations

import io
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclavedbg.eif import Description, SectionType, describe, measure, measure_file, read_eif
from enclavedbg.eif.certificate import certificate_info, openssl_time
from enclavedbg.eif.format import CRC_OFFSET
from enclavedbg.eif.sign import load_signing_key, sign_eif
from enclavedbg.eif.source import open_source
from enclavedbg.eif.writer import assemble
from enclavedbg.errors import EifError
from tests.eif.signing import SINCE, certificate_pem, key_pem

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = SectionType
BUILD = {name: name.lower() for name in ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem")}
BUILD["KernelVersion"] = "6"
FULL = {"ImageName": "n", "ImageVersion": "v", "BuildMetadata": BUILD, "DockerInfo": None, "CustomMetadata": None}
KEY = ec.generate_private_key(ec.SECP384R1())
SIGNING = load_signing_key(key_pem(KEY), certificate_pem(KEY))


def image(metadata: object = None, *, ramdisk: bytes = b"R") -> bytes:
    raw = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    return assemble([(KERNEL, b"K"), (CMDLINE, b"c"), (METADATA, raw), (RAMDISK, ramdisk)])


def described(file: bytes) -> Description:
    with open_source(file) as source:
        return describe(source)


def signature_of(file: bytes) -> bytes:
    out = io.BytesIO()
    with open_source(file) as source:
        sign_eif(source, out, key=SIGNING)
    found = read_eif(out.getvalue()).signature
    assert found is not None
    return found


def test_unsigned_without_metadata() -> None:
    shown = described(image()).as_json()
    assert list(shown) == ["EifVersion", "Measurements", "IsSigned", "CheckCRC"]


def test_custom_members_stand_among_the_others_and_win() -> None:
    custom = {"z": {"b": 1, "a": 2}, "BuildTool": "mine"}
    shown = described(image({**FULL, "DockerInfo": {"b": 1.5, "a": []}, "CustomMetadata": custom})).as_json()[
        "Metadata"
    ]
    assert isinstance(shown, dict)
    assert list(shown) == ["BuildTime", "BuildTool", *list(BUILD)[2:], "DockerInfo", "z"]
    assert json.dumps([shown["DockerInfo"], shown["z"], shown["BuildTool"]]) == (
        '[{"a": [], "b": 1.5}, {"a": 2, "b": 1}, "mine"]'
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        (b"[]", "JSON list"),
        (b"{}", "BuildMetadata is missing"),
        ({**FULL, "ImageName": 1}, "ImageName is missing or no text"),
        ({key: value for key, value in FULL.items() if key != "DockerInfo"}, "DockerInfo is missing"),
        ({key: value for key, value in FULL.items() if key != "CustomMetadata"}, "CustomMetadata is missing"),
        ({**FULL, "CustomMetadata": [1]}, "JSON list, expected an object"),
        ({**FULL, "BuildMetadata": {**BUILD, "BuildTime": None}}, "BuildTime"),
        ({**FULL, "DockerInfo": float("nan")}, "NaN"),
        (json.dumps(FULL).encode().replace(b"null", b"1e999"), "out of range"),
        ({**FULL, "DockerInfo": "\ud800"}, "surrogates"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_metadata_that_nitro_cli_does_not_read(metadata: object, message: str) -> None:
    with pytest.raises(EifError, match=message) as caught:
        described(image(metadata))
    assert caught.value.offset is not None and "\n" not in str(caught.value)


def test_a_wrong_crc_is_reported() -> None:
    file = image()
    assert described(file).as_json()["CheckCRC"] is True
    assert described(file[:CRC_OFFSET] + bytes(4) + file[CRC_OFFSET + 4 :]).as_json()["CheckCRC"] is False


def test_what_the_reference_reader_does_not_look_at() -> None:
    file = image()
    for changed in (b"XXXX" + file[4:], file[:4] + b"\0\x09" + file[6:], file[:0x1A] + b"\xff\xff" + file[0x1C:]):
        assert described(changed).measurements == described(file).measurements
    assert described(file + b"elevenbytes").as_json()["CheckCRC"] is True
    twice = assemble([(KERNEL, b"K"), (CMDLINE, b"c"), (CMDLINE, b"d")])
    assert not described(twice).walk.agree or described(twice).walk.problems


def test_signature_check() -> None:
    sections = [(KERNEL, b"K"), (CMDLINE, b"c"), (METADATA, b"null"), (RAMDISK, b"R")]
    own, other = signature_of(image()), signature_of(image(ramdisk=b"other"))
    good = described(assemble([*sections, (SIGNATURE, own)]))
    assert good.as_json()["SignatureCheck"] is True and good.measurements.pcr8 is not None
    stolen = described(assemble([*sections, (SIGNATURE, other)]))
    assert stolen.as_json()["SignatureCheck"] is False and stolen.measurements.pcr8 == good.measurements.pcr8
    broken = own[:-1] + bytes([own[-1] ^ 1])
    with pytest.raises(EifError, match="not made with the key of its certificate"):
        described(assemble([*sections, (SIGNATURE, broken)]))
    with pytest.raises(EifError, match="at least one element"):
        described(assemble([*sections, (SIGNATURE, b"\x80")]))
    with pytest.raises(EifError, match="the format allows 32768"):
        described(assemble([*sections, (SIGNATURE, bytes(2 << 20))]))


def test_certificate_forms() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, 'a "b" \\ \u200b ü'),
            x509.NameAttribute(x509.NameOID.EMAIL_ADDRESS, "x@y"),
            x509.NameAttribute(x509.ObjectIdentifier("1.2.3.4"), "odd"),
        ]
    )
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, SINCE, SINCE.replace(year=2040))
    info = certificate_info(builder.sign(KEY, hashes.SHA512()).public_bytes(Encoding.DER))
    shown = info.as_json()
    assert list(shown["IssuerName"].items()) == [  # type: ignore[attr-defined]
        ("1.2.3.4", "odd"),
        ("emailAddress", "x@y"),
        ("organizationName", "a \\b\\ \\\\ \\u{200b} ü"),
    ]
    assert shown["Algorithm"] == "ecdsa-with-SHA512"
    assert (shown["NotBefore"], shown["NotAfter"]) == ("Jan  2 03:04:05 2025 GMT", "Jan  2 03:04:05 2040 GMT")
    assert openssl_time(SINCE.replace(month=12, day=31)) == "Dec 31 03:04:05 2025 GMT"
    assert info.valid_at(SINCE) and not info.valid_at(SINCE.replace(year=2024))


def test_certificates_of_keys_that_nobody_knows() -> None:
    """Found by fuzzing: the curve's number changed in a certificate that is otherwise whole."""
    der = SIGNING.der
    p384 = bytes.fromhex("06052b81040022")
    with pytest.raises(EifError, match="certificate cannot be read"):
        certificate_info(der.replace(p384, p384[:-1] + b"\x7f"))


def test_measuring_in_threads_is_measuring() -> None:
    big = bytes(range(251)) * 5000
    sections = [(KERNEL, big), (METADATA, b"null"), (RAMDISK, big[1:]), (CMDLINE, b"c"), (RAMDISK, big[2:])]
    file = assemble([*sections, (RAMDISK, b"x"), (RAMDISK, big[3:])])
    with open_source(file) as source:
        measured = measure_file(source)
    assert measured.crc_matches and measured.measurements == measure(read_eif(file))
