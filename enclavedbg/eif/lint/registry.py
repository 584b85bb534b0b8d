"""All groups of rules, in the order in which they run."""

from __future__ import annotations

from enclavedbg.eif.lint import (
    application,
    cmdline,
    header,
    init,
    kernel,
    memory,
    metadata,
    modules,
    ramdisks,
    signature,
)
from enclavedbg.eif.lint.finding import Check, Group

GROUPS: tuple[Group, ...] = (
    header.GROUP,
    cmdline.GROUP,
    ramdisks.GROUP,
    init.GROUP,
    application.GROUP,
    kernel.GROUP,
    modules.GROUP,
    metadata.GROUP,
    signature.GROUP,
    memory.GROUP,
)

CHECKS: dict[str, Check] = {check.id: check for group in GROUPS for check in group.checks}
"""Every check by its id."""


def catalogue() -> str:
    """The checks as a document in Markdown: docs/lint.md is this text."""
    lines = [
        "# What `enclavedbg eif lint` finds",
        "",
        "Each finding has one of these identifiers, which keep their meaning. An **error** keeps the image from "
        "starting or from working, a **warning** may, a **note** is worth knowing. The exit status is 1 when there is "
        "an error, 0 when there is none, 2 when the file cannot be read as an EIF at all.",
    ]
    for group in GROUPS:
        lines += ["", f"## {group.title}", "", "| id | severity | meaning | cure |", "| --- | --- | --- | --- |"]
        lines += [f"| `{c.id}` | {c.severity.value} | {c.meaning} | {c.cure} |" for c in group.checks]
    return "\n".join(lines) + "\n"
