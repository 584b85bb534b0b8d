"""The images that are booted, and QEMU as the peer that boots the same kernel and ramdisk."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.reader import read_eif
from enclavedbg.eif.writer import write_eif

PROJECT = Path(__file__).resolve().parent.parent
DEMO = PROJECT / "enclavedbg" / "data" / "demo.eif"
MEMORY_MIB = 512
"""RAM of every machine that is measured."""

QEMU = "qemu-system-x86_64"
QEMU_SIDE = "QEMU microvm"
NO_QEMU = f"{QEMU} is not installed, so there is no peer; install it: apt install qemu-system-x86"

if str(PROJECT / "guest") not in sys.path:  # the recipe is a package of the tree, not of the installation
    sys.path.append(str(PROJECT / "guest"))


def debian_image(folder: Path) -> Path:
    """An image around Debian's cloud kernel; raises recipe.errors.RecipeError when apt cannot fetch it."""
    from recipe.debian import debian_image as make
    from recipe.debian import fetch_kernel

    path = folder / "debian.eif"
    path.write_bytes(make(fetch_kernel()))
    return path


def stress_image(folder: Path) -> Path:
    """An image whose first process is the stress program itself, with its usual amount of work.

    Our init would end without a parent to report to, and QEMU's microvm has none. The program needs of the
    kernel a console, a folder for files, and the link that it spawns itself through.
    """
    from recipe.images import COMMAND_LINE, packaged_parts, packaged_stress

    entries = [
        *(CpioEntry(name, stat.S_IFDIR | 0o755, nlink=2) for name in ("dev", "proc", "proc/self", "tmp")),
        CpioEntry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1)),
        CpioEntry("proc/self/exe", stat.S_IFLNK | 0o777, data=b"/stress"),
        CpioEntry("stress", stat.S_IFREG | 0o755, data=packaged_stress()),
    ]
    path = folder / "stress.eif"
    path.write_bytes(
        write_eif(
            kernel=packaged_parts().kernel,
            cmdline=COMMAND_LINE + b" rdinit=/stress",
            ramdisks=[write_newc(entries)],
        )
    )
    return path


def ours(eif: Path, *options: str) -> list[str]:
    """The command that runs an image here, as a user would."""
    command = [sys.executable, "-m", "enclavedbg", "--eif", str(eif), "--no-shell"]
    return [*command, "--memory", f"{MEMORY_MIB}M", *options]


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of our own runs: state and compiled modules are kept, as a user's are, but in `folder`.

    Where Python is told to write no compiled modules, each start would compile all sources anew.
    """
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    return {"XDG_STATE_HOME": str(folder), **compiled}


def observed(eif: Path, *options: str) -> list[str]:
    """The same with what benchmarks.observed adds: the heartbeat as a line, and `--python`."""
    return [sys.executable, "-m", "benchmarks.observed", *ours(eif, *options)[3:]]


def qemu(eif: Path) -> list[str] | None:
    """The command that boots the same kernel, ramdisk and command line on QEMU's smallest machine; None without it."""
    if shutil.which(QEMU) is None:
        return None
    image = read_eif(eif)
    kernel, ramdisk = eif.with_suffix(".bzImage"), eif.with_suffix(".initrd")
    kernel.write_bytes(image.kernel)
    ramdisk.write_bytes(b"".join(bytes(part) + bytes(-len(part) % 4) for part in image.ramdisks))
    return [
        QEMU,
        *("-M", "microvm,accel=tcg", "-m", str(MEMORY_MIB), "-smp", "1"),
        *("-kernel", str(kernel), "-initrd", str(ramdisk), "-append", image.cmdline.decode()),
        *("-no-user-config", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
    ]
