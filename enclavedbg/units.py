"""Times as people write them."""

from __future__ import annotations

import re

_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|)")
_TIME_UNIT = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Seconds from `30s`, `5m`, `500ms`, `1h` or a plain number of seconds, above 0; raises ValueError."""
    match = _TIME.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no time; expected a number with ms, s, m or h, e.g. 30s")
    return float(match[1]) * _TIME_UNIT[match[2]]
