"""A small ELF file with a symbol table, written in code: what a kernel's symbol file is to gdb."""

from __future__ import annotations

import struct


def symbol_elf(text: int, size: int, symbols: dict[str, int]) -> bytes:
    """An x86-64 executable with a `.text` of `size` bytes at `text` that has no content here, and functions in it."""
    names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in symbols)
    table = bytes(24)
    for name, address in symbols.items():
        at = strings.index(b"\0" + name.encode() + b"\0") + 1
        table += struct.pack("<IBBHQQ", at, 0x12, 0, 1, address, 4)  # STB_GLOBAL, STT_FUNC
    start = 64 + 56
    places = [start, start + len(table), start + len(table) + len(strings)]
    sections = places[-1] + len(names)

    def section(name: bytes, kind: int, flags: int, address: int, offset: int, length: int, *rest: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", names.index(name), kind, flags, address, offset, length, *rest)

    headers = bytes(64) + b"".join(
        (
            section(b".text", 8, 6, text, start, size, 0, 0, 16, 0),
            section(b".symtab", 2, 0, 0, places[0], len(table), 3, 1, 8, 24),
            section(b".strtab", 3, 0, 0, places[1], len(strings), 0, 0, 1, 0),
            section(b".shstrtab", 3, 0, 0, places[2], len(names), 0, 0, 1, 0),
        )
    )
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, text, 64, sections, 0, 64, 56, 1, 64, 5, 4
    )
    program = struct.pack("<IIQQQQQQ", 1, 5, 0, text, text - 0xFFFF_FFFF_8000_0000, 0, size, 0x1000)
    return header + program + table + strings + names + headers
