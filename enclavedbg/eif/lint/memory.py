"""How much memory the enclave needs at least.

Sources: Linux init/do_mounts.c (a first root file system without root= is a tmpfs of half the memory), nitro-cli's
run-enclave (E26), the nitro_enclaves driver (64 MiB at least, in units of 2 MiB).
"""

from __future__ import annotations

from collections.abc import Iterator

from enclavedbg.eif.lint.finding import Check, Finding, Group, error, note, warning
from enclavedbg.eif.lint.subject import Subject

MIB = 1 << 20
PAGE = 4096
INODE = 1024
"""Bytes that a file or folder in a tmpfs takes beside its contents, roughly."""
HEADROOM = 24 * MIB
"""What a small kernel takes for itself and leaves for a first process."""
LEAST = 64 * MIB
UNIT = 2 * MIB
NITRO_CLI_TIMES = 4

NEEDED = note(
    "memory-needed",
    "The least memory that the image can start in, and what nitro-cli wants for it.",
    "give --memory SIZE to have an amount judged; the program's own needs come on top",
)
SMALL = error(
    "memory-too-small",
    "The memory does not hold the kernel, the packed ramdisks and the files that they unpack to.",
    "give the enclave more memory, or make the ramdisks smaller",
)
FOUR_TIMES = warning(
    "memory-four-times",
    "nitro-cli run-enclave refuses less than four times the file's size (E26).",
    "give the enclave that much memory, or make the image smaller",
)
DRIVER = error(
    "memory-unit",
    "The nitro_enclaves driver gives memory in units of 2 MiB, at least 64 MiB.",
    "round up",
)


def memory_needed(subject: Subject) -> int | None:
    """Bytes, a whole number of MiB, below which Linux cannot unpack the ramdisks; None when parts cannot be read.

    Kernel, packed ramdisks and unpacked files are in memory at once; and files may fill half of it only, unless the
    command line has root= or rootfstype=, which makes the first root file system a ramfs.
    """
    if subject.kernel is None or subject.filesystem is None:
        return None
    files = files_size(subject)
    packed = sum(section.size for section in subject.ramdisks)
    line = subject.bootline
    is_tmpfs = line.last("rootfstype") == "tmpfs" or not (line.has("root") or line.has("rootfstype"))
    room = max(packed + files, 2 * files if is_tmpfs else 0)
    return -(-(subject.kernel.end + room + HEADROOM) // MIB) * MIB


def files_size(subject: Subject) -> int:
    """Bytes that the unpacked files take, in whole pages, each inode once."""
    assert subject.filesystem is not None
    nodes = {id(node): node for _, node in subject.filesystem.tree.walk()}
    return sum(INODE + -(-node.size // PAGE) * PAGE * node.is_file for node in nodes.values())


def memory(subject: Subject) -> Iterator[Finding]:
    """The memory given, or what should be."""
    needed = memory_needed(subject)
    refused = _whole(NITRO_CLI_TIMES * -(-subject.walk.size // MIB) * MIB)
    parts = _parts(subject)
    if subject.memory is None:
        if needed is not None:
            least = max(_whole(needed), LEAST)
            yield NEEDED.found(
                f"at least {least // MIB} MiB of memory; nitro-cli wants {max(refused, LEAST) // MIB} MiB",
                evidence=parts,
            )
        return
    given = subject.memory
    if given < LEAST or given % UNIT:
        yield DRIVER.found(f"{given} bytes of memory, expected a multiple of 2 MiB from 64 MiB on")
    if needed is not None and given < needed:
        yield SMALL.found(f"{given // MIB} MiB of memory, at least {needed // MIB} MiB are needed", evidence=parts)
    if given < NITRO_CLI_TIMES * subject.walk.size:
        yield FOUR_TIMES.found(
            f"{given // MIB} MiB of memory, nitro-cli wants {refused // MIB} MiB",
            evidence=f"the file has {subject.walk.size} bytes",
        )


def _whole(size: int) -> int:
    return -(-size // UNIT) * UNIT


def _parts(subject: Subject) -> str:
    if subject.kernel is None or subject.filesystem is None:
        return ""
    packed = sum(section.size for section in subject.ramdisks)
    return (
        f"the kernel up to {_mib(subject.kernel.end)}, ramdisks {_mib(packed)} packed and {_mib(files_size(subject))} "
        f"unpacked, {_mib(HEADROOM)} to run in"
    )


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


CHECKS: tuple[Check, ...] = (NEEDED, SMALL, FOUR_TIMES, DRIVER)
GROUP = Group("Memory", CHECKS, (memory,))
