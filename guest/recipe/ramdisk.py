"""The two ramdisks of an enclave image, laid out as nitro-cli's: the first boots, the second has the application."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from enclavedbg.eif.cpio import CpioEntry, write_newc

MTIME = 1783209600
"""Time stamp of every file: 2026-07-05, the date of the kernel source. A real one would change the measurements."""

APPLICATION_DIRECTORIES = ("dev", "proc", "run", "sys", "tmp", "var")


@dataclass(frozen=True)
class File:
    """A regular file of a ramdisk."""

    data: bytes
    executable: bool = False


@dataclass(frozen=True)
class Module:
    """A kernel module, decompressed, that init loads before the heartbeat."""

    name: str
    data: bytes


def bootstrap_ramdisk(init: bytes, modules: Sequence[Module] = ()) -> bytes:
    """Return the first ramdisk: init, an empty dev, and the modules with the list that gives their order."""
    files = {"init": File(init, executable=True)}
    paths = []
    for module in modules:
        path = f"lib/modules/{module.name}.ko"
        files[path] = File(module.data)
        paths.append(f"/{path}\n")
    if modules:
        files["modules"] = File("".join(paths).encode())
    return _archive(files, ("dev",))


def application_ramdisk(root: Mapping[str, File], *, command: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Return the second ramdisk: the application's root directory, its command and its environment."""
    files = {f"rootfs/{path}": file for path, file in root.items()}
    files["cmd"] = File("".join(f"{word}\n" for word in command).encode())
    files["env"] = File("".join(f"{name}={value}\n" for name, value in environment.items()).encode())
    return _archive(files, [f"rootfs/{name}" for name in APPLICATION_DIRECTORIES])


def _archive(files: Mapping[str, File], directories: Sequence[str]) -> bytes:
    # Every directory on the way to a file too: the kernel does not make them by itself.
    folders = {str(parent) for path in [*files, *(f"{name}/." for name in directories)]
               for parent in PurePosixPath(path).parents} | set(directories)  # fmt: skip
    entries = [
        CpioEntry(name=name, mode=stat.S_IFDIR | 0o755, nlink=2, mtime=MTIME) for name in sorted(folders - {"."})
    ]
    entries += [
        CpioEntry(name=path, mode=stat.S_IFREG | (0o755 if file.executable else 0o644), data=file.data, mtime=MTIME)
        for path, file in sorted(files.items())
    ]
    return write_newc(entries)
