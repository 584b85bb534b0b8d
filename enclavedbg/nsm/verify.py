"""Says whether an attestation document may be believed, check by check.

The rules are those that AWS publishes for its documents (user guide, "Verifying the root of trust"; the process guide
of aws-nitro-enclaves-nsm-api), with those that follow from real documents: PCR4 measures the instance in the module id,
and a debug-mode enclave's documents are as genuine as any other, told by their zero registers alone.

    report = verify(document, roots=[AWS_ROOT], at=datetime.now(UTC), expect_pcrs={0: pcr0}, nonce=nonce)
    if not report.valid:
        print(*report.failures, sep="\\n")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from enclavedbg.nsm.certificates import COORDINATE_SIZE
from enclavedbg.nsm.chain import (
    ChainCertificate,
    check_constraints,
    check_links,
    check_now,
    check_root,
    check_validity,
    read_chain,
)
from enclavedbg.nsm.document import (
    SIGNATURE_SIZE,
    DecodedDocument,
    signed_bytes,
    time_of,
)
from enclavedbg.nsm.findings import Check, DocumentError, Finding, Findings, Status
from enclavedbg.nsm.pcr import IMAGE_REGISTERS, identity_registers, is_debug_mode
from enclavedbg.nsm.reading import Envelope, Reading, read_document
from enclavedbg.nsm.roots import AWS_ROOTS, Root

_MODULE_ID = re.compile(r"(i-[0-9a-f]{8}(?:[0-9a-f]{9})?)-enc[0-9a-f]{1,16}")


_ESSENTIAL = {
    Check.STRUCTURE,
    Check.PROTECTED_HEADER,
    Check.FIELDS,
    Check.ROOT,
    Check.CHAIN_NAMES,
    Check.CHAIN_SIGNATURES,
    Check.CONSTRAINTS,
    Check.VALIDITY,
    Check.SIGNATURE,
}
"""What must have been looked at, and have held: a check that was left out is no reason to believe."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of every check, in the order of Check.

    `at` is the time for which the certificates were checked, `root` the trusted root at the top of the chain; both are
    None where the document is too damaged for that.
    """

    reading: Reading
    findings: tuple[Finding, ...]
    at: datetime | None
    root: Root | None

    @property
    def valid(self) -> bool:
        """Whether the document may be believed: no check failed, and those that trust rests on were made."""
        return not self.failures and not self._unmade

    @property
    def _unmade(self) -> list[Check]:
        """What trust rests on and was not found to hold."""
        passed = {finding.check for finding in self.findings if finding.status is Status.PASS}
        return [check for check in Check if check in _ESSENTIAL - passed]

    @property
    def readable(self) -> bool:
        """Whether this is an attestation document at all, valid or not."""
        return self.reading.readable

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(finding for finding in self.findings if finding.status is Status.FAIL)

    @property
    def verdict(self) -> str:
        """Valid or not, and why, in one line."""
        if self.valid and self.root is not None:
            return f"valid, under {self.root.name}"
        failed = dict.fromkeys(check.value for check in (*(f.check for f in self.failures), *self._unmade))
        return f"NOT VALID; failed checks: {', '.join(failed)}"

    @property
    def document(self) -> DecodedDocument:
        """The document if it is valid; raises DocumentError with the first failure."""
        for failure in self.failures:
            raise DocumentError(failure.check, f"{failure.check.value}: {failure.reason}")
        for check in self._unmade:
            raise DocumentError(check, f"{check.value}: not checked")
        return self.reading.document()


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the caller wants to find; None means anything."""

    pcrs: Mapping[int, bytes] | None = None
    nonce: bytes | None = None
    user_data: bytes | None = None
    public_key: bytes | None = None
    allow_debug: bool = False


