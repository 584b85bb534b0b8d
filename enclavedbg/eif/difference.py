"""One difference between two images, and which registers it moves."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Something of `where` (`header`, `sections`, or a section's name) that is not the same in both images.

    `path` is the file or the metadata member concerned, None for the whole. `aspect` is one of the words `added`,
    `removed`, `content`, `type`, `mode`, `owner`, `mtime`, `target`, `device`, `links`, `name`, `inodes`, `order`,
    `archives`, `compression`, `parameters`, `padding`, `trailer`, `encoding`, `certificate`, `signature`, or a header
    field's name. `old` and `new` are for reading, None where there is nothing. `pcrs` are the registers it moves.
    """

    where: str
    aspect: str
    old: Value
    new: Value
    pcrs: tuple[int, ...] = ()
    path: str | None = None
