"""Kernel modules in the ramdisks: those that init loads, and whether this kernel takes them.

Sources: Linux kernel/module/main.c, include/linux/vermagic.h; init.c of aws-nitro-enclaves-sdk-bootstrap (/nsm.ko);
the packaged init (a list of paths in /modules).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from enclavedbg.eif.lint.files import contents
from enclavedbg.eif.lint.finding import Check, Finding, Group, error, warning
from enclavedbg.eif.lint.subject import ROOTFS, Subject
from enclavedbg.eif.program import ET_REL, read_program
from enclavedbg.eif.tree import Node
from enclavedbg.errors import EifError

SIGNATURE_END = b"~Module signature appended~\n"
_VERMAGIC = re.compile(rb"\0?vermagic=([^\0]{1,200})\0")

NO_MODULE = error(
    "module-format",
    "What init loads as a kernel module is no ELF object file for this architecture (compressed?); init gives up.",
    "put the uncompressed .ko file of this kernel in its place",
)
VERSION = error(
    "module-version",
    "A module was built for another kernel: loading it fails, and init gives up.",
    "build the module for this kernel",
)
VERSION_CRC = warning(
    "module-version-crc",
    "A module was built for another release; symbol versions (modversions) decide whether the kernel takes it.",
    "build the module for this kernel",
)
UNSIGNED = error(
    "module-unsigned",
    "The kernel takes signed modules only, and a module that init loads is not signed.",
    "sign the module, or build the kernel without CONFIG_MODULE_SIG_FORCE",
)
LISTED = error(
    "module-missing", "/modules lists a module that is not in the ramdisks; init gives up.", "add it, or take it out"
)


def modules_at_boot(subject: Subject, *, late: bool = False) -> Iterator[tuple[str, str]]:
    """(path, name with underscores) of module files outside /rootfs, which init can reach; with `late`, inside."""
    for path, name in subject.modules:
        if path.startswith(f"{ROOTFS}/") == late:
            yield path, name


def nsm_at_top(subject: Subject) -> Node | None:
    """The file /nsm.ko, which init loads when it is there."""
    return subject.node("/nsm.ko")


def _loaded(subject: Subject) -> Iterator[tuple[str, Node | None]]:
    """What init loads: path, and the file if it is there."""
    top = nsm_at_top(subject)
    if top is not None:
        yield "/nsm.ko", top
    text = (subject.file("/modules") or b"").decode("utf-8", "replace")
    for line in dict.fromkeys(text.split("\n")):
        if line:
            yield line, subject.node(line)


def loaded(subject: Subject) -> Iterator[Finding]:
    """Each module that init loads fits the kernel."""
    if subject.filesystem is None:
        return
    paths: dict[Node, str] = {}
    for path, node in _loaded(subject):
        if node is None:
            yield LISTED.found(f"there is no {path[:200]}, which /modules lists")
        else:
            paths.setdefault(node, path)
    for node, data in contents(subject.filesystem, paths):
        yield from _fits(subject, paths[node], data)
    for node, path in paths.items():
        if not node.is_file:
            yield NO_MODULE.found(f"{path[:200]} is no regular file")


def _fits(subject: Subject, path: str, data: memoryview) -> Iterator[Finding]:
    kernel = subject.kernel
    wanted = subject.architecture if kernel is None else kernel.architecture
    try:
        program = read_program(data)
    except EifError as problem:
        yield NO_MODULE.found(f"{path} is no kernel module", evidence=str(problem))
        return
    if program.kind != ET_REL or program.machine != wanted:
        yield NO_MODULE.found(f"{path} is no kernel module for {wanted}", evidence=f"an ELF file for {program.machine}")
        return
    if kernel is None:
        return
    raw = bytes(data)
    found = _VERMAGIC.search(raw)
    words = found[1].decode("utf-8", "replace").split() if found else []
    if words and kernel.release is not None and words[0] != kernel.release:
        check = VERSION_CRC if "modversions" in words else VERSION
        yield check.found(
            f"{path} was built for Linux {words[0]}, the kernel is {kernel.release}",
            evidence=f"vermagic={' '.join(words)}",
        )
    if kernel.option("MODULE_SIG_FORCE") == "y" and not raw.endswith(SIGNATURE_END):
        yield UNSIGNED.found(f"{path} is not signed", evidence="CONFIG_MODULE_SIG_FORCE=y")


CHECKS: tuple[Check, ...] = (NO_MODULE, VERSION, VERSION_CRC, UNSIGNED, LISTED)
GROUP = Group("Kernel modules", CHECKS, (loaded,))
