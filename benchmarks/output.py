"""A report for a person, and for a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import Report

_SCALES = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")), "B": ((1e6, "MB"), (1e3, "kB")), "B/s": ((1e6, "MB/s"),)}
"""Units that are shown in parts or multiples: the first that gives at least 1, or else the last."""


def shown(value: float, unit: str, *, like: float | None = None) -> str:
    """A value with three digits and its unit, at the scale that fits `like`, by default itself."""
    scales = _SCALES.get(unit, ((1.0, unit),))
    size = abs(value if like is None else like)
    scale, name = next((pair for pair in scales if size >= pair[0]), scales[-1])
    return f"{_digits(value / scale)} {name}"


def _digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def lines(report: Report) -> list[str]:
    """The report as text: figures by quantity, median first, then the smallest and the largest value."""
    text = [report.name]
    width = max((len(figure.what) for figure in report.figures), default=0)
    sides = max((len(figure.side) for figure in report.figures), default=0)
    seen = ""
    for figure in report.figures:
        median = shown(figure.median, figure.unit)
        low, high = (shown(v, figure.unit, like=figure.median).split(" ")[0] for v in _ends(figure.values))
        limit = report.targets.get((figure.what, figure.side))
        target = "" if limit is None else f"   target {shown(limit, figure.unit)}"
        what = "" if figure.what == seen else figure.what
        seen = figure.what
        text.append(
            f"  {what:{width}}  {figure.side:{sides}}  {median:>10}  ({low} to {high}, {_times(figure.values)}){target}"
        )
    for ratio in report.ratios:
        spread = "({:.2f} to {:.2f})".format(*_ends(ratio.values))
        target = "" if ratio.target is None else f"   target {ratio.target:.2f}"
        text.append(f"  {ratio.what}: {' / '.join(ratio.sides)} = {ratio.median:.2f} {spread}{target}")
    notes = [
        f"{times} runs of {side} hung without a clock and were repeated" for side, times in report.repeated.items()
    ]
    return text + [f"  note: {note}" for note in notes + report.notes]


def _ends(values: tuple[float, ...]) -> tuple[float, float]:
    return min(values), max(values)


def _times(values: tuple[float, ...]) -> str:
    return f"{len(values)} times" if len(values) > 1 else "once"


def record(path: Path, report: Report, *, machine: Mapping[str, str], when: datetime) -> None:
    """Append the report to a file of JSON lines, one object for each."""
    entry: dict[str, Any] = {
        "date": when.isoformat(timespec="seconds"),
        "machine": dict(machine),
        "benchmark": report.name,
        "figures": [
            {
                "what": figure.what,
                "side": figure.side,
                "unit": figure.unit,
                "median": figure.median,
                "values": list(figure.values),
                "target": report.targets.get((figure.what, figure.side)),
            }
            for figure in report.figures
        ],
        "ratios": [
            {
                "what": ratio.what,
                "sides": list(ratio.sides),
                "median": ratio.median,
                "values": list(ratio.values),
                "target": ratio.target,
            }
            for ratio in report.ratios
        ],
        "repeated": report.repeated,
        "notes": report.notes,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
