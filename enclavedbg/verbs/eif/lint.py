"""`enclavedbg eif lint`: what will go wrong when an image starts, before it is started."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from enclavedbg.cli import parse_memory
from enclavedbg.eif.lint import Finding, Report, Severity, lint
from enclavedbg.eif.text import safe
from enclavedbg.verbs.eif.limits import add_limit, limits_from
from enclavedbg.verbs.eif.output import print_json
from enclavedbg.verbs.eif.text import count

_COLOURS = {Severity.ERROR: "\x1b[1;31m", Severity.WARNING: "\x1b[1;33m", Severity.NOTE: "\x1b[1;36m"}
_PLAIN = "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --memory, --json, --limit."""
    parser.description = (
        "What will go wrong when the image starts. Exit status: 1 when there is an error, 0 when there is none, "
        "2 when the file is no EIF. docs/lint.md lists all findings."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument(
        "--memory", type=parse_memory, metavar="SIZE", help="judge whether the image fits this much memory, e.g. 512M"
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    add_limit(parser)


def run(options: argparse.Namespace) -> int:
    """Print the findings; 1 when one is an error."""
    report = lint(options.file, memory=options.memory, limits=limits_from(options))
    if options.json:
        print_json(record(options.file, report))
    else:
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(lines(options.file, report, coloured=coloured)))
    return 1 if report.has_errors else 0


def record(path: Path, report: Report) -> dict[str, object]:
    """For JSON: counts of each severity, and the findings, worst first; `evidence` may have several lines."""
    return {
        "file": str(path),
        "errors": report.count(Severity.ERROR),
        "warnings": report.count(Severity.WARNING),
        "notes": report.count(Severity.NOTE),
        "findings": [
            {
                "id": finding.id,
                "severity": finding.severity.value,
                "message": finding.message,
                "evidence": _evidence(finding),
                "cure": safe(finding.cure),
            }
            for finding in report.findings
        ],
    }


def lines(path: Path, report: Report, *, coloured: bool) -> Iterator[str]:
    """For people: a block for each finding, then how many there are."""
    for finding in report.findings:
        word = finding.severity.value
        if coloured:
            word = f"{_COLOURS[finding.severity]}{word}{_PLAIN}"
        yield f"{word} {finding.id}: {finding.message}"
        yield from (f"  {line}" for line in _evidence(finding).splitlines())
        yield f"  cure: {safe(finding.cure)}"
        yield ""
    yield f"{safe(str(path))}: {_summary(report)}"


def _evidence(finding: Finding) -> str:
    return "\n".join(safe(line) for line in finding.evidence.split("\n"))


def _summary(report: Report) -> str:
    if not report.findings:
        return "nothing found"
    return ", ".join(count(report.count(severity), severity.value) for severity in Severity)