def verify(
    document: bytes | bytearray | memoryview,
    *,
    roots: Iterable[Root] = AWS_ROOTS,
    at: datetime | None = None,
    now: datetime | None = None,
    expect_pcrs: Mapping[int, bytes] | None = None,
    nonce: bytes | None = None,
    user_data: bytes | None = None,
    public_key: bytes | None = None,
    allow_debug: bool = False,
) -> Report:
    """Check a document in every respect. Nothing in it makes this raise; a time without a zone is a ValueError.

    Only a chain under one of `roots` is believed. Certificates must be valid at `at`, an aware datetime: a service
    gives the present. The default is the document's own time, for documents that were kept; then `now`, the present,
    adds a line on whether they still are, which decides nothing. The values
    given must be in the document (PCRs by index, 48 bytes each); those not given are not looked at. Documents of
    debug-mode enclaves are refused unless `allow_debug` is set.
    """
    for name, time in (("at", at), ("now", now)):
        if time is not None and time.utcoffset() is None:
            raise ValueError(f"{name} is {time}, which names no zone; expected an aware datetime, e.g. in datetime.UTC")
    expected = Expectations(expect_pcrs, nonce, user_data, public_key, allow_debug)
    return _Case(bytes(document), tuple(roots), at, now, expected).report()


class _Case:
    """One document on its way through the checks."""

    def __init__(
        self,
        document: bytes,
        roots: tuple[Root, ...],
        at: datetime | None,
        now: datetime | None,
        expected: Expectations,
    ) -> None:
        self._reading = read_document(document)
        self._values = self._reading.values
        self._findings = Findings(self._reading.findings)
        self._roots = roots
        self._asked = at
        self._now = now
        self._expected = expected
        self._at = at or (time_of(self._values["timestamp"]) if "timestamp" in self._values else None)
        self._root: Root | None = None

    def report(self) -> Report:
        if self._reading.readable:
            self._check_chain()
            self._check_registers()
            self._check_expectations()
        missing = "the document cannot be read so far" if not self._reading.readable else "not asked for"
        return Report(self._reading, self._findings.in_order(missing=missing), self._at, self._root)

    # ---- certificates and signature ----

    def _check_chain(self) -> None:
        if "cabundle" not in self._values or "certificate" not in self._values:
            self._skip_chain("the document has no whole certificate chain")
            return
        chain = read_chain(self._values["cabundle"], self._values["certificate"], self._findings)
        if not chain:
            self._skip_chain("a certificate cannot be read")
            return
        self._root = check_root(chain, self._roots, self._findings)
        check_links(chain, self._findings)
        check_constraints(chain, self._findings)
        self._check_times(chain)
        assert self._reading.envelope is not None
        self._check_signature(chain[-1], self._reading.envelope)

    def _skip_chain(self, reason: str) -> None:
        for check in (
            Check.CERTIFICATES,
            Check.ROOT,
            Check.CHAIN_NAMES,
            Check.CHAIN_SIGNATURES,
            Check.CONSTRAINTS,
            Check.VALIDITY,
            Check.VALID_NOW,
            Check.SIGNATURE,
        ):
            if not self._findings.has_failed(check):
                self._findings.skipped(check, reason)

    def _check_times(self, chain: list[ChainCertificate]) -> None:
        if self._at is None:
            self._findings.skipped(Check.VALIDITY, "the document has no time of its own; name one")
            return
        meaning = "the document's own time" if self._asked is None else "the time asked for"
        check_validity(chain, self._at, meaning=meaning, findings=self._findings)
        if self._asked is None and self._now is not None:
            check_now(chain, self._now, self._findings)

    def _check_signature(self, leaf: ChainCertificate, envelope: Envelope) -> None:
        """The leaf's key signed header and payload as they were received."""
        if len(envelope.signature) != SIGNATURE_SIZE:
            self._findings.failed(Check.SIGNATURE, f"{len(envelope.signature)} bytes cannot be a signature of P-384")
            return
        r = int.from_bytes(envelope.signature[:COORDINATE_SIZE], "big")
        s = int.from_bytes(envelope.signature[COORDINATE_SIZE:], "big")
        signed = signed_bytes(envelope.protected, envelope.payload)
        try:
            leaf.key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            self._findings.failed(Check.SIGNATURE, "not by the leaf's key over this header and payload")
        else:
            self._findings.passed(Check.SIGNATURE, "by the leaf's key, over header and payload as received")

    # ---- what the document says ----

    def _check_registers(self) -> None:
        pcrs = self._values.get("pcrs")
        if pcrs is None:
            for check in (Check.MODULE_ID, Check.DEBUG_MODE):
                self._findings.skipped(check, "the document has no registers that can be read")
            return
        self._check_module_id(self._values.get("module_id", ""), pcrs)
        absent = [f"PCR{index}" for index in IMAGE_REGISTERS if index not in pcrs]
        if absent:
            self._findings.failed(Check.DEBUG_MODE, f"{', '.join(absent)} missing: nothing says which image ran")
        elif not is_debug_mode(pcrs):
            self._findings.passed(Check.DEBUG_MODE, "the image's registers are not zero")
        elif self._expected.allow_debug:
            self._findings.passed(Check.DEBUG_MODE, "PCR0, PCR1 or PCR2 is zero: debug mode, which was allowed")
        else:
            self._findings.failed(
                Check.DEBUG_MODE, "PCR0, PCR1 or PCR2 is zero: the enclave ran in debug mode, and anyone could look in"
            )

    def _check_module_id(self, module_id: str, pcrs: Mapping[int, bytes]) -> None:
        match = _MODULE_ID.fullmatch(module_id)
        if match is None:
            self._findings.skipped(Check.MODULE_ID, "the module id names no instance")
        elif 4 not in pcrs:
            self._findings.skipped(Check.MODULE_ID, "the document has no PCR4")
        elif not any(pcrs[4]):
            self._findings.skipped(Check.MODULE_ID, "PCR4 is zero: no instance was measured, as it is on EC2")
        elif pcrs[4] == identity_registers(instance_id=match[1])[4]:
            self._findings.passed(Check.MODULE_ID, f"PCR4 measures {match[1]}, the instance in the module id")
        else:
            self._findings.failed(Check.MODULE_ID, f"PCR4 does not measure {match[1]}, the instance in the module id")

    def _check_expectations(self) -> None:
        self._check_pcrs()
        # Sizes only in what is said: these fields may hold what should not be shown.
        for check, name, wanted in (
            (Check.NONCE, "nonce", self._expected.nonce),
            (Check.USER_DATA, "user_data", self._expected.user_data),
            (Check.PUBLIC_KEY, "public_key", self._expected.public_key),
        ):
            if wanted is None:
                continue
            found = self._values.get(name)
            if found == wanted:
                self._findings.passed(check, f"the {len(wanted)} bytes expected")
            else:
                held = "absent" if found is None else f"{len(found)} bytes"
                if self._is_malformed(name):
                    held = "not of the right form"
                self._findings.failed(check, f"{held}, not the {len(wanted)} bytes expected")

    def _is_malformed(self, name: str) -> bool:
        """Whether a field is there and not of the right type and size."""
        return name in self._reading.fields and name not in self._values

    def _check_pcrs(self) -> None:
        pcrs = self._values.get("pcrs", {})
        malformed = self._is_malformed("pcrs")
        for index, wanted in sorted((self._expected.pcrs or {}).items()):
            found = pcrs.get(index)
            if found == wanted:
                self._findings.passed(Check.PCRS, f"PCR{index} is {wanted.hex()}")
                continue
            if found is None:
                held = "not known, as the registers are not of the right form" if malformed else "not in the document"
            elif not any(found):
                held = "zero" + (", as in debug mode" if is_debug_mode(pcrs) else "")
            else:
                held = found.hex()
            self._findings.failed(Check.PCRS, f"PCR{index} is {held}, expected {wanted.hex()}")
