"""The ramdisks as archives: whether Linux can unpack them, and all of them.

Source: Linux init/initramfs.c.
"""

from __future__ import annotations

from collections.abc import Iterator

from enclavedbg.eif.lint.finding import Check, Finding, Group, error, note, some, warning
from enclavedbg.eif.lint.subject import Subject

RD_OPTIONS = {
    "gzip": "RD_GZIP",
    "bzip2": "RD_BZIP2",
    "lzma": "RD_LZMA",
    "xz": "RD_XZ",
    "lzo": "RD_LZO",
    "lz4": "RD_LZ4",
    "zstd": "RD_ZSTD",
}
"""The kernel's option for each compression of a ramdisk."""
HARMLESS = "it is there already"
"""What the tree says of devices that the kernel makes itself."""

UNREADABLE = error(
    "ramdisk-unreadable",
    "A ramdisk is no cpio archive (newc), is damaged, or passes a limit: the kernel would stop unpacking there.",
    "build the ramdisk again; --limit SIZE when it really is that large",
)
EMPTY = warning("ramdisk-empty", "A ramdisk has no files in it.", "leave it out, or build it again")
COMPRESSION = error(
    "ramdisk-compression",
    "A ramdisk is compressed in a way that the kernel is not configured to unpack.",
    "compress it with gzip or not at all, or switch the kernel's option on",
)
MISPLACED = error(
    "ramdisk-misplaced",
    "A plain cpio archive does not begin at a multiple of four bytes of the initramfs; Linux stops unpacking there.",
    "pad the ramdisk before it with zero bytes to a multiple of four",
)
PASSED_OVER = warning(
    "ramdisk-passed-over",
    "The kernel unpacks some entries not at all or not as they are written, and says nothing.",
    "put folders before what is in them, names no longer than 255 bytes, and each path once",
)
NO_TRAILER = note(
    "ramdisk-no-trailer",
    "An archive does not end with the entry TRAILER!!!; Linux does not need it, other tools do.",
    "build the ramdisk again when it should have had one: it may be cut short",
)


def readable(subject: Subject) -> Iterator[Finding]:
    """All can be unpacked."""
    if subject.filesystem is None and subject.filesystem_error is not None:
        yield UNREADABLE.found("the ramdisks cannot be read", evidence=str(subject.filesystem_error))


def archives(subject: Subject) -> Iterator[Finding]:
    """Each has files, a trailer, and a compression that the kernel knows."""
    for ramdisk in () if subject.filesystem is None else subject.filesystem.ramdisks:
        name = f"ramdisk{ramdisk.index}"
        if not ramdisk.entries:
            yield EMPTY.found(f"{name} has no files", evidence=f"{len(ramdisk.data)} bytes")
        without = [archive for archive in ramdisk.archives if not archive.trailers and archive.entries]
        if without:
            at = ", ".join(f"{archive.offset:#x}" for archive in without[:5])
            yield NO_TRAILER.found(f"an archive in {name} has no trailer", evidence=f"at byte {at} of it")
        for kind in sorted({archive.compression for archive in ramdisk.archives if archive.compression}):
            option = RD_OPTIONS[kind]
            if subject.kernel is not None and subject.kernel.option(option) == "n":
                yield COMPRESSION.found(
                    f"{name} is compressed with {kind}, the kernel cannot unpack that", evidence=f"CONFIG_{option}=n"
                )


def unpacking(subject: Subject) -> Iterator[Finding]:
    """What the kernel would leave out."""
    problems = [] if subject.filesystem is None else subject.filesystem.tree.problems
    passed = []
    for problem in problems:
        if problem.entry is not None:
            if problem.why != HARMLESS:
                passed.append(f"{problem.entry.name}: {problem.why}")
        elif "stops unpacking" in problem.why:
            yield MISPLACED.found("Linux would not unpack all of the ramdisks", evidence=problem.why)
        else:
            passed.append(problem.why)
    if passed:
        entries = "1 entry is" if len(passed) == 1 else f"{len(passed)} entries are"
        yield PASSED_OVER.found(f"{entries} not unpacked as written", evidence=some(passed))


CHECKS: tuple[Check, ...] = (UNREADABLE, EMPTY, COMPRESSION, MISPLACED, PASSED_OVER, NO_TRAILER)
GROUP = Group("The ramdisks", CHECKS, (readable, archives, unpacking))
