"""What lint finds, and what it can find: the vocabulary of the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from enclavedbg.eif.text import safe

if TYPE_CHECKING:
    from enclavedbg.eif.lint.subject import Subject


class Severity(Enum):
    """How bad a finding is: an error keeps the image from starting or from working, a warning may."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Check:
    """A thing that can be found. `id` keeps its meaning for good, so that scripts can name it.

    `meaning` is what is wrong and what comes of it; `cure` what to do, unless a finding knows better.
    """

    id: str
    severity: Severity
    meaning: str
    cure: str

    def found(self, message: str, *, evidence: str = "", cure: str | None = None) -> Finding:
        """The finding; `message` is a line on what was found here, `evidence` shows it.

        Names in it are the image's own, so what is not printable is shown by its number.
        """
        return Finding(self, safe(message), evidence, self.cure if cure is None else cure)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in an image: `message` in a line, `evidence` may have several (empty: the message has it)."""

    check: Check
    message: str
    evidence: str
    cure: str

    @property
    def id(self) -> str:
        """The check's."""
        return self.check.id

    @property
    def severity(self) -> Severity:
        """The check's."""
        return self.check.severity


Rule = Callable[["Subject"], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Group:
    """Rules about one part of an image, and all the checks whose findings they yield."""

    title: str
    checks: tuple[Check, ...]
    rules: tuple[Rule, ...]


def error(id: str, meaning: str, cure: str) -> Check:
    """A check whose findings are errors."""
    return Check(id, Severity.ERROR, meaning, cure)


def warning(id: str, meaning: str, cure: str) -> Check:
    """A check whose findings are warnings."""
    return Check(id, Severity.WARNING, meaning, cure)


def note(id: str, meaning: str, cure: str) -> Check:
    """A check whose findings are notes."""
    return Check(id, Severity.NOTE, meaning, cure)


def some(items: list[str], *, limit: int = 5) -> str:
    """The first few lines of many, for evidence."""
    rest = len(items) - limit
    return "\n".join(items[:limit] + ([f"... and {rest} more"] if rest > 0 else []))
