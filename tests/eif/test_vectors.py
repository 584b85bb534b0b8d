"""Images of versions 2, 3 and 4 whose measurements and signatures were worked out with openssl and a shell alone.

tests/eif/vectors/make says how: PCR0 is, for instance,
`cat kernel cmdline r0 | openssl dgst -sha384 -binary`, behind 48 zero bytes, through `openssl dgst -sha384` once more.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enclavedbg.eif import describe, measure, measure_file, read_eif
from enclavedbg.eif.source import open_source
from enclavedbg.eif.walk import walk_eif

FOLDER = Path(__file__).with_name("vectors")
EXPECTED: dict[str, dict[str, str]] = json.loads((FOLDER / "expected.json").read_text())
NAMES = sorted(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_measurements(name: str) -> None:
    path = FOLDER / f"{name}.eif"
    with open_source(path) as source:
        measured = measure_file(source)
    assert measured.crc_matches
    assert {f"PCR{n}": v.hex() for n, v in measured.measurements.as_mapping().items()} == EXPECTED[name]
    assert measure(read_eif(path)) == measured.measurements


@pytest.mark.parametrize("name", NAMES)
def test_description(name: str) -> None:
    with open_source(FOLDER / f"{name}.eif") as source:
        description = describe(source)
        assert walk_eif(source).agree
    shown = description.as_json()
    assert shown["EifVersion"] == int(name[1]) and shown["CheckCRC"] is True
    assert shown.get("SignatureCheck", True) is True
    assert shown["IsSigned"] is ("PCR8" in EXPECTED[name])
    assert description.walk.header.architecture == ("aarch64" if name == "v4" else "x86_64")
    assert [p.id for p in description.walk.problems] == ([] if name == "v4" else ["version-old"])


def test_members_and_their_order_are_those_of_describe_eif() -> None:
    with open_source(FOLDER / "v4.eif") as source:
        shown = describe(source).as_json()
    assert list(shown) == [
        *("EifVersion", "Measurements", "IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck"),
        *("ImageName", "ImageVersion", "Metadata"),
    ]
    measurements, certificate, metadata = shown["Measurements"], shown["SigningCertificate"], shown["Metadata"]
    assert isinstance(measurements, dict) and isinstance(certificate, dict) and isinstance(metadata, dict)
    assert list(measurements.items()) == [("HashAlgorithm", "Sha384 { ... }"), *EXPECTED["v4"].items()]
    assert list(certificate) == ["IssuerName", "Algorithm", "NotBefore", "NotAfter", "Signature"]
    assert list(certificate["IssuerName"].items()) == [
        ("commonName", "secp384r1"),
        ("countryName", "DE"),
        ("localityName", "Kassel"),
        ("organizationName", "Vectors"),
        ("organizationalUnitName", "EIF"),
        ("stateOrProvinceName", "Hessen"),
    ]
    assert certificate["Algorithm"] == "ecdsa-with-SHA384"
    assert certificate["Signature"].startswith("30:") and certificate["Signature"].isupper()
    assert json.dumps(metadata, ensure_ascii=False) == (
        '{"BuildTime": "2024-07-09T17:16:38.424202433+00:00", "BuildTool": "sh", "BuildToolVersion": "1", '
        '"OperatingSystem": "Linux", "KernelVersion": "6.6.79", "DockerInfo": {"Id": "sha256:0", "RepoTags": '
        '["vector:4"]}, "build": 7, "team": "Zürich"}'
    )
