"""A kernel command line cut into parameters as Linux cuts it.

Source: Linux kernel/params.c (next_arg), lib/cmdline.c, Documentation/admin-guide/kernel-parameters.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SPACES = b" \t\n\v\f\r\xa0"
"""What isspace() of the kernel takes as one."""


@dataclass(frozen=True, slots=True)
class BootLine:
    """Parameters as (name, value), value None where there is no `=`; bytes that are not ASCII as surrogates.

    `for_init` are the words behind `--`, None when there is no `--`; `open_quote` says that a quotation mark is
    not closed, so that what is appended to the line belongs to the last parameter.
    """

    parameters: tuple[tuple[str, str | None], ...]
    for_init: tuple[str, ...] | None
    open_quote: bool

    def values(self, name: str) -> list[str]:
        """All values given to a parameter, in order; `-` and `_` are the same in names."""
        wanted = name.replace("-", "_")
        return [value or "" for found, value in self.parameters if found.replace("-", "_") == wanted]

    def last(self, name: str) -> str | None:
        """The last value given to a parameter, None when it is not there."""
        return next(reversed(self.values(name)), None)

    def has(self, name: str) -> bool:
        """Whether a parameter is there, with a value or without."""
        return bool(self.values(name))


def parse_bootline(data: bytes) -> BootLine:
    """Cut a command line, up to its first NUL if there is one."""
    parameters: list[tuple[str, str | None]] = []
    for_init: list[str] | None = None
    words = list(_words(data.partition(b"\0")[0]))
    for word, _ in words:
        text = word.decode("ascii", "surrogateescape")
        if for_init is not None:
            for_init.append(text)
        elif text == "--":
            for_init = []
        else:
            name, equals, value = text.partition("=")
            if name.startswith('"'):
                name = name[1:]
                value = value.removesuffix('"')
            value = value.removeprefix('"').removesuffix('"')
            parameters.append((name if equals else name.removesuffix('"'), value if equals else None))
    return BootLine(tuple(parameters), None if for_init is None else tuple(for_init), bool(words) and words[-1][1])


def _words(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Words between spaces that are in no quotation marks, and whether the marks were still open at their ends."""
    start: int | None = None
    quoted = False
    for at, byte in enumerate(data):
        if byte in SPACES and not quoted:
            if start is not None:
                yield data[start:at], False
                start = None
            continue
        if start is None:
            start = at
        if byte == ord('"'):
            quoted = not quoted
    if start is not None:
        yield data[start:], quoted
