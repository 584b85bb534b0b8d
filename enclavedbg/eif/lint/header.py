"""The file: header, sections, CRC, and what each reader makes of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from enclavedbg.eif.format import CRC_OFFSET, HEADER_SIZE
from enclavedbg.eif.kernelimage import kernel_kind
from enclavedbg.eif.lint.finding import Check, Finding, Group, error, note, warning
from enclavedbg.eif.lint.subject import Subject
from enclavedbg.eif.walk import Problem, Reader

REBUILD = "build or fetch the image again"
RESIGN = "sign the image again with enclavedbg eif sign, or build it again"

# One for each problem that enclavedbg.eif.walk reports, by its id there.
_PROBLEMS = {
    "version": error("file-version", "The version is none that was ever published; loaders refuse it.", REBUILD),
    "version-old": note(
        "file-version-old",
        "Versions 2 and 3 have no metadata; QEMU loads version 4 only.",
        "build the image again with nitro-cli 1.x or enclavedbg eif build",
    ),
    "header-flags": error("file-flags", "Bits of the header's flags are set that have no meaning.", REBUILD),
    "reserved": note("file-reserved", "Reserved fields of the header are not zero.", REBUILD),
    "section-count": error("file-section-count", "The header counts fewer than 2 or more than 32 sections.", REBUILD),
    "table-spare": note("file-table-spare", "Unused entries of the header's table are not zero.", RESIGN),
    "section-type": error("file-section-type", "A section has an unknown type; nitro-cli stops there.", REBUILD),
    "truncated": error("file-truncated", "A section ends after the file does: the file was cut short.", REBUILD),
    "too-many": error("file-too-many", "There are far more sections than the format allows.", REBUILD),
    "table-offset": error("file-table-offset", "The header's table leads out of the file; loaders stop.", REBUILD),
    "table-size": error(
        "file-table-size",
        "The header's table and a section's own header give different sizes; loaders stop. The reference signer "
        "leaves files so when it replaces a signature.",
        RESIGN,
    ),
    "table-truncated": error("file-table-truncated", "By the header's table a section ends after the file.", REBUILD),
    "overlap": error("file-overlap", "Sections lie over each other.", REBUILD),
    "out-of-order": warning("file-out-of-order", "The header's table lists sections in another order.", REBUILD),
    "gap": warning("file-gap", "Bytes between sections belong to none.", REBUILD),
    "section-flags": error("file-section-flags", "A section's flags are not zero; QEMU refuses it.", REBUILD),
    "unlisted": warning("file-unlisted", "Bytes lie behind the last section that the header lists.", REBUILD),
    "views-differ": error(
        "file-views-differ",
        "What nitro-cli measures is not what a loader starts: the PCRs shown are not those of the enclave.",
        REBUILD,
    ),
    "no-kernel": error("file-no-kernel", "There is no kernel section.", REBUILD),
    "second-kernel": error("file-second-kernel", "There are several kernel sections.", REBUILD),
    "no-cmdline": error("file-no-cmdline", "There is no command line section.", REBUILD),
    "second-cmdline": error("file-second-cmdline", "There are several command line sections.", REBUILD),
    "no-metadata": error("file-no-metadata", "Version 4 has a metadata section, this file has none.", REBUILD),
    "second-metadata": error("file-second-metadata", "There are several metadata sections.", REBUILD),
    "metadata-early": warning("file-metadata-early", "Metadata in a version that has none.", REBUILD),
    "second-signature": error("file-second-signature", "There are several signature sections.", RESIGN),
    "no-ramdisk": error("file-no-ramdisk", "There is no ramdisk: nothing to start, and loaders want one.", REBUILD),
    "ramdisk-early": error("file-ramdisk-early", "A ramdisk lies before the kernel.", REBUILD),
    "signature-size": error("file-signature-size", "The signature section has more than 32768 bytes.", RESIGN),
    "trailing": warning("file-trailing", "Bytes at the end that nitro-cli leaves out of the CRC.", REBUILD),
}

CRC = error("file-crc", "The CRC-32 is not that of the contents: damaged, or changed after it was built.", REBUILD)
ARCHITECTURE = error(
    "file-architecture",
    "The header's flags name another architecture than the kernel is for.",
    "build the image again for the architecture of its kernel (enclavedbg eif build --arch)",
)
MACHINE = note(
    "file-aarch64",
    "aarch64 images start on Graviton instances; QEMU's nitro-enclave machine and enclavedbg run x86_64 only.",
    "nothing to do, or build the image for x86_64",
)


def problems(subject: Subject) -> Iterator[Finding]:
    """What the walk over the file met."""
    walk = subject.walk
    cut = walk.walked.refusal is not None and walk.table.refusal is not None
    for problem in walk.problems:
        check = _PROBLEMS.get(problem.id)
        # Sections that are missing because nobody gets that far are no findings of their own.
        if check is not None and not (cut and problem.id.startswith("no-")):
            yield check.found(problem.message, evidence=f"at byte {problem.offset:#x}; {_who(problem)}")


def _who(problem: Problem) -> str:
    """Which readers would refuse the file for it, and that nitro-cli would not notice."""
    names = sorted(reader.value for reader in problem.stops if reader is not Reader.FORMAT)
    text = f"{' and '.join(names)} refuse{'s' * (len(names) == 1)} the file" if names else "both known readers go on"
    if Reader.FORMAT in problem.stops:
        text += ", the format's rules forbid it"
    return text if Reader.NITRO_CLI in problem.stops else f"{text}; nitro-cli describe-eif accepts it"


def crc(subject: Subject) -> Iterator[Finding]:
    """The checksum over what nitro-cli walks over."""
    walked = subject.walk.walked
    if walked.refusal is not None:
        return
    stated = subject.walk.header.crc32
    computed = zlib.crc32(subject.data[HEADER_SIZE : walked.end], zlib.crc32(subject.data[:CRC_OFFSET]))
    if computed != stated:
        yield CRC.found(
            f"the CRC-32 of the contents is {computed:08x}, the header says {stated:08x}",
            evidence=f"at byte {CRC_OFFSET:#x}; QEMU refuses the file, nitro-cli describe-eif says CheckCRC false",
        )


def architecture(subject: Subject) -> Iterator[Finding]:
    """The header's flags against the kernel."""
    stated = subject.architecture
    found = None if subject.kernel_data is None else kernel_kind(subject.kernel_data)
    if found is not None and found != stated:
        yield ARCHITECTURE.found(
            f"the header says {stated}, the kernel is for {found}", evidence=f"flags {subject.walk.header.flags:#06x}"
        )
    elif stated == "aarch64":
        yield MACHINE.found("this is an image for aarch64", evidence=f"flags {subject.walk.header.flags:#06x}")


CHECKS: tuple[Check, ...] = (*_PROBLEMS.values(), CRC, ARCHITECTURE, MACHINE)
GROUP = Group("The file", CHECKS, (problems, crc, architecture))
