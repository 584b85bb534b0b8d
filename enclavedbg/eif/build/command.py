"""The files /cmd and /env of an image: one word, one NAME=value, in each line.

Source: aws-nitro-enclaves-sdk-bootstrap, init.c. Nothing can be quoted in them, so a line feed cannot be said.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from enclavedbg.eif.build.contents import read_input
from enclavedbg.errors import EifError

TEXT_LIMIT = 1 << 20
"""Bytes of a command or environment file; Linux takes not much more at exec."""


def encode_command(words: Sequence[str]) -> bytes:
    """The contents of /cmd. Raises EifError for no words, and for one that a line cannot hold."""
    if not words or not words[0]:
        raise EifError("there is no command to run; name one with --command")
    for word in words:
        _check_line(word, what="the command's word")
        if not word:
            raise EifError("the command has an empty word, which init skips; leave it out")
    return _lines(words)


def encode_environment(environment: Mapping[str, str]) -> bytes:
    """The contents of /env, in the mapping's order. Raises EifError for what a line cannot hold."""
    for name, value in environment.items():
        if not name or "=" in name:
            raise EifError(f"{name!r} is no name of a variable; expected NAME=value")
        _check_line(f"{name}={value}", what="the variable")
    return _lines(f"{name}={value}" for name, value in environment.items())


def split_command(text: str) -> list[str]:
    """Words of a command line with a shell's quotes, nothing else of a shell. Raises EifError."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise EifError(f"the command {text[:60]!r} cannot be split: {error}; close its quotes") from error


def read_command_file(path: Path) -> list[str]:
    """Words from a file with one in each line, as /cmd itself has them; empty lines do not count. Raises EifError."""
    return [line for line in _text(path, what="the command file").split("\n") if line]


def parse_environment(assignments: Iterable[str]) -> dict[str, str]:
    """NAME=value strings by name, in the order in which the names came first. Raises EifError."""
    environment = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not name:
            raise EifError(f"the variable {assignment[:60]!r} is not NAME=value; write its value out")
        environment[name] = value
    return environment


def read_environment_file(path: Path) -> dict[str, str]:
    """Variables from a file of NAME=value lines; empty lines and those that begin with # do not count."""
    lines = _text(path, what="the environment file").split("\n")
    return parse_environment(line for line in lines if line.strip() and not line.startswith("#"))


def _text(path: Path, *, what: str) -> str:
    return bytes(read_input(path, what=what, limit=TEXT_LIMIT)).decode("utf-8", "surrogateescape")


def _check_line(text: str, *, what: str) -> None:
    if "\n" in text or "\0" in text:
        raise EifError(f"{what} {text[:60]!r} has a line feed or NUL, which init cannot be told; leave it out")


def _lines(texts: Iterable[str]) -> bytes:
    try:
        data = "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise EifError(f"the command or environment is not text: {error.reason}") from error
    if len(data) > TEXT_LIMIT:
        raise EifError(f"{len(data)} bytes of command or environment, at most {TEXT_LIMIT}; shorten it")
    return data
