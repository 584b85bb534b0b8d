"""The measurements (PCR0, 1, 2 and 8) of an image: what its attestation documents will say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from enclavedbg.eif.format import SectionType
from enclavedbg.eif.reader import EifImage

PCR_SIZE = 48


@dataclass(frozen=True, slots=True)
class Measurements:
    """SHA-384 values of 48 bytes each, already extended, as in the enclave's PCRs; pcr8 is None when unsigned."""

    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None

    def as_mapping(self) -> dict[int, bytes]:
        """By PCR index; PCR8 only of a signed image."""
        values = {0: self.pcr0, 1: self.pcr1, 2: self.pcr2}
        if self.pcr8 is not None:
            values[8] = self.pcr8
        return values


def measure(image: EifImage) -> Measurements:
    """Compute the measurements from the image's sections, in file order, as the EIF specification says.

    PCR0 covers kernel, command line and all ramdisks; PCR1 the same with the first ramdisk only; PCR2 the later
    ramdisks; PCR8 the DER of the signing certificate.
    """
    # PCR0 and PCR1 cover the same bytes up to the second ramdisk: these are hashed once.
    boot = hashlib.sha384()
    everything = boot
    application = hashlib.sha384()
    ramdisks = 0
    for section in image.sections:
        if section.type is SectionType.RAMDISK:
            ramdisks += 1
            if ramdisks == 2:
                everything = boot.copy()
            if ramdisks > 1:
                application.update(section.data)
                everything.update(section.data)
            else:
                boot.update(section.data)
        elif section.type in (SectionType.KERNEL, SectionType.CMDLINE):
            boot.update(section.data)
            if everything is not boot:
                everything.update(section.data)
    return Measurements(
        pcr0=extended(everything.digest()),
        pcr1=extended(boot.digest()),
        pcr2=extended(application.digest()),
        pcr8=None if image.certificate is None else certificate_pcr(image.certificate),
    )


def extended(content: bytes) -> bytes:
    """A PCR that was zero, extended once by the digest `content`."""
    return hashlib.sha384(bytes(PCR_SIZE) + content).digest()


def certificate_pcr(der: bytes) -> bytes:
    """PCR8 for a signing certificate given as DER."""
    return extended(hashlib.sha384(der).digest())
