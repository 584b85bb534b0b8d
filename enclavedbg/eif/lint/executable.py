"""Whether the kernel can execute a file of the ramdisks, and what is missing for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from enclavedbg.eif.lint.files import Located, contents, find, locate
from enclavedbg.eif.lint.finding import some
from enclavedbg.eif.lint.libraries import LibrarySearch
from enclavedbg.eif.lint.subject import Subject
from enclavedbg.eif.program import ET_REL, MAGIC, Program, read_program, read_shebang
from enclavedbg.eif.records import kind_of, permissions
from enclavedbg.errors import EifError

SCRIPT_DEPTH = 5
"""Interpreters of interpreters that Linux follows (fs/exec.c)."""
COMPATIBLE = {("x86_64", "i386"): "IA32_EMULATION", ("aarch64", "arm"): "COMPAT"}
"""32-bit programs that a 64-bit kernel runs with this option."""
LINKER_NAMES = ("ld-linux", "ld-musl", "ld64.so")


class Kind(Enum):
    """In which way a file cannot be executed."""

    NOT_FOUND = "not-found"
    NOT_EXECUTABLE = "not-executable"
    NO_PROGRAM = "no-program"
    ARCHITECTURE = "architecture"
    INTERPRETER = "interpreter"
    LIBRARY = "library"


@dataclass(frozen=True, slots=True)
class Defect:
    """One reason; `message` speaks of the file that it concerns, `cure` only where there is a special one."""

    kind: Kind
    message: str
    evidence: str = ""
    cure: str | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a program runs: below `root`, with these folders for libraries (LD_LIBRARY_PATH) and for `env` (PATH)."""

    root: str = "/"
    library_path: tuple[str, ...] = ()
    search_path: tuple[str, ...] = ()


def defects(subject: Subject, path: str, where: Surroundings) -> Iterator[Defect]:
    """Everything that keeps the file at `path` (absolute, below the root of `where`) from being executed."""
    yield from _defects(subject, path, where, depth=0, named_by=None)


def _defects(subject: Subject, path: str, where: Surroundings, *, depth: int, named_by: str | None) -> Iterator[Defect]:
    system = subject.filesystem
    assert system is not None
    missing = Kind.NOT_FOUND if named_by is None else Kind.INTERPRETER
    suffix = "" if named_by is None else f", the interpreter of {named_by},"
    try:
        located = locate(system.tree, path, root=where.root)
    except EifError as error:
        yield Defect(missing, f"{path}{suffix} is not there", str(error), _carriage_return(path))
        return
    node = located.node
    if not node.is_file:
        yield Defect(missing, f"{path}{suffix} is a {kind_of(node.mode)}, expected a program", f"at {located.path}")
        return
    if not node.is_executable:
        evidence = f"{located.path} has mode {permissions(node.mode)}"
        yield Defect(Kind.NOT_EXECUTABLE, f"{path}{suffix} is not executable", evidence)
    data = next((data for _, data in contents(system, [node])), memoryview(b""))
    shebang = read_shebang(data)
    if shebang is not None:
        line = "#!" + " ".join(filter(None, (shebang.interpreter, shebang.argument)))
        if depth == SCRIPT_DEPTH:
            yield Defect(Kind.INTERPRETER, f"{path} is a script of a script ..., {SCRIPT_DEPTH} deep", line)
            return
        target = shebang.interpreter if shebang.interpreter.startswith("/") else f"/{shebang.interpreter}"
        yield from _defects(subject, target, where, depth=depth + 1, named_by=f"{path} ({line})")
        yield from _by_env(subject, path, shebang.interpreter, shebang.argument, where)
    else:
        yield from _elf(subject, path, located, data, where)


def _by_env(
    subject: Subject, path: str, interpreter: str, argument: str | None, where: Surroundings
) -> Iterator[Defect]:
    """`#!/usr/bin/env python3` needs python3 in the program's own PATH."""
    system = subject.filesystem
    if system is None or not interpreter.endswith("/env") or not argument or not where.search_path:
        return
    name = argument.split(" ")[0]
    if name.startswith("-") or "/" in name or "=" in name:
        return
    if not any(find(system.tree, f"{folder}/{name}", root=where.root) for folder in where.search_path):
        folders = ":".join(where.search_path)
        yield Defect(
            Kind.INTERPRETER,
            f"{name}, the interpreter of {path} (by env), is in no folder of PATH",
            f"PATH={folders}",
            _carriage_return(name),
        )


def _carriage_return(name: str) -> str | None:
    if "\r" in name:
        return "save the file with line feeds only: its lines end in carriage returns, as Windows writes them"
    return None


def _elf(subject: Subject, path: str, located: Located, data: memoryview, where: Surroundings) -> Iterator[Defect]:
    try:
        program = read_program(data)
        if program.kind == ET_REL:
            raise EifError("it is an object file or kernel module")
    except EifError as error:
        is_elf = bytes(data[:4]) == MAGIC
        what = "is damaged" if is_elf else "is neither an ELF program nor a script that names its interpreter"
        cure = None if is_elf or not _is_text(data) else "begin the script with #! and its interpreter's path"
        yield Defect(Kind.NO_PROGRAM, f"{path} {what}", f"{located.path}: {error}", cure)
        return
    wrong = _wrong_machine(subject, program)
    if wrong is not None:
        yield Defect(Kind.ARCHITECTURE, f"{path} is a program for {program.machine}, {wrong}", located.path)
        return
    if program.interpreter is None:
        # Static, or the dynamic linker itself.
        return
    yield from _dynamic(subject, path, located, program, where)


def _wrong_machine(subject: Subject, program: Program) -> str | None:
    wanted = subject.kernel.architecture if subject.kernel is not None else subject.architecture
    if (program.machine, program.bits) == (wanted, 64):
        return None
    option = COMPATIBLE.get((wanted, program.machine))
    if option is None:
        return f"the image is for {wanted}"
    if subject.kernel is not None and subject.kernel.option(option) == "n":
        return f"and the kernel runs no 32-bit programs (CONFIG_{option}=n)"
    return None


def _dynamic(subject: Subject, path: str, located: Located, program: Program, where: Surroundings) -> Iterator[Defect]:
    system = subject.filesystem
    assert system is not None and program.interpreter is not None
    name = program.interpreter if program.interpreter.startswith("/") else f"/{program.interpreter}"
    linker = find(system.tree, name, root=where.root)
    if linker is None or not linker.node.is_executable:
        state = "is not there" if linker is None else "is not executable"
        yield Defect(
            Kind.INTERPRETER,
            f"the dynamic linker {name}, which {path} needs, {state}",
            f"{located.path} needs {', '.join(program.needed[:8]) or 'no libraries'}",
            "add the C library that the program was built for (glibc, or musl for ld-musl), or link it statically",
        )
        return
    search = LibrarySearch(system, where.root, where.library_path)
    missing = search.run(located, program)
    if missing:
        names = [
            f"{m.name}, needed by {m.needed_by}"
            + (f"; {m.wrong}" if m.wrong else "")
            + (f"; {m.elsewhere} is in no folder that is searched" if m.elsewhere else "")
            for m in missing
        ]
        cure = None
        if any(m.elsewhere for m in missing):
            cure = "run ldconfig when the image's file system is made, or set LD_LIBRARY_PATH"
        count = "a library is" if len(missing) == 1 else f"{len(missing)} libraries are"
        yield Defect(Kind.LIBRARY, f"{count} missing for {path}", some(names, limit=10), cure)


def _is_text(data: memoryview) -> bool:
    head = bytes(data[:512])
    return bool(head) and 0 not in head
