"""Why a run ended, in one line, with the exit status that the command gives.

The serial console is the witness: what Linux wrote last says more than how the machine stopped.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from enclavedbg.machine.events import ConsoleLine, Record


class Outcome(Enum):
    """How a run can end. The number is the command's exit status (docs/exit-codes.md)."""

    CLEAN = 0
    PANIC = 10
    TRIPLE_FAULT = 11
    HANG = 12
    TIMEOUT = 13
    ENGINE_FAILURE = 14
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a run: what it was, and one line that says why."""

    kind: ClassVar[str] = "verdict"
    outcome: Outcome
    line: str

    @property
    def exit_status(self) -> int:
        """What the command exits with."""
        return self.outcome.value

    def summary(self) -> str:
        return self.line


_TIMESTAMP = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\](?:\[[ \w]+\])? ?")
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
_PANIC_OVER = re.compile(r"Rebooting in \d+ seconds|---\[ end Kernel panic")
_HALTED = re.compile(r"reboot: (System halted|Power down|Power off not available)")
_RESTART = re.compile(r"reboot: Restarting system")
_OOPS = re.compile(r"(?:BUG: .*|Oops: .*|general protection fault.*|kernel BUG at .*)")
_INIT_EXIT = re.compile(r"^init: .* (?:exited with status \d+|killed by signal .*)")


class Witness:
    """Reads the console as it comes and keeps what matters for a verdict."""

    def __init__(self) -> None:
        self.panic: str | None = None
        self.panic_over = False
        self.oops: str | None = None
        self.halted: str | None = None
        self.restarting = False
        self.program: str | None = None
        self.last: deque[str] = deque(maxlen=20)
        self.lines = 0
        self.on_panic_over: Callable[[], None] = lambda: None
        """Called, on the vCPU thread, when the kernel has said all that it will say of a panic."""

    def __call__(self, record: Record) -> None:
        """An event stream subscriber."""
        if isinstance(record.event, ConsoleLine):
            self.read(record.event.text)

    def read(self, text: str) -> None:
        """One console line."""
        self.lines += 1
        line = _TIMESTAMP.sub("", text.strip())
        if line:
            self.last.append(line)
        if self.panic is None:
            if match := _PANIC.search(line):
                self.panic = match[1].strip()
        elif not self.panic_over and _PANIC_OVER.search(line):
            self.panic_over = True
            self.on_panic_over()
        if self.oops is None and (match := _OOPS.match(line)):
            self.oops = match[0].strip()
        if match := _HALTED.search(line):
            self.halted = match[1]
        if _RESTART.search(line):
            self.restarting = True
        if _INIT_EXIT.match(line):
            self.program = line

    # ---- verdicts ----

    def reset(self) -> Verdict:
        """The guest reset itself."""
        if self.panic is not None:
            return self.panicked()
        if self.restarting or self.program:
            return self._ended(self.program or "the guest rebooted")
        return self._ended(f"the guest reset the machine{self._tail()}")

    def power_off(self) -> Verdict:
        """The guest switched itself off through ACPI."""
        if self.panic is not None:
            return self.panicked()
        return self._ended(self.program or "the guest powered off")

    def panicked(self) -> Verdict:
        """The kernel gave up."""
        return Verdict(Outcome.PANIC, f"kernel panic: {self.panic}{self._after()}")

    def dead_halt(self, rip: int) -> Verdict:
        """The CPU halted with interrupts off: nothing can wake it."""
        if self.panic is not None:
            return self.panicked()
        if self.halted is not None:
            halted = "the guest halted" if self.halted == "System halted" else "the guest powered off"
            return self._ended(self.program or halted)
        return Verdict(Outcome.HANG, f"hang: the CPU halted with interrupts off at {rip:#x}{self._tail()}")

    def deaf(self, rip: int, seconds: int) -> Verdict:
        """An interrupt waited too long."""
        if self.panic is not None:
            return self.panicked()
        return Verdict(
            Outcome.HANG, f"hang: interrupts stayed off for {seconds} s of guest time, now at {rip:#x}{self._tail()}"
        )

    def triple_fault(self, rip: int, detail: str) -> Verdict:
        """A fault that could not be delivered."""
        words = f": {detail}" if detail else ""
        return Verdict(Outcome.TRIPLE_FAULT, f"triple fault at {rip:#x}{words}{self._tail()}")

    def timed_out(self, seconds: float, rip: int | None) -> Verdict:
        """The user's --timeout passed."""
        where = f", the CPU at {rip:#x}" if rip is not None else ""
        return Verdict(Outcome.TIMEOUT, f"still running after {seconds:g} s{where}{self._tail()}")

    def _ended(self, how: str) -> Verdict:
        return Verdict(Outcome.CLEAN, f"the enclave ended: {how}{self._after()}")

    def _after(self) -> str:
        return f", after a kernel error: {self.oops}" if self.oops else ""

    def _tail(self) -> str:
        return f"; last console line: {self.last[-1]}" if self.last else "; the console stayed empty"
