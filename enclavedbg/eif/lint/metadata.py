"""The metadata, which nitro-cli must be able to read to describe the image."""

from __future__ import annotations

from collections.abc import Iterator

from enclavedbg.eif.describe import read_metadata
from enclavedbg.eif.format import SectionType
from enclavedbg.eif.lint.finding import Check, Finding, Group, error, note
from enclavedbg.eif.lint.subject import Subject
from enclavedbg.eif.source import open_source
from enclavedbg.errors import EifError

UNREADABLE = error(
    "metadata-unreadable",
    "The metadata is not what nitro-cli reads: it refuses to describe and to start the image.",
    "build the image again",
)
KERNEL = note(
    "metadata-kernel",
    "The metadata names another kernel version than the kernel itself; it is in no PCR and proves nothing.",
    "build the image again with the kernel's own configuration file (--kernel-config)",
)


def metadata(subject: Subject) -> Iterator[Finding]:
    """It can be read, and tells the truth about the kernel."""
    with open_source(subject.data) as source:
        for section in subject.view.of_type(SectionType.METADATA):
            try:
                found = read_metadata(source, section)
            except EifError as problem:
                yield UNREADABLE.found("the metadata cannot be read", evidence=str(problem))
                continue
            stated = "Unknown" if found is None else found.build["KernelVersion"]
            release = None if subject.kernel is None else subject.kernel.release
            if release is not None and stated[:1].isdigit() and not release.startswith(stated):
                yield KERNEL.found(f"the metadata says Linux {stated[:60]}, the kernel says {release}")


CHECKS: tuple[Check, ...] = (UNREADABLE, KERNEL)
GROUP = Group("The metadata", CHECKS, (metadata,))
