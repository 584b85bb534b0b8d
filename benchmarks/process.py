"""A child process whose output is read line by line, with the time of each."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

LIMIT = 20.0
"""Seconds after which a child that says nothing of what was waited for counts as failed."""


class Failed(Exception):
    """A side did not do what is measured: there is no figure."""


class Hopeless(Failed):
    """It said itself that it never will."""


class Child:
    """A process in a group of its own, ended with all that it started when the block is left.

    Times are seconds since just before the process was started.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        self._name = os.path.basename(command[0])
        self._text = b""
        self._said: list[str] = []
        self._deadline = 0.0
        self.began = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            bufsize=0,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def until(
        self, *markers: str, meanwhile: Callable[[], object] | None = None, hopeless: str = ""
    ) -> dict[str, float]:
        """When a line with each of the markers (in this order) came.

        `meanwhile` is called every 10 ms. Raises Failed when the process ends before that or LIMIT passes, and
        Hopeless at a line with the text `hopeless`.
        """
        self._deadline = time.perf_counter() + LIMIT
        wanted = list(markers)
        found: dict[str, float] = {}
        while wanted:
            line = self._line(wanted[0], meanwhile)
            if hopeless and hopeless in line:
                raise Hopeless(f"{self._name} said {line!r}")
            if wanted[0] in line:
                found[wanted.pop(0)] = time.perf_counter() - self.began
        return found

    def match(self, pattern: str, meanwhile: Callable[[], object] | None = None) -> re.Match[str]:
        """The first line from here on that has the pattern; otherwise as `until`."""
        self._deadline = time.perf_counter() + LIMIT
        while True:
            if match := re.search(pattern, self._line(pattern, meanwhile)):
                return match

    def whole(self) -> tuple[str, float]:
        """All that the process says until it ends by itself, and when it did; raises Failed when LIMIT passes."""
        self._deadline = time.perf_counter() + LIMIT
        while self._read(None):
            if time.perf_counter() > self._deadline:
                raise Failed(f"{self._name} did not end in {LIMIT:.0f} s; last: {self._last_words()}")
        return self._text.decode("utf-8", "replace"), time.perf_counter() - self.began

    def _line(self, wanted: str, meanwhile: Callable[[], object] | None) -> str:
        while b"\n" not in self._text:
            if not self._read(meanwhile):
                raise Failed(f"{self._name} ended without saying {wanted!r}; its last words: {self._last_words()}")
            if time.perf_counter() > self._deadline:
                raise Failed(f"{self._name} did not say {wanted!r} in {LIMIT:.0f} s; last: {self._last_words()}")
        line, self._text = self._text.split(b"\n", 1)
        self._said.append(line.decode("utf-8", "replace").rstrip("\r"))
        return self._said[-1]

    def _read(self, meanwhile: Callable[[], object] | None) -> bool:
        """Take what there is within a moment; False at the end of the output."""
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], 0.01 if meanwhile else 1)[0]
        if meanwhile:
            meanwhile()
        if not ready:
            return True
        piece = self._process.stdout.read(65536)
        self._text += piece
        return bool(piece)

    def _last_words(self) -> str:
        rest = self._text.decode("utf-8", "replace").strip()
        return " | ".join([*self._said[-2:], *([rest] if rest else [])]) or "none"

    def close(self) -> None:
        """End the process: gently, then not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
                try:
                    self._process.wait(5)
                except subprocess.TimeoutExpired:
                    continue
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
