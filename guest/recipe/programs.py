"""Compile the guest's C programs: static, with debug information whose paths are those inside the ramdisk."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from .tools import need_programs, run

SOURCE_DIRECTORY = Path(__file__).resolve().parent.parent / "src"
PUBLIC_SOURCE = "usr/src/enclavedbg"
"""Where a ramdisk has the sources, relative to its root: a debugger finds them there."""

PROGRAMS: dict[str, tuple[str, ...]] = {
    "init": ("init.c",),
    "demo": ("demo.c", "nsm.c"),
    "stress": ("stress.c", "stress_cpu.c", "stress_code.c", "stress_kernel.c"),
    "nsm-check": (
        "nsm_check.c", "nsm_check_cbor.c", "nsm_check_device.c", "nsm_check_document.c", "nsm_check_exchange.c",
        "nsm_check_faults.c", "nsm_check_pcr.c", "nsm_check_requests.c",
    ),
}  # fmt: skip
HEADERS: dict[str, tuple[str, ...]] = {
    "init": ("common.h",),
    "demo": ("common.h", "nsm.h"),
    "stress": ("common.h", "stress.h"),
    "nsm-check": ("nsm_check.h",),
}

# -O1 with a frame pointer: every line and variable can be found, and a backtrace needs no unwind tables.
FLAGS = (
    "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fno-omit-frame-pointer", "-static", "-fno-pie",
    "-no-pie", "-Wl,--build-id=sha1",
)  # fmt: skip


@dataclass(frozen=True)
class Toolchain:
    """What compiled the programs, as it names itself: another one gives other bytes."""

    compiler: str
    musl: str


def toolchain() -> Toolchain:
    """Return this machine's compiler and C library.

    :raises RecipeError: one of them is missing
    """
    need_programs({"musl-gcc": "musl-tools", "gcc": "gcc", "dpkg-query": "dpkg"})
    compiler = run(["gcc", "--version"]).splitlines()[0]
    return Toolchain(compiler, run(["dpkg-query", "-W", "-f", "${Version}", "musl-dev"]))


def available() -> bool:
    """Tell whether the programs can be compiled here."""
    try:
        return subprocess.run(["musl-gcc", "--version"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def compile_program(name: str, output: Path) -> bytes:
    """Compile one of PROGRAMS to ``output`` and return its bytes.

    :raises RecipeError: no compiler, or a source that it refuses
    """
    need_programs({"musl-gcc": "musl-tools"})
    # Compiled in the source folder by bare file names, so that no path of this machine gets in.
    path_map = f"-ffile-prefix-map={SOURCE_DIRECTORY}=/{PUBLIC_SOURCE}"
    run(
        ["musl-gcc", *FLAGS, path_map, "-o", output.resolve(), *PROGRAMS[name]],
        directory=SOURCE_DIRECTORY,
        environment={"LC_ALL": "C"},
    )
    return output.read_bytes()


def source_files(*names: str) -> dict[str, bytes]:
    """Return the C sources of the programs named, and the headers, by their path in the ramdisk."""
    files = sorted({file for name in names for file in PROGRAMS[name] + HEADERS[name]})
    return {f"{PUBLIC_SOURCE}/{file}": (SOURCE_DIRECTORY / file).read_bytes() for file in files}
