"""Says what will go wrong when an image starts, before it is started.

    report = lint(Path("app.eif"), memory=512 << 20)
    for finding in report.findings:
        finding.severity, finding.id, finding.message, finding.evidence, finding.cure

A rule is a function that takes a Subject and yields Findings; rules stand in one module for each part of an image,
and `registry.GROUPS` has them all. To add one: a Check, the rule, both into its module's GROUP.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from enclavedbg.eif.archives import DEFAULT_LIMITS, Limits
from enclavedbg.eif.format import MAGIC
from enclavedbg.eif.lint.finding import Check, Finding, Group, Rule, Severity
from enclavedbg.eif.lint.registry import CHECKS, GROUPS, catalogue
from enclavedbg.eif.lint.subject import Subject
from enclavedbg.eif.reader import file_contents, foreign
from enclavedbg.eif.source import open_source
from enclavedbg.eif.walk import walk_eif
from enclavedbg.errors import EifError

__all__ = [
    "CHECKS",
    "GROUPS",
    "Check",
    "Finding",
    "Group",
    "Report",
    "Rule",
    "Severity",
    "Subject",
    "catalogue",
    "lint",
]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, the worst first."""

    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def has_errors(self) -> bool:
        """Whether the image will not start or not work."""
        return self.count(Severity.ERROR) > 0


def lint(
    source: Path | bytes | memoryview,
    *,
    memory: int | None = None,
    now: datetime | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Examine an image, a file or one in memory, by every rule.

    `memory` is what the enclave is to have, in bytes; certificates should be valid `now`, an aware time, by default
    the present. Damage of any part is a finding; EifError is raised only for what is no EIF or cannot be read.
    """
    data = file_contents(source) if isinstance(source, Path) else memoryview(source).toreadonly().cast("B")
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise EifError(foreign(bytes(data[:512])), offset=0)
    subject = Subject(data, walk_eif(open_source(data)), memory, now or datetime.now(UTC), limits)
    findings = [finding for group in GROUPS for rule in group.rules for finding in rule(subject)]
    return Report(tuple(sorted(findings, key=lambda finding: finding.severity.rank)))
