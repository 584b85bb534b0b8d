"""Text with colours, as plain data: a list of (style, text) pairs, which prompt_toolkit can show as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Text = list[tuple[str, str]]
"""Pieces in order; the first of each pair names a style of STYLES, or is empty."""

STYLES = {
    "dim": "ansibrightblack",
    "name": "ansicyan",
    "value": "bold",
    "good": "ansigreen",
    "bad": "ansired bold",
    "warn": "ansiyellow",
    "code": "ansiblue",
    "toolbar": "noreverse ansibrightblack",
}
"""What each style looks like, in prompt_toolkit's words; the sixteen terminal colours keep the user's theme."""


def plain(text: Text) -> str:
    """The text without its colours."""
    return "".join(piece for _, piece in text)


def styled(text: Text) -> list[tuple[str, str]]:
    """The text with style names as prompt_toolkit's classes."""
    return [(f"class:{style}" if style else "", piece) for style, piece in text]


def joined(lines: Iterable[Text]) -> Text:
    """Lines below one another, each ended."""
    out: Text = []
    for line in lines:
        out += line
        out.append(("", "\n"))
    return out


def lines(text: str, style: str = "") -> Text:
    """A plain text, ended by a line end unless it is empty."""
    if not text:
        return []
    return [(style, text if text.endswith("\n") else text + "\n")]


def fields(rows: Sequence[tuple[str, str | Text]]) -> Text:
    """Names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return joined(
        [("name", f"{name:{width}}  "), *([("", value)] if isinstance(value, str) else value)] for name, value in rows
    )


def seconds(guest_ns: int) -> str:
    """A guest time as the kernel's log shows it: seconds with six digits would be noise, so three."""
    return f"{guest_ns / 1e9:9.3f}"


def shortened(text: str, columns: int) -> str:
    """The beginning of a text, with an ellipsis where it had to be cut."""
    return text if len(text) <= columns else text[: max(0, columns - 1)] + "…"


def counted(count: int, what: str) -> str:
    """`1 line`, `5 lines`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def size(count: int) -> str:
    """A number of bytes for people."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            scaled = count / (1 << shift)
            return f"{scaled:.0f} {unit}" if scaled == int(scaled) else f"{scaled:.1f} {unit}"
    return f"{count} bytes"


def hexdump(address: int, data: bytes) -> Text:
    """Sixteen bytes a line: address, bytes in pairs (so that it fits 80 columns), characters."""
    rows: list[Text] = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        octets = row.hex(" ", -2)
        shown = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        rows.append([("dim", f"{address + at:016x}  "), ("", f"{octets:39} "), ("code", f"|{shown}|")])
    return joined(rows)
