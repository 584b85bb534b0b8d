"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from enclavedbg.machine.cpu.soft import native


def describe() -> dict[str, str]:
    """Processor, system and versions, by name."""
    return {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "system": _system(),
        "python": platform.python_version(),
        "unicorn": version("unicorn"),
        "native part": "yes" if native.load() is not None else "no",
        "qemu": first_line(["qemu-system-x86_64", "--version"]),
        "gdb": first_line(["gdb", "--version"]),
        "commit": first_line(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
    }


def first_line(command: list[str]) -> str:
    """The first line that a program says, or `none` where it is not installed."""
    if shutil.which(command[0]) is None:
        return "none"
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.splitlines()
    return said[0].strip() if said else "none"


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    mhz = f", {float(named['cpu MHz']):.0f} MHz" if "cpu MHz" in named else ""
    return f"{named.get('model name', platform.machine())}{mhz}"


def _system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release().split('-')[0]}"
