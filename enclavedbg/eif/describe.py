"""What `nitro-cli describe-eif` says of an image, and what it leaves out.

Source: EifReader of aws-nitro-enclaves-image-format and nitro-cli's describe-eif.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from enclavedbg.eif.format import SectionType
from enclavedbg.eif.measure import Measured, Measurements, check_walked, measure_file, section_signature
from enclavedbg.eif.metadata import sorted_members
from enclavedbg.eif.reader import METADATA_MAX_SIZE
from enclavedbg.eif.source import EifSource
from enclavedbg.eif.walk import Walk, WalkedSection, walk_eif
from enclavedbg.errors import EifError

if TYPE_CHECKING:
    from enclavedbg.eif.certificate import CertificateInfo

HASH_ALGORITHM = "Sha384 { ... }"
"""As the reference tool prints it, dots and all."""
BUILD_MEMBERS = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The Metadata section, checked: what was built, by what, and from what.

    `build` has BUILD_MEMBERS in that order; `docker` and `custom` are JSON values with their keys sorted.
    """

    name: str
    version: str
    build: dict[str, str]
    docker: object
    custom: dict[str, object] | None

    def as_json(self) -> dict[str, object]:
        """The members of describe-eif's Metadata: custom members stand among the others."""
        return {**self.build, "DockerInfo": self.docker, **(self.custom or {})}


@dataclass(frozen=True, slots=True)
class Description:
    """An image as described; `certificate` and `signature_check` are None when it is not signed.

    `signature_check` says whether the signature, which was made with the certificate's key, is of this image's
    PCR0. `walk` has the sections, and the structural problems that describe-eif does not see.
    """

    walk: Walk
    measured: Measured
    certificate: CertificateInfo | None
    signature_check: bool | None
    metadata: Metadata | None

    @property
    def measurements(self) -> Measurements:
        """PCR0, 1, 2 and 8."""
        return self.measured.measurements

    def as_json(self) -> dict[str, object]:
        """The members of describe-eif, in its order and forms."""
        value: dict[str, object] = {
            "EifVersion": self.walk.header.version,
            "Measurements": measurements_json(self.measurements),
            "IsSigned": self.certificate is not None,
        }
        if self.certificate is not None:
            value["SigningCertificate"] = self.certificate.as_json()
        value["CheckCRC"] = self.measured.crc_matches
        if self.signature_check is not None:
            value["SignatureCheck"] = self.signature_check
        if self.metadata is not None:
            value["ImageName"] = self.metadata.name
            value["ImageVersion"] = self.metadata.version
            value["Metadata"] = self.metadata.as_json()
        return value


def measurements_json(measurements: Measurements) -> dict[str, str]:
    """The Measurements object of nitro-cli: lower-case hex, PCR8 only of a signed image."""
    values = {f"PCR{index}": value.hex() for index, value in measurements.as_mapping().items()}
    return {"HashAlgorithm": HASH_ALGORITHM, **values}


def describe(source: EifSource) -> Description:
    """Describe an image, in one pass over it and with a few megabytes of memory.

    Accepts what describe-eif accepts: a wrong CRC and a signature of another image are reported. Raises EifError
    where it fails too: sections it cannot walk over, metadata that is not as it should be, a signature that was
    not made with the key of its certificate.
    """
    walk = walk_eif(source)
    check_walked(source, walk)
    metadata = None
    for section in walk.walked.of_type(SectionType.METADATA):
        metadata = read_metadata(source, section)
    measured = measure_file(source, walk)
    certificate = check = None
    for section in walk.walked.of_type(SectionType.SIGNATURE)[-1:]:
        from enclavedbg.eif.certificate import certificate_info
        from enclavedbg.eif.signature import payload_for, signed_payload

        signature = section_signature(source, section)
        certificate = certificate_info(signature.certificate)
        check = signed_payload(signature) == payload_for(measured.measurements.pcr0)
    return Description(walk, measured, certificate, check, metadata)


def read_metadata(source: EifSource, section: WalkedSection) -> Metadata | None:
    """Read and check a Metadata section as nitro-cli does; None when it says `null`. Raises EifError."""
    if section.size > METADATA_MAX_SIZE:
        raise EifError(
            f"{section.size} bytes of metadata, at most {METADATA_MAX_SIZE} are read; build the image with less",
            offset=section.offset + 4,
        )
    try:
        value = json.loads(
            source.read(section.data_offset, section.size).decode(), parse_constant=_no_number, parse_float=_finite
        )
        # Text that no UTF-8 holds (halves of surrogate pairs) and depth without end show here at the latest.
        json.dumps(value, ensure_ascii=False).encode()
        return None if value is None else _metadata(value)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise EifError(
            f"the metadata is not what nitro-cli reads ({reason}); build the image again", offset=section.data_offset
        ) from error


def _metadata(value: object) -> Metadata:
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object or null")
    build = value.get("BuildMetadata")
    if not isinstance(build, dict):
        raise ValueError("BuildMetadata is missing or no object")
    for name in ("DockerInfo", "CustomMetadata"):
        if name not in value:
            raise ValueError(f"{name} is missing, expected a value or null")
    custom = sorted_members(value["CustomMetadata"])
    if custom is not None and not isinstance(custom, dict):
        raise ValueError(f"CustomMetadata is a JSON {type(custom).__name__}, expected an object or null")
    return Metadata(
        name=_text(value, "ImageName"),
        version=_text(value, "ImageVersion"),
        build={name: _text(build, name) for name in BUILD_MEMBERS},
        docker=sorted_members(value["DockerInfo"]),
        custom=custom,
    )


def _text(members: dict[str, object], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing or no text")
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is out of range")
    return value
