"""The application as nitro-cli lays it out: /cmd, /env, and the program in /rootfs.

Source: aws-nitro-enclaves-sdk-bootstrap, init.c, for what init makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from enclavedbg.eif.lint.executable import Defect, Kind, Surroundings, defects
from enclavedbg.eif.lint.files import find
from enclavedbg.eif.lint.finding import Check, Finding, Group, error, note, some, warning
from enclavedbg.eif.lint.subject import FILE_LIMIT, ROOTFS, Subject

SEARCH_PATH = ("/sbin", "/usr/sbin", "/bin", "/usr/bin")
"""Where init looks for a command without a slash; the PATH of /env is not asked."""
LINE_MAX = (128 << 10) - 1
"""Linux's MAX_ARG_STRLEN without the NUL."""
TOTAL_MAX = 2 << 20
"""A quarter of the usual stack limit, which is what exec takes of arguments and environment."""
MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp")

_COMMAND = {
    Kind.NOT_FOUND: error(
        "command-not-found",
        "The program of /cmd is not in /rootfs where init looks for it: the enclave ends right after its start.",
        "write the program's whole path as the command (ENTRYPOINT or CMD of the container)",
    ),
    Kind.NOT_EXECUTABLE: error(
        "command-not-executable", "The program of /cmd has no execute bit.", "chmod +x it when the image is made"
    ),
    Kind.NO_PROGRAM: error(
        "command-no-program",
        "The program of /cmd is neither an ELF program nor a script with #!; init starts no shell for it.",
        "begin a script with #!/bin/sh, or name an interpreter in the command",
    ),
    Kind.ARCHITECTURE: error(
        "command-architecture",
        "The program of /cmd is for another processor.",
        "build the container for the image's architecture (docker build --platform)",
    ),
    Kind.INTERPRETER: error(
        "command-interpreter",
        "The dynamic linker or the interpreter of the program of /cmd is not in /rootfs.",
        "add it to the container, or link the program statically",
    ),
    Kind.LIBRARY: error(
        "command-library",
        "A shared library of the program of /cmd is not where the dynamic linker looks in /rootfs.",
        "add the library to the container, or link the program statically",
    ),
}
FOREIGN = note(
    "application-unknown",
    "There is neither /cmd nor /rootfs: the image is laid out otherwise than nitro-cli does it, and what its init "
    "starts is not examined.",
    "nothing to do when its init is made so",
)
NO_ROOTFS = error(
    "rootfs-missing",
    "There is no folder /rootfs: init cannot make it the root, and the kernel panics.",
    "put the application's files below rootfs/ in the second ramdisk",
)
MOUNT_POINT = error(
    "rootfs-mount-point",
    "A folder that init mounts on (dev, proc, run, sys, tmp) is missing in /rootfs or no folder; AWS's init gives up.",
    "make the folders in the container's file system",
)
NO_FILE = {
    name: error(
        f"{name}-missing",
        f"There is no file /{name}; AWS's init crashes without it, though it may be empty.",
        f"put a file {name} into the second ramdisk",
    )
    for name in ("cmd", "env")
}
UNREADABLE = error(
    "application-file",
    "/cmd or /env is no regular file, or far too large.",
    "write it as one word or variable per line",
)
EMPTY = warning("cmd-empty", "/cmd is empty: init starts `sh`.", "write the command into it, one word per line")
BLANK = warning(
    "application-blank-line",
    "A blank line in /cmd or /env is an empty word or variable for AWS's init; enclavedbg's init skips it.",
    "take it out",
)
RETURN = warning(
    "application-carriage-return",
    "Lines of /cmd or /env end in carriage returns, which become part of the words.",
    "write the file with line feeds only",
)
HAS_NUL = error("application-nul", "A line of /cmd or /env has a NUL: what follows it is lost.", "take the NUL out")
NO_LINE_END = note(
    "application-no-line-end", "The last line of /cmd or /env does not end in a line feed.", "end it with one"
)
LONG = error(
    "application-too-long",
    "/cmd and /env hold more than Linux passes to a program: 128 KiB in a line, or 2 MiB in all.",
    "pass large values in files",
)
RELATIVE = warning(
    "cmd-relative",
    "The command is a relative path; init starts it in /, whatever WORKDIR the container had.",
    "write the whole path",
)
NO_EQUALS = warning("env-no-equals", "A line of /env is not NAME=value.", "write NAME=value, or take it out")
DUPLICATE = warning("env-duplicate", "A variable is in /env twice; programs take one or the other.", "keep one of them")
NO_PATH = note("env-no-path", "/env has no PATH: the program finds others by their whole path only.", "add PATH=...")


