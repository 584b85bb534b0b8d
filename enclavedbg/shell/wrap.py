"""Text into the width of a terminal."""

from __future__ import annotations

from enclavedbg.shell.text import Text, plain

SHORTEST_PIECE = 12
"""Characters of a long word worth to begin on a line."""


def wrapped(text: Text, columns: int) -> Text:
    """The text with no line longer than `columns`: broken between words, continued below its second column.

    What begins with a time or a name keeps that column free below it. A word that is longer than a line, such as
    a digest, is cut into equal parts.
    """
    out: Text = []
    for pieces in _by_line(text):
        line = plain(pieces)
        if len(line) <= columns + line.endswith("\n"):
            out += pieces
            continue
        indent = _indent(pieces, columns)
        for start, end in _cuts(line.rstrip(), columns, indent):
            if start:
                out.append(("", "\n" + " " * indent))
            out += _slice(pieces, start, end)
        if line.endswith("\n"):
            out.append(("", "\n"))
    return out


def _by_line(text: Text) -> list[Text]:
    """The pieces of each line; all but the last end with their line end."""
    rows: list[Text] = [[]]
    for style, piece in text:
        for part in piece.splitlines(keepends=True):
            rows[-1].append((style, part))
            if part.endswith("\n"):
                rows.append([])
    return [row for row in rows if row]


def _indent(pieces: Text, columns: int) -> int:
    style, first = pieces[0]
    if style in ("dim", "name") and first.endswith(" "):
        return min(len(first), columns // 2)
    return min(len(first) - len(first.lstrip()), columns // 2)


def _cuts(line: str, columns: int, indent: int) -> list[tuple[int, int]]:
    """Start and end of each part of a line."""
    cuts: list[tuple[int, int]] = []
    start, room = 0, columns
    least = indent  # the first part holds more than what is left free below it
    while len(line) - start > room:
        gap = line.rfind(" ", start + least, start + room + 1)
        word = gap + 1 if gap > start else start + least
        length = (line.find(" ", word) if " " in line[word:] else len(line)) - word
        left = start + room - word
        if length > columns - indent and (left >= SHORTEST_PIECE or gap <= start):
            parts = next(n for n in range(2, length + 1) if -(-length // n) <= left)
            end = following = word + -(-length // parts)
        elif gap > start:
            end, following = gap, gap + 1
        else:
            end = following = start + room
        cuts.append((start, end))
        start, room, least = following, columns - indent, 0
    return [*cuts, (start, len(line))]


def _slice(pieces: Text, start: int, end: int) -> Text:
    out: Text = []
    at = 0
    for style, piece in pieces:
        part = piece[max(0, start - at) : max(0, end - at)]
        if part:
            out.append((style, part))
        at += len(piece)
    return out
