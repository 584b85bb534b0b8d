"""The few terms of ACPI Machine Language that our tables need.

Source: ACPI specification 6.5, chapters 20 (AML) and 6.4 (resource descriptors).
"""

from __future__ import annotations

import struct

IRQ_CONSUMER = 1 << 0
IRQ_EDGE = 1 << 1


def package_length(length: int) -> bytes:
    """PkgLength for `length` bytes that follow it; the encoding counts itself."""
    if length + 1 < 1 << 6:
        return bytes([length + 1])
    for extra in (1, 2, 3):
        total = length + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML package of {length} bytes")


def integer(value: int) -> bytes:
    """An integer constant in its shortest form."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit an AML integer")


def string(text: str) -> bytes:
    """A string constant."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def segment(name: str) -> bytes:
    """A name of up to four characters, padded; a leading backslash means the root."""
    root = b"\\" if name.startswith("\\") else b""
    return root + name.removeprefix("\\").ljust(4, "_").encode("ascii")


def name(what: str, value: bytes) -> bytes:
    """Name (what, value)."""
    return b"\x08" + segment(what) + value


def scope(what: str, *body: bytes) -> bytes:
    """Scope (what) { body }."""
    return _block(b"\x10", segment(what) + b"".join(body))


def device(what: str, *body: bytes) -> bytes:
    """Device (what) { body }."""
    return _block(b"\x5b\x82", segment(what) + b"".join(body))


def package(*elements: bytes) -> bytes:
    """Package () { elements }."""
    return _block(b"\x12", bytes([len(elements)]) + b"".join(elements))


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }: a buffer closed by the end tag."""
    data = b"".join(descriptors) + b"\x79\x00"
    return _block(b"\x11", integer(len(data)) + data)


def memory_resource(base: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, size)."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def interrupt_resource(number: int) -> bytes:
    """Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { number }."""
    return struct.pack("<BHBBI", 0x89, 6, IRQ_CONSUMER | IRQ_EDGE, 1, number)


def _block(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body
