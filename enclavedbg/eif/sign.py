"""Signs an image: adds the Signature section or replaces it, and puts the header right.

Imported only to sign, like `enclavedbg.eif.signature`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import BinaryIO

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from enclavedbg.eif.certificate import CertificateInfo, certificate_info
from enclavedbg.eif.format import (
    HEADER_SIZE,
    MAGIC,
    MAX_SECTIONS,
    SECTION_HEADER,
    SIGNATURE_MAX_SIZE,
    EifHeader,
    SectionType,
)
from enclavedbg.eif.measure import Measurements, certificate_pcr, check_walked, measure_file
from enclavedbg.eif.reader import foreign
from enclavedbg.eif.signature import ALGORITHMS, make_signature
from enclavedbg.eif.source import EifSource
from enclavedbg.eif.walk import Reader, Walk, WalkedSection, walk_eif
from enclavedbg.errors import EifError

SIGNATURE_SINCE = 3
"""The version that brought the Signature section; older images become images of this version."""

_REWRITTEN = frozenset(
    {"table-size", "table-offset", "table-truncated", "table-spare", "views-differ", "section-count", "reserved"}
    | {"gap", "overlap", "out-of-order", "unlisted", "trailing"}
)
"""Problems of the header's table, which is written anew."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with the certificate that belongs to it; `pem` is the certificate's file, byte for byte."""

    key: ec.EllipticCurvePrivateKey
    pem: bytes
    certificate: CertificateInfo
    der: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed: the image's measurements, and whether there was a signature before."""

    measurements: Measurements
    replaced: bool


def load_signing_key(key: bytes, certificate: bytes, *, passphrase: bytes | None = None) -> SigningKey:
    """A PEM private key (SEC1 or PKCS#8) and a PEM certificate, which must belong together.

    Raises EifError for what the format cannot use: keys that are not on P-256, P-384 or P-521.
    """
    private = _load_key(key, passphrase)
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        public = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise EifError(f"the certificate cannot be read ({_first_line(error)}); give a PEM certificate") from error
    if public != private.public_key():
        raise EifError("key and certificate do not belong together; give the certificate that was made for this key")
    der = parsed.public_bytes(Encoding.DER)
    return SigningKey(private, certificate, certificate_info(der), der)


def sign_eif(source: EifSource, file: BinaryIO, *, key: SigningKey) -> Signed:
    """Write the image to `file` (empty, open for writing at its beginning) with a signature of its PCR0.

    An old signature is replaced where it was, a new one goes to the end; everything else is copied, section after
    section as nitro-cli's reader finds them. The header's table, count and CRC are made anew, for the reference
    signer forgets the table's size of a signature that changes its length; bytes that belong to no section are
    left out. Raises EifError for an image that is damaged, that has no room for another section, or whose header
    makes loaders start other sections than those measured.
    """
    walk = walk_eif(source)
    _check_signable(source, walk)
    measured = measure_file(source, walk)
    if not measured.crc_matches:
        raise EifError(
            f"the CRC-32 of the contents is {measured.crc32:08x}, the header says {measured.stated_crc32:08x}: the "
            "image was damaged or changed; build or fetch it again, then sign it"
        )
    data = make_signature(measured.measurements.pcr0, key=key.key, pem=key.pem)
    if len(data) > SIGNATURE_MAX_SIZE:
        raise EifError(
            f"the signature would have {len(data)} bytes, the format allows {SIGNATURE_MAX_SIZE}; leave only the "
            f"signing certificate in its file, which has {len(key.pem)} bytes"
        )
    sections: list[WalkedSection | bytes] = [
        data if section.type is SectionType.SIGNATURE else section for section in walk.walked.sections
    ]
    replaced = bool(walk.walked.of_type(SectionType.SIGNATURE))
    if not replaced:
        sections.append(data)
    _write(source, file, walk, sections)
    return Signed(replace(measured.measurements, pcr8=certificate_pcr(key.der)), replaced)


def _load_key(pem: bytes, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, passphrase)
    except TypeError as error:
        if passphrase is None:
            raise EifError("the private key has a passphrase; put it into a file: --passphrase-file FILE") from error
        raise EifError("the private key has no passphrase; leave out --passphrase-file") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "check the passphrase" if passphrase is not None else "give a PEM file with an EC key (SEC1 or PKCS#8)"
        raise EifError(f"the private key cannot be read ({_first_line(error)}); {hint}") from error
    wanted = "the format has ECDSA signatures only; make a key: openssl ecparam -name secp384r1 -genkey"
    if isinstance(key, rsa.RSAPrivateKey):
        raise EifError(f"an RSA key cannot sign an image, {wanted}")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EifError(f"a key of this kind ({type(key).__name__.strip('_')}) cannot sign an image, {wanted}")
    if key.curve.name not in ALGORITHMS:
        raise EifError(
            f"a key on {key.curve.name} cannot sign an image, expected P-256, P-384 or P-521; make one: "
            "openssl ecparam -name secp384r1 -genkey"
        )
    return key


def _check_signable(source: EifSource, walk: Walk) -> None:
    if walk.header.magic != MAGIC:
        raise EifError(foreign(source.read(0, 512)), offset=0)
    check_walked(source, walk)
    for problem in walk.problems:
        if Reader.FORMAT in problem.stops and problem.id not in _REWRITTEN:
            raise EifError(f"{problem.message}; build the image again, then sign it", offset=problem.offset)
    listed = walk.table.measured
    if listed != walk.walked.measured[: len(listed)]:
        raise EifError(
            "the header makes a loader start other sections than those that nitro-cli measures; build the image again"
        )
    signed = bool(walk.walked.of_type(SectionType.SIGNATURE))
    if len(walk.walked.sections) + (not signed) > MAX_SECTIONS:
        raise EifError(
            f"the image has {len(walk.walked.sections)} sections and no signature, the format allows {MAX_SECTIONS} "
            "sections in all; join some of the ramdisks"
        )


def _write(source: EifSource, file: BinaryIO, walk: Walk, sections: list[WalkedSection | bytes]) -> None:
    offsets: list[int] = []
    sizes: list[int] = []
    position = HEADER_SIZE
    for section in sections:
        offsets.append(position)
        sizes.append(section.size if isinstance(section, WalkedSection) else len(section))
        position += SECTION_HEADER.size + sizes[-1]
    header = EifHeader(
        version=max(walk.header.version, SIGNATURE_SINCE),
        flags=walk.header.flags,
        default_memory=walk.header.default_memory,
        default_cpus=walk.header.default_cpus,
        offsets=tuple(offsets),
        sizes=tuple(sizes),
        crc32=0,
    ).pack()[:-4]
    crc = zlib.crc32(header)
    file.write(header + bytes(4))
    for section, size in zip(sections, sizes, strict=True):
        number = section.number if isinstance(section, WalkedSection) else int(SectionType.SIGNATURE)
        start = SECTION_HEADER.pack(number, 0, size)
        crc = zlib.crc32(start, crc)
        file.write(start)
        chunks = source.chunks(section.data_offset, size) if isinstance(section, WalkedSection) else (section,)
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
            file.write(chunk)
    file.seek(len(header))
    file.write(crc.to_bytes(4, "big"))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:120] or type(error).__name__