@dataclass(frozen=True, slots=True)
class _Lines:
    """/cmd or /env: its `name`, its bytes, its lines without their ends."""

    name: str
    raw: bytes

    @property
    def lines(self) -> list[str]:
        text = self.raw.decode("utf-8", "surrogateescape")
        return text.removesuffix("\n").split("\n") if text else []


def _read(subject: Subject, name: str) -> _Lines | None:
    data = subject.file(f"/{name}")
    return None if data is None else _Lines(name, data)


def layout(subject: Subject) -> Iterator[Finding]:
    """The files and folders that init needs are there."""
    if subject.filesystem is None:
        return
    if not subject.has_application:
        names = ", ".join(sorted(subject.filesystem.tree.root.children)[:20])
        yield FOREIGN.found("the ramdisks have neither /cmd nor /rootfs", evidence=f"in /: {names}")
        return
    for name, check in NO_FILE.items():
        if subject.node(f"/{name}") is None:
            yield check.found(f"there is no /{name}")
        elif _read(subject, name) is None:
            yield UNREADABLE.found(f"/{name} cannot be read as a file of at most {FILE_LIMIT} bytes")
    rootfs = subject.node(ROOTFS)
    if rootfs is None or not rootfs.is_directory:
        yield NO_ROOTFS.found("there is no folder /rootfs")
        return
    system = subject.filesystem
    wrong = []
    for name in MOUNT_POINTS:
        located = find(system.tree, f"/{name}", root=ROOTFS)
        if located is None or not located.node.is_directory:
            wrong.append(f"/rootfs/{name} {'is missing' if located is None else 'is no folder'}")
    if wrong:
        yield MOUNT_POINT.found(f"{wrong[0]}, init mounts there", evidence=some(wrong))


def lines(subject: Subject) -> Iterator[Finding]:
    """The form of /cmd and /env."""
    if not subject.has_application:
        return
    for name in ("cmd", "env"):
        file = _read(subject, name)
        if file is None:
            continue
        found = file.lines
        if any(not line for line in found):
            number = 1 + found.index("")
            yield BLANK.found(f"line {number} of /{name} is blank", evidence=_shown(found))
        ends = [line for line in found if line.endswith("\r")]
        if ends:
            yield RETURN.found(f"{len(ends)} lines of /{name} end in carriage returns", evidence=_shown(ends))
        if b"\0" in file.raw:
            yield HAS_NUL.found(f"/{name} has a NUL at byte {file.raw.index(0)}")
        if file.raw and not file.raw.endswith(b"\n"):
            yield NO_LINE_END.found(f"/{name} does not end in a line feed", evidence=repr(file.raw[-20:]))
        longest = max((len(line) for line in file.raw.split(b"\n")), default=0)
        if longest > LINE_MAX or len(file.raw) > TOTAL_MAX:
            yield LONG.found(f"/{name} has {len(file.raw)} bytes, {longest} of them in one line")


