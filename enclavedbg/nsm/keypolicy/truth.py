"""Yes, no, or not known: the three answers that a policy gives when part of the request is not known."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Truth(Enum):
    """Kleene's three values. UNKNOWN always comes with a reason, beside it."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"

    def __invert__(self) -> Truth:
        if self is Truth.UNKNOWN:
            return self
        return Truth.NO if self is Truth.YES else Truth.YES

    @staticmethod
    def of(value: bool) -> Truth:
        """A plain answer."""
        return Truth.YES if value else Truth.NO


def all_of(truths: Iterable[Truth]) -> Truth:
    """NO when one is no, YES when all are yes (or there are none), else UNKNOWN."""
    return _until(Truth.NO, truths)


def any_of(truths: Iterable[Truth]) -> Truth:
    """YES when one is yes, NO when all are no (or there are none), else UNKNOWN."""
    return _until(Truth.YES, truths)


def _until(decisive: Truth, truths: Iterable[Truth]) -> Truth:
    answer = ~decisive
    for truth in truths:
        if truth is decisive:
            return truth
        if truth is Truth.UNKNOWN:
            answer = truth
    return answer
