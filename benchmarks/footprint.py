"""What the process costs besides the guest's RAM."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.boot import OURS, STRESS_OK
from benchmarks.debugger import READY, attach, gdb_missing, port_of
from benchmarks.harness import Context, Sample
from benchmarks.images import DEMO, MEMORY_MIB, ours, stress_image, surroundings
from benchmarks.process import Child, Failed

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)")
_AT_READY = "resident besides the guest's RAM, guest ready"
_PEAK = "the most seen until then"
_WITH_GDB = "after gdb has attached and left"
_STRESS = "the most seen while the stress program works"
_GUEST = "resident of the guest's RAM, guest ready"
_TARGET = 250e6


def memory(context: Context) -> None:
    """Resident memory by /proc, less what of the guest's RAM is resident."""
    if not Path("/proc/self/smaps").exists():
        context.report.note("not measured: this system has no /proc/PID/smaps")
        return
    eif = stress_image(context.folder)
    samples = context.in_turns({OURS: lambda: {**_demo(context), **_at_work(context, eif)}}, rounds=3)
    for what in (_AT_READY, _PEAK, _WITH_GDB, _STRESS):
        context.add(samples, what, unit="B", targets={OURS: _TARGET})
    context.add(samples, _GUEST, unit="B")
    if gdb_missing():
        context.report.note(gdb_missing())


def _demo(context: Context) -> Sample:
    """The demo image until it is ready, then a visit by gdb."""
    with Child(ours(DEMO, "--gdb", ":0"), environment=surroundings(context.folder)) as child:
        watch = _Watch(child)
        port = port_of(child, meanwhile=watch)
        child.until(READY, meanwhile=watch)
        guest, other = resident(child.pid)
        if guest is None:
            raise Failed(f"no mapping of {MEMORY_MIB} MiB in /proc/{child.pid}/smaps: where is the guest's RAM?")
        sample = {_AT_READY: float(other), _PEAK: float(max(watch.most, other)), _GUEST: float(guest)}
        if not gdb_missing():
            attach(port)
            sample[_WITH_GDB] = float(resident(child.pid)[1])
        return sample


def _at_work(context: Context, eif: Path) -> Sample:
    """A guest that makes the CPU translate as much as it can."""
    with Child(ours(eif), environment=surroundings(context.folder)) as child:
        watch = _Watch(child)
        child.until(STRESS_OK, meanwhile=watch)
        return {_STRESS: float(watch.most)}


class _Watch:
    """Keeps the most that was resident besides the guest's RAM, of all the times it is called."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.most = 0

    def __call__(self) -> None:
        self.most = max(self.most, resident(self._child.pid)[1])


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
