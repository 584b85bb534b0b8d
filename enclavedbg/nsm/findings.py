"""What a document is checked for, and what each check found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from enclavedbg.errors import NsmError


class Check(Enum):
    """The checks in the order of a report; the value is what a person reads."""

    CBOR = "well-formed CBOR"
    TRAILING_BYTES = "no trailing bytes"
    DUPLICATE_KEYS = "no duplicate keys"
    STRUCTURE = "COSE_Sign1 structure"
    PROTECTED_HEADER = "protected header"
    FIELDS = "field types and sizes"
    CERTIFICATES = "certificates readable"
    ROOT = "pinned root"
    CHAIN_NAMES = "chain order and names"
    CHAIN_SIGNATURES = "chain signatures"
    CONSTRAINTS = "certificate constraints"
    VALIDITY = "certificate validity"
    VALID_NOW = "still valid now"
    SIGNATURE = "COSE signature"
    MODULE_ID = "PCR4 against module id"
    DEBUG_MODE = "not in debug mode"
    PCRS = "expected PCRs"
    NONCE = "expected nonce"
    USER_DATA = "expected user data"
    PUBLIC_KEY = "expected public key"


class Status(Enum):
    """How a check came out. What could not be decided, or was not asked for, is not applicable."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report: a check, how it came out, and why. A check may have several."""

    check: Check
    status: Status
    reason: str


class DocumentError(NsmError):
    """A document is refused; `check` is the first check that it failed."""

    def __init__(self, check: Check, message: str) -> None:
        super().__init__(message)
        self.check = check


class Findings:
    """Collects what checks find, in any order, beside what was found before."""

    def __init__(self, before: Iterable[Finding] = ()) -> None:
        self._found = list(before)

    def passed(self, check: Check, reason: str) -> None:
        self._found.append(Finding(check, Status.PASS, reason))

    def failed(self, check: Check, reason: str) -> None:
        self._found.append(Finding(check, Status.FAIL, reason))

    def skipped(self, check: Check, reason: str) -> None:
        self._found.append(Finding(check, Status.NOT_APPLICABLE, reason))

    def has_failed(self, check: Check) -> bool:
        return any(f.status is Status.FAIL and f.check is check for f in self._found)

    def passed_unless_failed(self, check: Check, reason: str) -> None:
        """The line of a check that looked at several things and found nothing wrong."""
        if not self.has_failed(check):
            self.passed(check, reason)

    def in_order(self, *, missing: str | None = None) -> tuple[Finding, ...]:
        """By the order of Check. With `missing`, checks without a finding are not applicable for that reason."""
        found = list(self._found)
        if missing is not None:
            seen = {finding.check for finding in found}
            found += [Finding(check, Status.NOT_APPLICABLE, missing) for check in Check if check not in seen]
        order = {check: place for place, check in enumerate(Check)}
        return tuple(sorted(found, key=lambda finding: order[finding.check]))
