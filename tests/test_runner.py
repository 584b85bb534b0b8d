"""Runs of the command from outside: how they end, what they print where, and what they leave behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclavedbg.demo import CONTROL_PORT, READY_LINE, image_path

pytestmark = pytest.mark.live

READY = READY_LINE.encode()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "enclavedbg", "--eif", str(image_path()), *arguments]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}


class Run:
    """A run with its output read through a pipe; the process ends with the test."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment,
        )  # fmt: skip
        self.lines: list[bytes] = []

    def until(self, words: bytes) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return
        raise AssertionError(b"".join(self.lines[-20:]))

    def end(self) -> tuple[int, bytes, bytes]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, b"".join(self.lines) + out, err


@pytest.fixture
def runs(environment: dict[str, str]) -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        run.process.kill()
        run.process.communicate()


def tell(folder: Path, line: bytes) -> None:
    """Send a line to the demo's control port through the Unix socket that --vsock made."""
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(folder / "vsock"))
        client.sendall(b"CONNECT %d\n" % CONTROL_PORT)
        assert client.recv(64).startswith(b"OK ")
        client.sendall(line + b"\n")
        assert client.recv(3) == b"ok\n"


@pytest.mark.parametrize(
    ("order", "status", "words"),
    [
        (b"exit 3", 0, b"the enclave ended: init: /demo exited with status 3"),
        (b"panic", 10, b"kernel panic: "),
        (b"poweroff", 0, b"the enclave ended: "),
    ],
)
def test_the_console_comes_first_and_the_verdict_last(
    runs: list[Run], environment: dict[str, str], tmp_path: Path, order: bytes, status: int, words: bytes
) -> None:
    console = tmp_path / "console.log"
    run = Run(["--vsock", str(tmp_path / "v"), "--console", str(console)], environment)
    runs.append(run)
    run.until(READY)
    tell(tmp_path / "v", order)
    code, out, err = run.end()
    lines = out.splitlines()
    assert (code, err) == (status, b"")
    assert lines[-1].startswith(b"enclavedbg: ") and words in lines[-1]
    assert lines[:-1] == [line.rstrip(b"\r") for line in console.read_bytes().split(b"\n")][: len(lines) - 1]
    assert b"Linux version" in lines[0]
    assert list((tmp_path / "v").iterdir()) == [] if (tmp_path / "v").exists() else True


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(
    runs: list[Run], environment: dict[str, str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    run = Run(["--gdb", "127.0.0.1:0", "--vsock", str(tmp_path / "v")], environment)
    runs.append(run)
    run.until(READY)
    run.process.send_signal(number)
    code, _, err = run.end()
    assert code == status
    assert err.endswith(b"enclavedbg: interrupted\n") and b"Traceback" not in err
    assert not (tmp_path / "v" / "vsock").exists()


def test_the_time_limit(runs: list[Run], environment: dict[str, str]) -> None:
    run = Run(["--timeout", "1500ms"], environment)
    runs.append(run)
    code, out, _ = run.end()
    assert code == 13
    assert out.splitlines()[-1].startswith(b"enclavedbg: still running after 1.5 s")


def test_gdb_s_address_is_told_and_another_than_loopback_warned_of(
    runs: list[Run], environment: dict[str, str]
) -> None:
    run = Run(["--gdb", "0.0.0.0:0", "--timeout", "300ms"], environment)
    runs.append(run)
    _, _, err = run.end()
    assert re.search(rb"enclavedbg: gdb may attach: gdb -ex 'target remote 0.0.0.0:\d+'\n", err)
    assert b"other machines" in err


def test_waiting_without_anyone_to_go_on_is_refused(runs: list[Run], environment: dict[str, str]) -> None:
    run = Run(["--wait"], environment)
    runs.append(run)
    code, out, err = run.end()
    assert (code, out) == (2, b"")
    assert b"--gdb" in err and err.count(b"\n") == 1


def test_a_reader_that_goes_away_ends_it_quietly(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        command(), bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stderr is not None
    # Less than the boot writes: something is left to be written when the reader has gone, however late that is.
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    assert b"Linux version" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk_is_said(environment: dict[str, str]) -> None:
    for arguments in (command(), [*command()[:3], "demo"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                arguments, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, env=environment, timeout=30
            )
        assert done.returncode == 2
        assert done.stderr == (
            b"enclavedbg: cannot write standard output: No space left on device; give it a place with room\n"
        )


def test_a_reader_that_stops_reading_does_not_stop_the_signal(runs: list[Run], environment: dict[str, str]) -> None:
    """The pipe is full long before the boot is over; the guest and Ctrl-C must not wait for it."""
    run = Run(["--gdb", "127.0.0.1:0"], environment)
    runs.append(run)
    assert run.process.stderr is not None
    run.process.stderr.readline()
    process = run.process
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (130, -signal.SIGINT)


def test_the_shell_on_a_terminal(environment: dict[str, str]) -> None:
    """Ctrl-C at the prompt ends all of it, with status 130."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command(), {**environment, "TERM": "xterm"})
    deadline = time.monotonic() + 30
    shown = b""
    sent = False
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break  # the other end is closed
        shown += piece
        os.write(terminal, b"\x1b[1;1R" * piece.count(b"\x1b[6n"))  # where the cursor is
        if READY in shown and not sent:
            sent = True
            os.write(terminal, b"\x03")
    ended = time.monotonic()
    os.close(terminal)
    if ended >= deadline:
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, shown[-2000:]
    assert b"enclavedbg" in shown
    assert (Path(environment["XDG_STATE_HOME"]) / "enclavedbg" / "history").exists()
