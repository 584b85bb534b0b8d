"""What the process costs besides the guest's RAM."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.boot import OURS
from benchmarks.debugger import READY, attach, gdb_missing, port_of
from benchmarks.harness import Context, Sample
from benchmarks.images import DEMO, MEMORY_MIB, ours, surroundings
from benchmarks.process import Child, Failed

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)")
_AT_READY = "resident besides the guest's RAM, guest ready"
_PEAK = "the most seen until then"
_WITH_GDB = "after gdb has attached and left"
_GUEST = "resident of the guest's RAM, guest ready"
_TARGET = 250e6


def memory(context: Context) -> None:
    """Resident memory by /proc, less what of the guest's RAM is resident."""
    if not Path("/proc/self/smaps").exists():
        context.report.note("not measured: this system has no /proc/PID/smaps")
        return
    samples = context.in_turns({OURS: _run(context)}, rounds=3)
    for what in (_AT_READY, _PEAK, _WITH_GDB):
        context.add(samples, what, unit="B", targets={OURS: _TARGET})
    context.add(samples, _GUEST, unit="B")
    if gdb_missing():
        context.report.note(gdb_missing())


def _run(context: Context) -> Callable[[], Sample]:
    def run() -> Sample:
        with Child(ours(DEMO, "--gdb", ":0"), environment=surroundings(context.folder)) as child:
            peak = 0

            def look() -> None:
                nonlocal peak
                peak = max(peak, resident(child.pid)[1])

            port = port_of(child, meanwhile=look)
            child.until(READY, meanwhile=look)
            guest, other = resident(child.pid)
            if guest is None:
                raise Failed(f"no mapping of {MEMORY_MIB} MiB in /proc/{child.pid}/smaps: where is the guest's RAM?")
            sample = {_AT_READY: float(other), _PEAK: float(max(peak, other)), _GUEST: float(guest)}
            if not gdb_missing():
                attach(port)
                sample[_WITH_GDB] = float(resident(child.pid)[1])
            return sample

    return run


def resident(pid: int) -> tuple[int | None, int]:
    """Bytes resident of the guest's RAM (None when there is no such mapping yet), and of everything else."""
    guest: int | None = None
    other = 0
    in_guest = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            size = int(line.split()[1]) << 10
            if in_guest:
                guest = (guest or 0) + size
            else:
                other += size
        elif match := _MAPPING.match(line):
            # Python's anonymous mmap is a shared one, which Linux shows as a deleted file.
            size = int(match[2], 16) - int(match[1], 16)
            in_guest = size == MEMORY_MIB << 20 and match[3].startswith("/dev/zero")
    return guest, other
