from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import MachineError
from enclavedbg.machine import console as console_module
from enclavedbg.machine.console import LINE_LIMIT, Console, printable
from enclavedbg.machine.events import ConsoleLine, Event, GuestWarning


class Listener(list[Event]):
    def lines(self) -> list[str]:
        return [event.text for event in self if isinstance(event, ConsoleLine)]


def feed(console: Console, data: bytes) -> None:
    for byte in data:
        console.write(byte)


def test_lines_are_published_as_they_end() -> None:
    seen = Listener()
    console = Console(seen.append)
    feed(console, b"one\r\ntwo\n\r\nthr")
    assert seen.lines() == ["one", "two", ""]
    assert console.text() == "one\ntwo\n\nthr"
    console.close()
    console.close()
    assert seen.lines() == ["one", "two", "", "thr"]
    assert console.text() == "one\ntwo\n\nthr"


def test_the_file_keeps_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    seen = Listener()
    console = Console(seen.append, file=path)
    raw = b"\x1b[32mOK\x1b[0m \xff\r\npartial"
    feed(console, raw)
    assert path.read_bytes() == raw[: raw.index(b"\n") + 1]
    console.close()
    assert path.read_bytes() == raw
    assert seen.lines() == ["OK \\xff", "partial"]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain \xc3\xa9", "plain é"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b[2Jgone", "\\x1b[2Jgone"),
        (b"10%\r20%", "10%\\r20%"),
        (b"a\tb\x00\x07", "a\tb\\x00\\x07"),
        ("right\u202eleft".encode(), "right\\u202eleft"),
        (b"\x9b2J\xf0\x28", "\\x9b2J\\xf0("),
    ],
)
def test_what_a_terminal_may_see(raw: bytes, shown: str) -> None:
    assert printable(raw) == shown


def test_a_line_without_end_does_not_grow() -> None:
    seen = Listener()
    console = Console(seen.append)
    feed(console, b"x" * (LINE_LIMIT * 2 + 10))
    assert [len(line) for line in seen.lines()] == [LINE_LIMIT, LINE_LIMIT]
    assert console.text() == "x" * (LINE_LIMIT * 2 + 10)


def test_memory_is_bounded_and_keeps_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "MEMORY_LIMIT", 4000)
    monkeypatch.setattr(console_module, "_HEAD", 100)
    console = Console(Listener().append)
    for number in range(5000):
        feed(console, b"line %d\n" % number)
    text = console.text()
    assert len(text) < 4200
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 4999\n")
    left_out = int(text.split("\n[")[1].split()[0])
    assert left_out + len(text) - len(f"\n[{left_out} bytes of console left out here]\n") == sum(
        len(f"line {n}\n") for n in range(5000)
    )


def test_a_full_disk_is_said_once() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    seen = Listener()
    console = Console(seen.append, file=full)
    feed(console, b"one\ntwo\n")
    console.close()
    warnings = [event for event in seen if isinstance(event, GuestWarning)]
    assert len(warnings) == 1
    assert "/dev/full" in warnings[0].summary()
    assert console.text() == "one\ntwo\n"


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe that holds 4096 bytes, and the descriptor of its reader."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    yield path, reader
    os.close(reader)


def test_a_reader_that_is_behind_gets_everything_and_stops_nobody(pipe: tuple[Path, int]) -> None:
    path, reader = pipe
    seen = Listener()
    console = Console(seen.append, file=path)
    text = b"".join(b"line %d\n" % number for number in range(1000))
    feed(console, text)
    read = b""
    while len(read) < len(text):
        feed(console, b"\n")
        text += b"\n"
        read += os.read(reader, 1 << 16)
    console.close()
    assert read == text
    assert not [event for event in seen if isinstance(event, GuestWarning)]


@pytest.mark.parametrize("limit", [100, 1 << 20])
def test_a_reader_that_never_reads_is_said_once(
    pipe: tuple[Path, int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "MEMORY_LIMIT", limit)
    monkeypatch.setattr(console_module, "LAST_SECONDS", 0)
    seen = Listener()
    console = Console(seen.append, file=pipe[0])
    feed(console, b"x\n" * 4000)
    console.close()
    warnings = [event.summary() for event in seen if isinstance(event, GuestWarning)]
    assert len(warnings) == 1
    assert ("too far behind" if limit == 100 else "its last 3904 bytes were not read") in warnings[0]


def test_a_pipe_without_a_reader_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MachineError, match="start its reader first"):
        Console(Listener().append, file=tmp_path / "pipe")


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="console"):
        Console(Listener().append, file=tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_give_lines_that_print(raw: bytes) -> None:
    seen = Listener()
    console = Console(seen.append)
    feed(console, raw)
    console.close()
    for line in seen.lines():
        assert line.replace("\t", "").isprintable()
    assert console.text().count("\n") == raw.count(b"\n")
