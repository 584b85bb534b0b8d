"""Faults on demand: what the secure module is told to do wrong, and to which requests.

As people write it: `Attestation error InternalError`, `Attestation#3 delay 2s`, `GetRandom drop`,
`DescribePCR cut 10 if index == 0`; on a command line colons may stand for the spaces.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from enclavedbg.nsm.selector import Counter, Selector, SelectorError, parse_selector
from enclavedbg.nsm.wire import RESPONSE_LIMIT, ErrorCode, Request
from enclavedbg.units import seconds

ACTIONS = "error NAME, delay TIME, drop or cut BYTES"
LONGEST_DELAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Effects:
    """What befalls one exchange. Delays add up; of the other actions the first that fits counts.

    `error` is answered in place of the request's own answer, which then has no effect. `delay_ns` is guest time.
    `cut` is how many bytes of the answer the guest gets. `text` names what was done, for people.
    """

    error: ErrorCode | None = None
    delay_ns: int = 0
    drop: bool = False
    cut: int | None = None
    text: str = ""


NO_EFFECTS = Effects()


@dataclass(frozen=True, slots=True)
class Fault:
    """Effects for the exchanges that a selector names."""

    selector: Selector
    effects: Effects

    def __str__(self) -> str:
        kind, condition, rest = self.selector.text.partition(" if ")
        return f"{kind} {self.effects.text}{condition}{rest}"


def parse_fault(text: str | Sequence[str]) -> Fault:
    """A fault as a person writes it, in one text or in words; raises SelectorError saying what was expected."""
    words = _words(text) if isinstance(text, str) else list(text)
    selector, action = parse_selector(words)
    if selector.needs_answer:
        raise SelectorError("a fault is chosen before there is an answer: its condition cannot name the error")
    return Fault(selector, _effects(action))


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SelectorError(f"cannot read the fault {text[:60]!r}: {str(error).lower()}") from None
    return words[0].split(":") if len(words) == 1 else words


def _effects(words: Sequence[str]) -> Effects:
    text = " ".join(words)
    match words:
        case ["error", name] if name in ErrorCode.__members__:
            return Effects(error=ErrorCode[name], text=text)
        case ["error", *_]:
            raise SelectorError(f"{text!r}: expected error with one of {', '.join(ErrorCode.__members__)}")
        case ["delay", time]:
            return Effects(delay_ns=_delay(time), text=text)
        case ["drop"]:
            return Effects(drop=True, text=text)
        case ["cut", length] if length.isdecimal() and int(length) < RESPONSE_LIMIT:
            return Effects(cut=int(length), text=text)
        case ["cut", *_]:
            raise SelectorError(f"{text!r}: expected cut with the number of bytes to leave, below {RESPONSE_LIMIT}")
    raise SelectorError(f"{text!r} is nothing to do to a request; expected {ACTIONS}")


def _delay(text: str) -> int:
    try:
        delay = seconds(text)
    except ValueError as error:
        raise SelectorError(str(error)) from None
    if delay > LONGEST_DELAY:
        raise SelectorError(f"a delay of {text}, expected at most {LONGEST_DELAY / 3600:.0f}h")
    return int(delay * 1e9)


class FaultTable:
    """The faults of a module, by number from 1. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[int, tuple[Fault, Counter]] = {}
        self._next = 1

    def add(self, fault: Fault) -> int:
        """Put a fault in force and return its number; requests are counted from now on."""
        with self._lock:
            number = self._next
            self._next += 1
            self._faults[number] = (fault, Counter(fault.selector))
            return number

    def remove(self, number: int) -> Fault | None:
        """Take a fault away; None when there is none of that number."""
        with self._lock:
            found = self._faults.pop(number, None)
            return found[0] if found else None

    def listing(self) -> list[tuple[int, Fault, int]]:
        """Number, fault, and how many requests of its kind came since it is in force."""
        with self._lock:
            return [(number, fault, counter.seen) for number, (fault, counter) in self._faults.items()]

    def effects(self, request: Request | None) -> Effects:
        """What befalls a request that comes now; every fault counts it."""
        with self._lock:
            met = [fault.effects for fault, counter in self._faults.values() if counter.wants(request)]
        if not met:
            return NO_EFFECTS
        decided = next((e for e in met if not e.delay_ns), NO_EFFECTS)
        texts = [e.text for e in met if e.delay_ns] + ([decided.text] if decided.text else [])
        return Effects(decided.error, sum(e.delay_ns for e in met), decided.drop, decided.cut, ", ".join(texts))
