"""Keeps a guest from ending the process where the native part is not there to do it.

Unicorn calls `cpu_abort`, and that `abort`, when an interrupt or a call gate wants an inner ring's stack and the
task register holds nothing; a guest's kernel can bring that about. The native part replaces the function. Without
a compiler the library's own table of calls is pointed at a few bytes of machine code instead, which leave for
Unicorn's loop as a halt that halts nothing: a triple fault to the engine.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import platform
import struct
import sys

from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft.library import Library

log = logging.getLogger(__name__)

# System V ABI, x86-64 supplement: the dynamic section and its tags.
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_JMPREL = 0, 2, 5, 6, 23
_SYMBOL_SIZE = 24


@functools.cache
def contain(library: Library) -> bool:
    """Make `cpu_abort` a triple fault, once a process; False where that cannot be done."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    slot = _call_slot(library, b"cpu_abort_x86_64")
    if slot is None:
        log.warning("no way to contain a guest without a task state; an interrupt of such a guest ends the process")
        return False
    ctypes.c_uint64.from_address(slot).value = _stub(library)
    return True


def _stub(library: Library) -> int:
    """Address of: exception_index = EXCP_HLT; goto cpu_loop_exit. The CPU is the first argument of both."""
    leave = ctypes.cast(library.dll.cpu_loop_exit_x86_64, ctypes.c_void_p).value
    code = struct.pack("<2sII", b"\xc7\x87", at.CPU_EXCEPTION_INDEX, at.EXCP_HLT)  # mov dword [rdi + ...], ...
    code += struct.pack("<2sQ2s", b"\x48\xb8", leave, b"\xff\xe0")  # movabs rax, ...; jmp rax
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    # Kept for the life of the process, as the library's table is.
    _pages.append((page, ctypes.c_char.from_buffer(page)))
    return ctypes.addressof(_pages[-1][1])


_pages: list[tuple[mmap.mmap, ctypes.c_char]] = []


def _call_slot(library: Library, name: bytes) -> int | None:
    """Address of the entry for `name` in the table that the library's calls to its own functions go through."""
    # What dlopen returns begins, with glibc and musl alike, with load address, name and dynamic section.
    base, _name, dynamic = (ctypes.c_uint64 * 3).from_address(library.dll._handle)
    found: dict[int, int] = {}
    while True:
        tag, value = (ctypes.c_uint64 * 2).from_address(dynamic)
        if tag == _DT_NULL:
            break
        found[tag] = value
        dynamic += 16
    try:
        relocations = ctypes.string_at(found[_DT_JMPREL], found[_DT_PLTRELSZ])
        symbols, strings = found[_DT_SYMTAB], found[_DT_STRTAB]
    except KeyError:
        return None
    for offset, info, _addend in struct.iter_unpack("<QQq", relocations):
        at_name = ctypes.c_uint32.from_address(symbols + (info >> 32) * _SYMBOL_SIZE).value
        if ctypes.string_at(strings + at_name, len(name) + 1) == name + b"\0":
            return int(base + offset)
    return None
