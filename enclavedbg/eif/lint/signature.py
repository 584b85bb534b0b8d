"""The signature and its certificate.

Sources: README of aws-nitro-enclaves-image-format; nitro-cli's run-enclave (error E59) and describe-eif (E35).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from enclavedbg.eif.format import SectionType
from enclavedbg.eif.lint.finding import Check, Finding, Group, error, warning
from enclavedbg.eif.lint.subject import Subject
from enclavedbg.eif.measure import measure_file, section_signature
from enclavedbg.eif.source import open_source
from enclavedbg.errors import EifError

SOON = timedelta(days=30)
RESIGN = "sign the image again with enclavedbg eif sign"

UNREADABLE = error(
    "signature-unreadable",
    "The signature section is not what nitro-cli reads; it refuses the image (E35, E59).",
    RESIGN,
)
KEY = error(
    "signature-key",
    "The certificate's key is not on P-256, P-384 or P-521; nitro-cli knows no other.",
    RESIGN + " and a key made by openssl ecparam -name secp384r1",
)
INVALID = error(
    "signature-invalid",
    "The signature was not made with the certificate's key; nitro-cli refuses the image (E35, E59).",
    RESIGN + ", with the key that belongs to the certificate",
)
OTHER = error(
    "signature-other-image",
    "The signature is for another image: PCR0 in it is not this image's. The hypervisor checks that.",
    RESIGN,
)
EXPIRED = error(
    "certificate-expired",
    "The signing certificate is no longer valid; nitro-cli run-enclave refuses the image (E59).",
    RESIGN + " and a new certificate (PCR8 changes with it)",
)
EARLY = error(
    "certificate-not-yet-valid",
    "The signing certificate is not valid yet; nitro-cli run-enclave refuses the image (E59).",
    "wait, set the clock, or " + RESIGN + " and another certificate",
)
ENDING = warning(
    "certificate-ends-soon",
    "The signing certificate ends within 30 days; then the image cannot be started any more.",
    RESIGN + " and a new certificate in time (PCR8 changes with it)",
)


def signature(subject: Subject) -> Iterator[Finding]:
    """The signature is good, and the certificate is valid now."""
    sections = subject.view.of_type(SectionType.SIGNATURE)
    if not sections:
        return
    # Signed images are few, and these imports cost as much as reading the image.
    from enclavedbg.eif.certificate import certificate_info
    from enclavedbg.eif.signature import payload_for, signed_payload

    try:
        with open_source(subject.data) as source:
            found = section_signature(source, sections[-1])
        info = certificate_info(found.certificate)
    except EifError as problem:
        yield UNREADABLE.found("the signature cannot be read", evidence=str(problem))
        return
    dates = f"{info.subject}: valid from {info.not_before:%Y-%m-%d %H:%M} to {info.not_after:%Y-%m-%d %H:%M} UTC"
    if subject.now > info.not_after:
        yield EXPIRED.found(f"the signing certificate ended on {info.not_after:%Y-%m-%d}", evidence=dates)
    elif subject.now < info.not_before:
        yield EARLY.found(f"the signing certificate begins on {info.not_before:%Y-%m-%d}", evidence=dates)
    elif info.not_after - subject.now < SOON:
        yield ENDING.found(f"the signing certificate ends on {info.not_after:%Y-%m-%d}", evidence=dates)
    if info.key not in ("secp256r1", "secp384r1", "secp521r1"):
        yield KEY.found(f"the certificate's key is of kind {info.key}", evidence=dates)
        return
    try:
        payload = signed_payload(found)
    except EifError as problem:
        yield INVALID.found("the signature does not verify", evidence=str(problem))
        return
    if subject.walk.walked.refusal is None:
        with open_source(subject.data) as source:
            pcr0 = measure_file(source, subject.walk).measurements.pcr0
        if payload != payload_for(pcr0):
            yield OTHER.found("the signature is for another image", evidence=f"this image's PCR0 is {pcr0.hex()}")


CHECKS: tuple[Check, ...] = (UNREADABLE, KEY, INVALID, OTHER, EXPIRED, EARLY, ENDING)
GROUP = Group("The signature", CHECKS, (signature,))
