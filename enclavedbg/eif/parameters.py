"""How a stream was compressed, as far as its own headers say: what differs when the same files give other bytes.

Sources: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.1.0, lzma_alone as in LZMA SDK, Linux
lib/decompress_unlz4.c (legacy lz4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from enclavedbg.eif.compression import detect

Parameters = dict[str, int | str]

_GZIP_EFFORT = {0: "unstated", 2: "best", 4: "fastest"}
_XZ_CHECK = {0: "none", 1: "crc32", 4: "crc64", 10: "sha256"}
_XZ_FILTER = {
    0x03: "delta",
    0x04: "x86",
    0x05: "powerpc",
    0x06: "ia64",
    0x07: "arm",
    0x08: "armthumb",
    0x09: "sparc",
    0x0A: "arm64",
    0x0B: "riscv",
    0x21: "lzma2",
}


def parameters(view: memoryview) -> Parameters:
    """What the headers of the stream that `view` begins with say; empty where they say nothing or end too early.

    Sizes in bytes, gzip's `mtime` in seconds since 1970. Raises nothing: a damaged stream fails when unpacked.
    """
    reader = _READERS.get(detect(view) or "")
    if reader is None:
        return {}
    try:
        return reader(bytes(view[:1024]))
    except (IndexError, struct.error):
        return {}


def _gzip(head: bytes) -> Parameters:
    _, _, method, flags, mtime, effort, system = struct.unpack_from("<BBBBIBB", head)
    values: Parameters = {"mtime": mtime, "effort": _GZIP_EFFORT.get(effort, str(effort)), "os": system}
    if method != 8:
        values["method"] = method
    position = 10
    if flags & 4:
        (size,) = struct.unpack_from("<H", head, position)
        values["extra"] = head[position + 2 : position + 2 + size].hex()
        position += 2 + size
    for bit, key in ((8, "name"), (16, "comment")):
        if flags & bit:
            end = head.find(b"\0", position)
            if end < 0:
                break
            values[key] = head[position:end].decode("latin-1")
            position = end + 1
    return values


def _bzip2(head: bytes) -> Parameters:
    return {"block_size": (head[3] - ord("0")) * 100_000}


def _xz(head: bytes) -> Parameters:
    check = head[7] & 15
    values: Parameters = {"check": _XZ_CHECK.get(check, str(check))}
    flags = head[13]
    position = 14
    for bit in (0x40, 0x80):
        if flags & bit:
            _, position = _varint(head, position)
    filters = []
    for _ in range((flags & 3) + 1):
        number, position = _varint(head, position)
        size, position = _varint(head, position)
        filters.append(_XZ_FILTER.get(number, hex(number)))
        if number == 0x21 and size == 1:
            bits = head[position] & 63
            values["dictionary"] = 0xFFFF_FFFF if bits == 40 else (2 | bits & 1) << bits // 2 + 11
        position += size
    values["filters"] = "+".join(filters)
    return values


def _varint(head: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = head[position]
        value |= (byte & 127) << shift
        position += 1
        shift += 7
        if not byte & 128:
            return value, position


def _lzma(head: bytes) -> Parameters:
    properties, dictionary, size = struct.unpack_from("<BIQ", head)
    values: Parameters = {
        "lc": properties % 9,
        "lp": properties // 9 % 5,
        "pb": properties // 45,
        "dictionary": dictionary,
    }
    if size != 0xFFFF_FFFF_FFFF_FFFF:
        values["content_size"] = size
    return values


def _lz4(head: bytes) -> Parameters:
    return {"first_block": struct.unpack_from("<I", head, 4)[0]}


def _zstd(head: bytes) -> Parameters:
    descriptor = head[4]
    values: Parameters = {"checksum": "yes" if descriptor & 4 else "no"}
    position = 5
    if not descriptor & 0x20:
        exponent, mantissa = head[5] >> 3, head[5] & 7
        values["window"] = (1 << exponent + 10) + ((1 << exponent + 10) >> 3) * mantissa
        position = 6
    position += (0, 1, 2, 4)[descriptor & 3]
    width = (1 if descriptor & 0x20 else 0, 2, 4, 8)[descriptor >> 6]
    if width:
        stated = int.from_bytes(head[position : position + width], "little")
        values["content_size"] = stated + (256 if width == 2 else 0)
    return values


_READERS: dict[str, Callable[[bytes], Parameters]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "xz": _xz,
    "lzma": _lzma,
    "lz4": _lz4,
    "zstd": _zstd,
}
