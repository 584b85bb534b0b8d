"""What executing a file needs: an ELF program's interpreter and libraries, a script's interpreter.

Reads the program headers and the dynamic segment, which are what Linux and the dynamic linker look at; sections,
which a stripped program may lack, are not needed. Nothing is allocated or gone through by a number that the file
states without a limit. Source: System V ABI (ELF-64 and ELF-32), Linux fs/binfmt_elf.c, fs/binfmt_script.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from enclavedbg.errors import EifError

MAGIC = b"\x7fELF"
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB, DT_SONAME, DT_RPATH, DT_RUNPATH = 0, 1, 5, 14, 15, 29
ET_REL = 1
MACHINES = {3: "i386", 8: "mips", 20: "powerpc", 21: "ppc64", 22: "s390x", 40: "arm", 243: "riscv"}
MACHINES |= {62: "x86_64", 183: "aarch64", 258: "loongarch"}

HEADERS_MAX = 128
"""Linux refuses more than 64 KiB of program headers; programs have some dozen."""
DYNAMIC_MAX = 4096
STRING_MAX = 4096
SHEBANG_SIZE = 256
"""Bytes of a script's first line that Linux reads (128 before 5.1)."""


@dataclass(frozen=True, slots=True)
class Program:
    """An ELF file's needs. `machine` is as in `uname -m`; `interpreter` None for a static program or a library.

    `rpath` and `runpath` are lists of folders as written, `$ORIGIN` and all; `kind` is e_type.
    """

    machine: str
    bits: int
    kind: int
    interpreter: str | None
    needed: tuple[str, ...] = ()
    soname: str | None = None
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shebang:
    """A script's first line: the interpreter, and its one argument if there is any."""

    interpreter: str
    argument: str | None


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read_shebang(head: bytes | memoryview) -> Shebang | None:
    """The interpreter that a script names, None when the file does not begin with `#!` and a name."""
    data = bytes(head[:SHEBANG_SIZE])
    if not data.startswith(b"#!"):
        return None
    # Linux strips blanks, and nothing else: a carriage return is part of the name.
    line = data[2:].partition(b"\n")[0].strip(b" \t").decode("utf-8", "surrogateescape")
    words = line.replace("\t", " ").split(" ", 1)
    if not words[0] or "\0" in words[0]:
        return None
    return Shebang(words[0], words[1].strip(" ") if len(words) > 1 else None)


def read_program(data: bytes | memoryview) -> Program:
    """An ELF file's needs. Raises EifError for what Linux or the dynamic linker could not read."""
    view = memoryview(data).toreadonly().cast("B")
    if bytes(view[:4]) != MAGIC:
        raise EifError(f"it begins with {bytes(view[:4])!r}, expected an ELF file")
    if len(view) < 52 or view[4] not in (1, 2) or view[5] not in (1, 2):
        raise EifError("its ELF header is damaged or cut short")
    bits = 32 * view[4]
    order = "<" if view[5] == 1 else ">"
    kind, number = struct.unpack_from(f"{order}HH", view, 16)
    machine = MACHINES.get(number, f"machine {number}") + ("" if order == "<" else " (big-endian)")
    if order == ">":
        return Program(machine, bits, kind, None)
    try:
        segments = list(_segments(view, bits))
        interpreter = next((_text(view, s.offset, s.size) for s in segments if s.kind == PT_INTERP), None)
        dynamic = next((s for s in segments if s.kind == PT_DYNAMIC), None)
        entries = [] if dynamic is None else list(_dynamic(view, dynamic, bits))
        return _with_dynamic(view, Program(machine, bits, kind, interpreter), segments, entries)
    except (struct.error, OverflowError):
        raise EifError("its ELF headers point past its end: it is cut short") from None


def _segments(view: memoryview, bits: int) -> Iterator[_Segment]:
    offset, size, count = (
        struct.unpack_from("<Q14xHH", view, 32) if bits == 64 else struct.unpack_from("<I10xHH", view, 28)
    )
    layout = struct.Struct("<IIQQQQQQ" if bits == 64 else "<IIIIIIII")
    if count and size != layout.size:
        raise EifError(f"its ELF program headers have {size} bytes each, expected {layout.size}")
    if count > HEADERS_MAX:
        raise EifError(f"it has {count} ELF program headers, at most {HEADERS_MAX} are read")
    for index in range(count):
        kind, *fields = layout.unpack_from(view, offset + index * layout.size)
        # Flags stand second in ELF-64, seventh in ELF-32.
        start, address, _, length = fields[1:5] if bits == 64 else fields[:4]
        yield _Segment(kind, start, address, length)


def _dynamic(view: memoryview, segment: _Segment, bits: int) -> Iterator[tuple[int, int]]:
    layout = struct.Struct("<QQ" if bits == 64 else "<II")
    for index in range(min(segment.size // layout.size, DYNAMIC_MAX)):
        tag, value = layout.unpack_from(view, segment.offset + index * layout.size)
        if tag == DT_NULL:
            return
        yield tag, value


def _with_dynamic(
    view: memoryview, program: Program, segments: list[_Segment], entries: list[tuple[int, int]]
) -> Program:
    address = next((value for tag, value in entries if tag == DT_STRTAB), None)
    loaded = next(
        (s for s in segments if s.kind == PT_LOAD and address is not None and 0 <= address - s.address < s.size), None
    )
    wanted = [(tag, value) for tag, value in entries if tag in (DT_NEEDED, DT_SONAME, DT_RPATH, DT_RUNPATH)]
    if not wanted:
        return program
    if loaded is None or address is None:
        raise EifError("its dynamic segment has no table of names")
    table = loaded.offset + address - loaded.address
    texts = [(tag, _text(view, table + value, STRING_MAX)) for tag, value in wanted]
    return Program(
        program.machine,
        program.bits,
        program.kind,
        program.interpreter,
        needed=tuple(text for tag, text in texts if tag == DT_NEEDED),
        soname=next((text for tag, text in texts if tag == DT_SONAME), None),
        rpath=_folders(texts, DT_RPATH),
        runpath=_folders(texts, DT_RUNPATH),
    )


def _folders(texts: list[tuple[int, str]], wanted: int) -> tuple[str, ...]:
    return tuple(folder for tag, text in texts if tag == wanted for folder in text.split(":") if folder)


def _text(view: memoryview, offset: int, size: int) -> str:
    if offset >= len(view):
        raise EifError("its ELF headers point past its end: it is cut short")
    raw = bytes(view[offset : offset + min(size, STRING_MAX)])
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
