"""Faults on demand: what the secure module is told to do wrong, and to which requests.

As people write it: `Attestation error InternalError`, `Attestation#3 delay 2s`, `GetRandom drop`,
`DescribePCR cut 10 if index == 0`; on a command line colons may stand for the spaces.
"""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Sequence
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
    `cut` is how many bytes of the answer the guest gets. `text` names what was done, for people; `delayed_by` has the
    numbers of the faults that delay.
    """

    error: ErrorCode | None = None
    delay_ns: int = 0
    drop: bool = False
    cut: int | None = None
    text: str = ""
    delayed_by: frozenset[int] = frozenset()


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
    selector, action = parse_selector(words, answered=False)
    return Fault(selector, _effects(action))


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SelectorError(f"cannot read the fault {text[:60]!r}: {str(error).lower()}") from None
    return [*words[0].split(":"), *words[1:]] if words else words


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
        case ["cut", length] if re.fullmatch("[0-9]{1,5}", length) and int(length) < RESPONSE_LIMIT:
            return Effects(cut=int(length), text=text)
        case ["cut", *_]:
            raise SelectorError(f"{text!r}: expected cut with the number of bytes to leave, below {RESPONSE_LIMIT}")
    found = f"{text!r} is nothing to do to a request" if words else "nothing to do to the request is named"
    raise SelectorError(f"{found}; expected {ACTIONS}")


def _delay(text: str) -> int:
    try:
        delay = seconds(text)
    except ValueError as error:
        raise SelectorError(str(error)) from None
    if not 1e-9 <= delay <= LONGEST_DELAY:
        raise SelectorError(f"a delay of {text[:40]}, expected a nanosecond to {LONGEST_DELAY / 3600:.0f}h")
    return round(delay * 1e9)


class FaultTable:
    """The faults of a module, by number from 1. Safe for several threads."""

    def __init__(self) -> None:
        self.on_remove: Callable[[int], object] = lambda number: None
        """Called with the number of a fault that was taken away: a request that it delays need wait no longer."""
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
        if found is None:
            return None
        self.on_remove(number)
        return found[0]

    def listing(self) -> list[tuple[int, Fault, int]]:
        """Number, fault, and how many requests that it is about came since it is in force."""
        with self._lock:
            return [(number, fault, counter.seen) for number, (fault, counter) in self._faults.items()]

    def effects(self, request: Request | None) -> Effects:
        """What befalls a request that comes now; every fault counts it."""
        with self._lock:
            met = {n: fault.effects for n, (fault, counter) in self._faults.items() if counter.wants(request)}
        if not met:
            return NO_EFFECTS
        delays = {number: effects for number, effects in met.items() if effects.delay_ns}
        decided = next((effects for number, effects in met.items() if number not in delays), NO_EFFECTS)
        return Effects(
            decided.error,
            sum(effects.delay_ns for effects in delays.values()),
            decided.drop,
            decided.cut,
            ", ".join(effects.text for effects in (*delays.values(), decided) if effects.text),
            frozenset(delays),
        )
