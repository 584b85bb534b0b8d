"""The first program: what the kernel starts from the ramdisk.

Source: Linux init/main.c (kernel_init), fs/exec.c.
"""

from __future__ import annotations

from collections.abc import Iterator

from enclavedbg.eif.lint.executable import Kind, Surroundings, defects
from enclavedbg.eif.lint.finding import Check, Finding, Group, error
from enclavedbg.eif.lint.subject import Subject

PANIC = "the kernel panics"
_CHECKS = {
    Kind.NOT_FOUND: error(
        "init-missing",
        f"There is no /init (or what rdinit= names) in the ramdisks: {PANIC}, it has no other root file system.",
        "put a program /init into the first ramdisk; enclavedbg eif build does",
    ),
    Kind.NOT_EXECUTABLE: error("init-not-executable", f"/init has no execute bit: {PANIC}.", "give it mode 0755"),
    Kind.NO_PROGRAM: error(
        "init-no-program", f"/init is neither an ELF program nor a script: {PANIC}.", "put a program in its place"
    ),
    Kind.ARCHITECTURE: error(
        "init-architecture",
        f"/init is a program for another processor: {PANIC}.",
        "build it for the image's architecture",
    ),
    Kind.INTERPRETER: error(
        "init-interpreter",
        f"The dynamic linker or the interpreter of /init is not in the ramdisks: {PANIC}.",
        "link init statically, or add what it needs",
    ),
    Kind.LIBRARY: error(
        "init-library",
        f"A shared library of /init is not in the ramdisks: it ends at once, and {PANIC}.",
        "link init statically, or add the library",
    ),
}


def first_program(subject: Subject) -> Iterator[Finding]:
    """It can be executed."""
    if subject.filesystem is None:
        return
    path = subject.first_program
    path = path if path.startswith("/") else f"/{path}"
    for defect in defects(subject, path, Surroundings()):
        yield _CHECKS[defect.kind].found(defect.message, evidence=defect.evidence, cure=defect.cure)


CHECKS: tuple[Check, ...] = tuple(_CHECKS.values())
GROUP = Group("The first program", CHECKS, (first_program,))
