"""Builds small kernels for the tests: ELF files and the bzImages around them."""

from __future__ import annotations

import gzip
import struct

KERNEL_BASE = 0x100_0000


def elf(
    segments: list[tuple[int, bytes, int]] | None = None,
    *,
    entry: int = KERNEL_BASE,
    machine: int = 62,
    elf_class: int = 2,
    phentsize: int = 56,
) -> bytes:
    """An ELF64 file with a PT_LOAD for each (gpa, contents, size in memory), virtual address 0 throughout."""
    if segments is None:
        segments = [(KERNEL_BASE, b"\xf4" * 64, 64)]
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    headers, contents = b"", b""
    start = 64 + 56 * (len(segments) + 1)
    for gpa, data, memory_size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, start + len(contents), 0, gpa, len(data), memory_size, 4096)
        contents += data
    headers += struct.pack("<IIQQQQQQ", 4, 0, 0, 0, 0, 0, 0, 0)  # PT_NOTE, not to be loaded
    count = len(segments) + 1
    return (
        ident
        + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, phentsize, count, 0, 0, 0)
        + headers
        + contents
    )


def bzimage(
    payload: bytes | None = None,
    *,
    version: int = 0x20F,
    xloadflags: int = 1,
    init_size: int = 0x10_0000,
    initrd_addr_max: int = 0x7FFF_FFFF,
    cmdline_size: int = 0x7FF,
    payload_length: int | None = None,
    name: bytes = b"6.12.0-test (someone) #1",
) -> bytes:
    """A bzImage around a payload, by default a gzipped ELF file, with one setup sector as boot.rst lays it out."""
    if payload is None:
        payload = gzip.compress(elf(), mtime=0)
    setup = bytearray(2 * 512)
    setup[0x1EF] = 0xFF  # rubbish before the header, which a loader must not copy
    setup[0x1F1] = 1
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x6a"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<H", setup, 0x20E, 0x300 - 0x200)
    setup[0x211] = 0x01 | 0x02
    struct.pack_into("<I", setup, 0x22C, initrd_addr_max)
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, cmdline_size)
    offset = 0x20
    struct.pack_into("<II", setup, 0x248, offset, len(payload) if payload_length is None else payload_length)
    struct.pack_into("<QI", setup, 0x258, KERNEL_BASE, init_size)
    setup[0x300 : 0x300 + len(name)] = name
    return bytes(setup) + bytes(offset) + payload
