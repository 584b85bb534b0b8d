"""The measurements (PCR0, 1, 2 and 8) of an image: what its attestation documents will say."""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from enclavedbg.eif.format import CRC_OFFSET, MAGIC, SECTION_HEADER, SIGNATURE_MAX_SIZE, SectionType
from enclavedbg.eif.reader import EifImage, foreign
from enclavedbg.eif.source import EifSource
from enclavedbg.eif.walk import MEASURED, Walk, WalkedSection, walk_eif
from enclavedbg.errors import EifError

if TYPE_CHECKING:
    from enclavedbg.eif.signature import EifSignature

PCR_SIZE = 48
CHUNKS_AHEAD = 3
"""Chunks that wait for the hashing threads while the next one is read."""
THREADS_FROM = 64 << 10
"""Bytes from which handing a chunk to a thread costs less than it gains."""
SIGNATURE_READ_LIMIT = 1 << 20
"""Bytes of a Signature section that are read: more than the format allows, for describe-eif knows no limit."""


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


class _Registers:
    """The running hashes behind PCR0, 1 and 2, fed section by section in file order."""

    def __init__(self) -> None:
        # PCR0 and PCR1 cover the same bytes up to the second ramdisk: these are hashed once.
        self._boot = hashlib.sha384()
        self._everything = self._boot
        self._application = hashlib.sha384()
        self._ramdisks = 0

    def covering(self, kind: SectionType | None) -> tuple[hashlib._Hash, ...]:
        """The hashes that the data of the next section goes into: two at most."""
        if kind is SectionType.RAMDISK:
            self._ramdisks += 1
            if self._ramdisks == 1:
                return (self._boot,)
            if self._everything is self._boot:
                self._everything = self._boot.copy()
            return self._everything, self._application
        if kind in MEASURED:
            return (self._boot,) if self._everything is self._boot else (self._everything, self._boot)
        return ()

    def measurements(self, certificate: bytes | None) -> Measurements:
        """The registers' final values; `certificate` is the signing certificate's DER."""
        return Measurements(
            pcr0=extended(self._everything.digest()),
            pcr1=extended(self._boot.digest()),
            pcr2=extended(self._application.digest()),
            pcr8=None if certificate is None else certificate_pcr(certificate),
        )


def measure(image: EifImage) -> Measurements:
    """Compute the measurements from the image's sections, in file order, as the EIF specification says.

    PCR0 covers kernel, command line and all ramdisks; PCR1 the same with the first ramdisk only; PCR2 the later
    ramdisks; PCR8 the DER of the signing certificate.
    """
    registers = _Registers()
    for section in image.sections:
        for register in registers.covering(section.type):
            register.update(section.data)
    return registers.measurements(image.certificate)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one pass over a file gives; `crc32` is that of the bytes the pass went over, `stated_crc32` the header's."""

    measurements: Measurements
    crc32: int
    stated_crc32: int

    @property
    def crc_matches(self) -> bool:
        """Whether the file is as it was when its header was written."""
        return self.crc32 == self.stated_crc32


def measure_file(source: EifSource, walk: Walk | None = None) -> Measured:
    """Measure an image of any size in one pass over its bytes, as `nitro-cli describe-eif` does.

    Memory stays at a few megabytes. What lies in a second or later ramdisk goes into PCR0 and PCR2, so it is hashed
    twice, in two threads. The sections are those that nitro-cli's reader walks over; when `walk.same_measured` is
    false, a loader may start others. Raises EifError where that reader gives up, and for a Signature section
    that holds no certificate. Source: README of aws-nitro-enclaves-image-format; EifReader for what is accepted.
    """
    walk = walk or walk_eif(source)
    check_walked(source, walk)
    registers = _Registers()
    certificate = None
    with _Pass(zlib.crc32(walk.header.raw[:CRC_OFFSET])) as over:
        for section in walk.walked.sections:
            over.feed(source.read(section.offset, SECTION_HEADER.size), ())
            over.drain()
            hashes = registers.covering(section.type)
            for chunk in source.chunks(section.data_offset, section.size):
                over.feed(chunk, hashes)
            if section.type is SectionType.SIGNATURE:
                certificate = section_signature(source, section).certificate
        crc = over.drain()
    return Measured(registers.measurements(certificate), crc, walk.header.crc32)


class _Pass:
    """Takes a file's bytes in order to hashes, each in a thread of its own, and to the CRC in whichever has time.

    Two hashes keep two cores busy. Were the CRC computed in a third thread, or always in the same one, one core would
    have more to do and the other would wait for it; so they take it in turns.
    """

    def __init__(self, crc: int) -> None:
        self._crc: int | Future[int] = crc
        self._threads = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: deque[Future[int] | Future[None]] = deque()
        self._fed = 0

    def feed(self, chunk: bytes | memoryview, hashes: Sequence[hashlib._Hash]) -> None:
        """Hash `chunk`, now or soon: it must not change before `drain`, and `hashes` must not be looked at."""
        if len(chunk) < THREADS_FROM:
            self._crc = zlib.crc32(chunk, self.drain())
            for register in hashes:
                register.update(chunk)
            return
        for thread, register in zip(self._threads, hashes, strict=False):
            self._pending.append(thread.submit(register.update, chunk))
        turn = self._fed % 2 if len(hashes) > 1 else 1
        self._crc = self._threads[turn].submit(_next_crc, chunk, self._crc)
        self._pending.append(self._crc)
        self._fed += 1
        while len(self._pending) > CHUNKS_AHEAD * (len(hashes) + 1):
            self._pending.popleft().result()

    def drain(self) -> int:
        """Wait until all that was fed is done; the CRC so far."""
        while self._pending:
            self._pending.popleft().result()
        if not isinstance(self._crc, int):
            self._crc = self._crc.result()
        return self._crc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for thread in self._threads:
            thread.shutdown()


def _next_crc(chunk: bytes | memoryview, before: int | Future[int]) -> int:
    # No deadlock: what is waited for was handed out earlier, so it waits for nothing that is behind this.
    return zlib.crc32(chunk, before if isinstance(before, int) else before.result())


def check_walked(source: EifSource, walk: Walk) -> None:
    """Raises EifError when nitro-cli's reader could not walk over the image to its end."""
    if walk.walked.refusal is not None:
        raise walk.walked.refusal.error() if walk.header.magic == MAGIC else EifError(foreign(source.read(0, 512)))


def section_signature(source: EifSource, section: WalkedSection) -> EifSignature:
    """Read and parse a Signature section. Raises EifError, also for one of more than SIGNATURE_READ_LIMIT bytes."""
    # Signed images are few, and these imports cost as much as reading the image.
    from enclavedbg.eif.signature import read_signature

    if section.size > SIGNATURE_READ_LIMIT:
        raise EifError(
            f"a signature of {section.size} bytes, the format allows {SIGNATURE_MAX_SIZE}; sign the image again",
            offset=section.offset + 4,
        )
    return read_signature(source.read(section.data_offset, section.size), offset=section.data_offset)


def extended(content: bytes) -> bytes:
    """A PCR that was zero, extended once by the digest `content`."""
    return hashlib.sha384(bytes(PCR_SIZE) + content).digest()


def certificate_pcr(der: bytes) -> bytes:
    """PCR8 for a signing certificate given as DER."""
    return extended(hashlib.sha384(der).digest())
