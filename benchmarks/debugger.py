"""gdb: from connecting to a kernel backtrace with names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

from benchmarks.boot import OURS
from benchmarks.harness import Context, Sample
from benchmarks.images import DEMO, ours, surroundings
from benchmarks.process import Child, Failed

READY = "demo: ready on vsock"
_FIRST = "connect to backtrace, first gdb"
_AGAIN = "connect to backtrace, second gdb"
_WHOLE = "the first gdb's process, start to end"
_FRAME = re.compile(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+)", re.MULTILINE)


def gdb_missing() -> str:
    """Why nothing can be measured with gdb; empty when it can."""
    return "" if shutil.which("gdb") else "gdb is not installed; install it: apt install gdb"


def gdb(context: Context) -> None:
    """A plain gdb in batch mode attaches to the running enclave, twice in turn to the same one."""
    if reason := gdb_missing():
        context.report.note(f"not measured: {reason}")
        return
    samples = context.in_turns({OURS: _run(context)}, rounds=5)
    context.add(samples, _FIRST, targets={OURS: 2.0})
    context.add(samples, _AGAIN)
    context.add(samples, _WHOLE)


def _run(context: Context) -> Callable[[], Sample]:
    def run() -> Sample:
        with Child(ours(DEMO, "--gdb", ":0"), environment=surroundings(context.folder)) as child:
            port = port_of(child)
            child.until(READY)
            first, whole = attach(port)
            again, _ = attach(port)
        return {_FIRST: first, _AGAIN: again, _WHOLE: whole}

    return run


def port_of(child: Child, meanwhile: Callable[[], object] | None = None) -> int:
    """The port that a run with `--gdb :0` says it listens on."""
    return int(child.match(r"target remote [^ ']*:(\d+)", meanwhile=meanwhile)[1])


def attach(port: int) -> tuple[float, float]:
    """Seconds from gdb's connecting to its backtrace, and of its whole process; raises Failed without names."""
    script = [
        "set pagination off",
        "set confirm off",
        # gdb has its own clock only when it was built with Python.
        "shell date '+time %s.%N'",
        f"target remote 127.0.0.1:{port}",
        "backtrace",
        "shell date '+time %s.%N'",
        "detach",
    ]
    commands = [word for line in script for word in ("-ex", line)]
    command = ["gdb", "--nx", "--quiet", "--batch", *commands]
    with Child(command) as child:
        text, whole = child.whole()
    names = _FRAME.findall(text)
    times = [float(found) for found in re.findall(r"^time ([0-9.]+)$", text, re.MULTILINE)]
    if len(names) < 3 or "??" in names or len(times) != 2:
        raise Failed(f"gdb gave no backtrace with names: {text.strip()[-300:]!r}")
    return times[1] - times[0], whole
