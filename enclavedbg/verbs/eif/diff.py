"""`enclavedbg eif diff`: what differs between two images, and which PCRs that moves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from enclavedbg.eif.contents import Contents, open_contents
from enclavedbg.eif.diff import Comparison, diff
from enclavedbg.eif.difference import Difference, Value
from enclavedbg.errors import EifError
from enclavedbg.verbs.eif.limits import add_limit, limits_from
from enclavedbg.verbs.eif.text import shown, time_of

LINES_SHOWN = 20
"""Paths of one section that are named without --all."""
TEXT_SHOWN = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Exit status: 0 the files are the same, 1 they differ, 2 one cannot be compared."
    parser.add_argument("old", type=Path, metavar="A", help="an enclave image")
    parser.add_argument("new", type=Path, metavar="B", help="another")
    parser.add_argument("--all", action="store_true", help="name every file, not just the first few of each section")
    parser.add_argument("--measured", action="store_true", help="exit with 0 when the PCRs are the same")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    add_limit(parser)


def run(options: argparse.Namespace) -> int:
    old, new = _open(options.old), _open(options.new)
    comparison = diff(old, new, limits=limits_from(options))
    if options.json:
        print(json.dumps(record(comparison), indent=2))
    else:
        print("\n".join(lines(comparison, limit=None if options.all else LINES_SHOWN)))
    for path, image in ((options.old, old), (options.new, new)):
        for note in image.notes:
            print(f"note: {shown(str(path))}: {note}", file=sys.stderr)
    return 0 if (comparison.same_measured if options.measured else comparison.same) else 1


def _open(path: Path) -> Contents:
    try:
        return open_contents(path)
    except EifError as error:
        # There are two: say which.
        raise EifError(f"{path}: {error}") from error


def record(comparison: Comparison) -> dict[str, object]:
    """A comparison for JSON: `differences` have the members of enclavedbg.eif.difference.Difference."""
    old, new = comparison.old.as_mapping(), comparison.new.as_mapping()
    return {
        "same": comparison.same,
        "same_measured": comparison.same_measured,
        "pcrs": {
            f"PCR{pcr}": {"old": _hex(old.get(pcr)), "new": _hex(new.get(pcr)), "moved": pcr in comparison.moved}
            for pcr in sorted(old | new)
        },
        "differences": [asdict(difference) for difference in comparison.differences],
    }


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def lines(comparison: Comparison, *, limit: int | None) -> list[str]:
    """For people: the differences by section, at most `limit` paths of each, then the registers."""
    if comparison.same:
        return ["the files are the same"]
    text = []
    for where, group in groupby(comparison.differences, key=lambda difference: difference.where):
        found = list(group)
        pcrs = sorted({pcr for difference in found for pcr in difference.pcrs})
        text.append(f"{where}: {_moves(pcrs)}")
        text += [f"  {line}" for line in _limited(list(_group(found)), limit)]
    text.append("")
    text += _registers(comparison)
    return text


def _moves(pcrs: Sequence[int]) -> str:
    return f"moves {', '.join(f'PCR{pcr}' for pcr in pcrs)}" if pcrs else "moves no PCR"


def _limited(found: list[str], limit: int | None) -> list[str]:
    if limit is None or len(found) <= limit:
        return found
    return [*found[:limit], f"... and {len(found) - limit} more; --all names them"]


def _group(differences: Sequence[Difference]) -> Iterator[str]:
    """A line for each path; files where nothing but the time differs are counted."""
    times = []
    for path, group in groupby(differences, key=lambda difference: difference.path):
        found = list(group)
        if path is not None and [difference.aspect for difference in found] == ["mtime"]:
            times.append(found[0])
        elif path is None:
            yield from (_aspect(difference) for difference in found)
        else:
            yield f"{shown(path)}: {'; '.join(_aspect(difference) for difference in found)}"
    if times:
        first = times[0]
        others = f" and of {len(times) - 1} more" if len(times) > 1 else ""
        yield f"only the time of {shown(first.path or '')}{others}: {_aspect(first)}"


def _aspect(difference: Difference) -> str:
    match difference.aspect, difference.old, difference.new:
        case "added", _, new:
            return f"only in the second ({_value(new)})"
        case "removed", old, _:
            return f"only in the first ({_value(old)})"
        case "mtime", int(old), int(new):
            return f"time {time_of(old)} -> {time_of(new)}"
        case aspect, old, new:
            return f"{aspect.replace('_', ' ')} {_value(old)} -> {_value(new)}"


def _value(value: Value) -> str:
    if value is None:
        return "none"
    size, _, digest = str(value).partition(", SHA-256 ")
    text = shown(size) + (f" ({digest[:12]}...)" if digest else "")
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}..."


def _registers(comparison: Comparison) -> Iterator[str]:
    old, new = comparison.old.as_mapping(), comparison.new.as_mapping()
    if comparison.same_measured:
        names = ", ".join(f"PCR{pcr}" for pcr in sorted(old))
        yield f"nothing measured differs: {names} are the same in both"
        return
    for pcr in sorted(old | new):
        if pcr in comparison.moved:
            yield f"PCR{pcr}  {_hex(old.get(pcr)) or 'none'}"
            yield f"   ->  {_hex(new.get(pcr)) or 'none'}"
        else:
            yield f"PCR{pcr}  same"