def environment(subject: Subject) -> Iterator[Finding]:
    """/env has NAME=value."""
    file = _read(subject, "env") if subject.has_application else None
    if file is None or not file.lines:
        return
    given = [line for line in file.lines if line]
    wrong = [line for line in given if line.partition("=")[0] in ("", line)]
    if wrong:
        yield NO_EQUALS.found(f"{wrong[0][:60]!r} in /env is not NAME=value", evidence=_shown(wrong))
    names = [line.partition("=")[0] for line in given]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(names) < 10_000 else []
    if twice:
        yield DUPLICATE.found(f"{', '.join(twice)[:200]} in /env more than once")
    if "PATH" not in names:
        yield NO_PATH.found("/env has no PATH", evidence=_shown([f"{name}=..." for name in names]))


def command(subject: Subject) -> Iterator[Finding]:
    """The program in /cmd can be started as init starts it."""
    file = _read(subject, "cmd") if subject.has_application else None
    rootfs = subject.node(ROOTFS)
    if file is None or rootfs is None or not rootfs.is_directory:
        return
    words = file.lines
    if not words:
        yield EMPTY.found("/cmd is empty")
    name = words[0] if words else "sh"
    where = _surroundings(subject)
    if "/" in name:
        if not name.startswith("/"):
            yield RELATIVE.found(f"the command {name[:200]} is a relative path", evidence=_shown(words))
        path = name if name.startswith("/") else f"/{name}"
        found = list(defects(subject, path, where))
    else:
        found = list(_searched(subject, name, where))
    for defect in found:
        yield _COMMAND[defect.kind].found(
            defect.message,
            evidence="\n".join(filter(None, (defect.evidence, f"/cmd: {_shown(words)}"))),
            cure=defect.cure,
        )


def _surroundings(subject: Subject) -> Surroundings:
    file = _read(subject, "env")
    variables = dict(line.partition("=")[::2] for line in (file.lines if file is not None else []))
    libraries = variables.get("LD_LIBRARY_PATH", "").replace(";", ":")
    return Surroundings(
        ROOTFS,
        tuple(folder for folder in libraries.split(":")[:100] if folder.startswith("/")),
        tuple(folder for folder in variables.get("PATH", "").split(":")[:100] if folder.startswith("/")),
    )


def _searched(subject: Subject, name: str, where: Surroundings) -> Iterator[Defect]:
    """A command without a slash: as execvp does it, with init's own PATH."""
    system = subject.filesystem
    assert system is not None
    places = [(folder, find(system.tree, f"{folder}/{name}", root=ROOTFS) if name else None) for folder in SEARCH_PATH]
    there = [(folder, located) for folder, located in places if located is not None and located.node.is_file]
    chosen = next((folder for folder, located in there if located.node.is_executable), None)
    if chosen is not None or there:
        yield from defects(subject, f"{chosen or there[0][0]}/{name}", where)
        return
    elsewhere = next(
        (
            f"{folder}/{name}"
            for folder in where.search_path
            if name and find(system.tree, f"{folder}/{name}", root=ROOTFS)
        ),
        None,
    )
    evidence = f"init looks in {':'.join(SEARCH_PATH)}"
    cure = None
    if elsewhere is not None:
        evidence += f"; {elsewhere} is there, in the PATH of /env, which init does not use for the command"
        cure = f"write the whole path as the command: {elsewhere}"
    elif "\r" in name:
        cure = "write /cmd with line feeds only: its lines end in carriage returns"
    yield Defect(
        Kind.NOT_FOUND, f"the command {name[:100]!r} is in none of the folders that init searches", evidence, cure
    )


def _shown(words: list[str]) -> str:
    text = " ".join(words[:20])
    return text if len(text) <= 200 and len(words) <= 20 else f"{text[:200]}..."


CHECKS: tuple[Check, ...] = (
    FOREIGN,
    NO_ROOTFS,
    MOUNT_POINT,
    *NO_FILE.values(),
    UNREADABLE,
    EMPTY,
    BLANK,
    RETURN,
    HAS_NUL,
    NO_LINE_END,
    LONG,
    RELATIVE,
    NO_EQUALS,
    DUPLICATE,
    NO_PATH,
    *_COMMAND.values(),
)
GROUP = Group("The application", CHECKS, (layout, lines, environment, command))
