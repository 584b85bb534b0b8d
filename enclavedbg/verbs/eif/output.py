"""What the verbs on images have in common: JSON as nitro-cli prints it, measurements, warnings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable

from enclavedbg.eif.measure import Measured, Measurements
from enclavedbg.eif.text import safe
from enclavedbg.eif.walk import Walk

_UNSHOWABLE = re.compile(r"[^\x20-\x7e]")


def print_json(value: object) -> None:
    """Two spaces of indentation, and characters as they are where they can be shown and nothing acts on them."""
    text = _UNSHOWABLE.sub(_escaped, json.dumps(value, indent=2, ensure_ascii=False))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = _UNSHOWABLE.sub(_escaped, json.dumps(value, indent=2))
    print(text)


def _escaped(match: re.Match[str]) -> str:
    """A character of a JSON string by its number (RFC 8259, section 7), unless it is printable or the layout's own."""
    character = match[0]
    if character.isprintable() or character == "\n":
        return character
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def print_measurements(measurements: Measurements) -> None:
    """A line for each PCR."""
    for index, value in measurements.as_mapping().items():
        print(f"PCR{index}: {value.hex()}")


def warn(messages: Iterable[str]) -> None:
    """A line for each on standard error."""
    for message in messages:
        print(f"enclavedbg: warning: {safe(message)}", file=sys.stderr)


def measuring_warnings(walk: Walk, measured: Measured) -> list[str]:
    """Reasons not to trust measurements, though nitro-cli gives the same."""
    found = []
    if not measured.crc_matches:
        found.append(
            f"the CRC-32 of the contents is {measured.crc32:08x}, the header says {measured.stated_crc32:08x}: "
            "the image was damaged or changed after it was built"
        )
    if not walk.same_measured:
        found.append(
            "the header's table leads a loader to other sections than those measured here (and by nitro-cli): "
            "what starts may be something else, if it starts"
        )
    return found
