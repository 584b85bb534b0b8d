"""Measuring in turns, and what comes of it: figures with their spread, ratios, notes."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Sample = Mapping[str, float]
"""What one run of one side measured: values by the name of the figure."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one side, with a value for each turn."""

    what: str
    side: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two sides' figures divided turn by turn, so that what slows both of a turn cancels out."""

    what: str
    sides: tuple[str, str]
    values: tuple[float, ...]
    target: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(slots=True)
class Report:
    """What one benchmark found. Targets are upper limits; `repeated` counts runs of a side that were done again."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    targets: dict[tuple[str, str], float] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)

    def figure(
        self, what: str, side: str, values: Sequence[float], *, unit: str = "s", target: float | None = None
    ) -> None:
        """Add a side's values; nothing for none."""
        if values:
            self.figures.append(Figure(what, side, unit, tuple(values)))
            if target is not None:
                self.targets[what, side] = target

    def ratio(self, what: str, side: str, peer: str, *, target: float | None = None) -> None:
        """Add the ratio of two figures, if both are there."""
        values = {figure.side: figure.values for figure in self.figures if figure.what == what}
        if side in values and peer in values:
            pairs = tuple(a / b for a, b in zip(values[side], values[peer], strict=True))
            self.ratios.append(Ratio(what, (side, peer), pairs, target))

    def note(self, text: str) -> None:
        """Add a sentence: what was not measured, and why."""
        self.notes.append(text)


class Progress:
    """One changing line on a terminal, a line for each benchmark elsewhere; always on standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._live = sys.stderr.isatty()
        if not self._live:
            print(f"{name} ...", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """What is being done."""
        if self._live:
            print(f"\r\x1b[K{self._name}: {text}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Context:
    """What a benchmark gets: a folder that is removed afterwards, a place to report, how often to measure."""

    folder: Path
    report: Report
    progress: Progress
    rounds: int | None = None

    def in_turns(
        self, sides: Mapping[str, Callable[[], Sample]], *, rounds: int, warm_up: int = 1
    ) -> dict[str, list[Sample]]:
        """Run the sides A B A B ..., `rounds` times each, after `warm_up` turns that are not counted."""
        rounds = self.rounds or rounds
        samples: dict[str, list[Sample]] = {side: [] for side in sides}
        for turn in range(warm_up + rounds):
            for side, measure in sides.items():
                what = f"turn {turn - warm_up + 1} of {rounds}" if turn >= warm_up else "warm-up"
                self.progress.say(f"{what}, {side}")
                sample = measure()
                if turn >= warm_up:
                    samples[side].append(sample)
        return samples

    def add(
        self,
        samples: Mapping[str, Sequence[Sample]],
        what: str,
        *,
        unit: str = "s",
        targets: Mapping[str, float] | None = None,
    ) -> None:
        """Report one quantity of every side that measured it; `targets` are upper limits by side."""
        for side, values in samples.items():
            found = [value[what] for value in values if what in value]
            self.report.figure(what, side, found, unit=unit, target=(targets or {}).get(side))
