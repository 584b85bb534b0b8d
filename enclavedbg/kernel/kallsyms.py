"""The kernel's own symbol table, found and decoded in the image: no `.symtab`, no debug package.

Source: scripts/kallsyms.c and kernel/kallsyms.c of Linux 5.0 to 6.12. Nothing says where the tables lie, so
they are found by what they must look like, and every step is checked against the next:

- the token table, 256 zero-ended strings, where the digits "0" to "9" stand for themselves and so lie in a row;
- the token index after it, 256 u16 that must be the offsets of exactly those strings;
- the markers before it, u32 offsets of every 256th name: 0, then ascending;
- the names before the markers, and their number before them;
- offsets and relative base: before the number (until 6.3), or after the token index (from 6.4).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

from enclavedbg.errors import SymbolError

DIGITS = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00"
TOKENS = 256
MAX_TOKEN = 512
MAX_SYMBOLS = 1 << 21
"""Ten times what a distribution kernel has."""
MAX_CANDIDATES = 64
MAX_TOKEN_TABLES = 4
NAMES_PER_MARKER = 256
LONGEST_NAME = 2 + 512
"""KSYM_NAME_LEN of 6.1 and later, and its length; compressed ones are shorter."""
MAX_TEXT = 256 << 20
"""Bound on the decoded names, which tokens could otherwise blow up."""
SEQUENCE_BYTES = 3
"""kallsyms_seqs_of_names: three bytes a symbol, between markers and token table in 6.2 and 6.3."""
SPACE = 1 << 64
SEPARATOR = "\N{LATIN CAPITAL LETTER A WITH MACRON}"
"""Any character beyond Latin-1, so that it cannot be a byte of a compressed name."""


@dataclass(frozen=True, slots=True)
class Kallsyms:
    """The decoded table, in the kernel's order (by address, preferred name first among equals).

    `entries` are the nm type letter with the name behind it ("Tstart_kernel"); `addresses` are as linked,
    except percpu symbols, which are offsets into the percpu area. `text` is all the entries, each ended by
    a zero byte, as an ELF string table wants them; `starts` says where each lies in it.
    """

    addresses: array[int]
    entries: list[str]
    text: bytes
    starts: list[int]


def read_kallsyms(image: bytes) -> Kallsyms:
    """Find and decode the symbol table in an unpacked kernel; raises SymbolError when there is none."""
    reason = "no token table: the kernel was built without CONFIG_KALLSYMS"
    for position, tokens in islice(_token_tables(image), MAX_TOKEN_TABLES):
        try:
            return _decode(image, position, tokens)
        except SymbolError as error:
            reason = str(error)
    raise SymbolError(f"no kernel symbols found ({reason}); give the debug vmlinux instead")


def _token_tables(image: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """(position, tokens) of every place that holds a token table with its index behind it."""
    hit = image.find(DIGITS)
    for _ in range(MAX_CANDIDATES):
        if hit < 0:
            return
        # Back to the second token; only the index says how long the first one is, whose front has no zero byte.
        second = hit
        for _ in range(ord("0") - 1):
            floor = max(0, second - 2 - MAX_TOKEN)
            second = image.rfind(b"\0", floor, max(0, second - 1)) + 1 or floor
        rest = image[second : second + TOKENS * MAX_TOKEN].split(b"\0", TOKENS - 1)[: TOKENS - 1]
        index = _align(second + sum(map(len, rest)) + len(rest), 8)
        start = second - int.from_bytes(image[index + 2 : index + 4], "little")
        tokens = [image[max(0, start) : second - 1], *rest]
        expected = list(accumulate((len(token) + 1 for token in tokens[:-1]), initial=0))
        if (
            0 <= start < second
            and expected[-1] < 1 << 16
            and image[index : index + 2 * TOKENS] == struct.pack(f"<{len(expected)}H", *expected)
        ):
            yield start, tokens
        hit = image.find(DIGITS, hit + 1)


def _decode(image: bytes, token_table: int, tokens: list[bytes]) -> Kallsyms:
    markers_at, markers = _markers(image, token_table)
    names, count = _names_start(image, markers_at, markers)
    index_end = _align(token_table + sum(map(len, tokens)) + TOKENS, 8) + 2 * TOKENS
    addresses = _addresses(image, names - 8, count, index_end=index_end)
    pieces = _compressed_names(image, names, count, end=markers_at)
    text = _expand(pieces, tokens)
    # Latin-1 keeps one character per byte, so that positions in the text are positions in the strings.
    entries = text.decode("latin-1").split("\0")
    entries.pop()
    if len(entries) != count or not all(entries):
        raise SymbolError("the kernel's symbol names do not decode")
    starts = list(accumulate((len(entry) + 1 for entry in entries[:-1]), initial=0))
    return Kallsyms(addresses, entries, text, starts)


def _align(value: int, to: int) -> int:
    return (value + to - 1) & -to


def _u32(image: bytes, at: int) -> int:
    return int.from_bytes(image[at : at + 4], "little")


def _markers(image: bytes, token_table: int) -> tuple[int, list[int]]:
    """Where the markers start, and the markers: right before the token table, or before the sequence table."""
    top = token_table & ~3
    for end in range(top, max(8, top - 12), -4):
        start, markers = _run_ending(image, end)
        if markers:
            return start, markers
    # 6.2 and 6.3 put three bytes for each symbol between: the right end is as far away as its markers say.
    lowest = max(8, token_table - SEQUENCE_BYTES * MAX_SYMBOLS)
    end = top
    while end > lowest:
        start, markers = _run_ending(image, end)
        symbols = (token_table - end) // SEQUENCE_BYTES
        if markers and 0 <= symbols - NAMES_PER_MARKER * (len(markers) - 1) <= NAMES_PER_MARKER + 5:
            return start, markers
        # A shorter end of the same run would stop at the same place: each byte is looked at once.
        end = min(end - 4, start)
    raise SymbolError(f"no markers before the token table at {token_table:#x}")


def _run_ending(image: bytes, end: int) -> tuple[int, list[int]]:
    """(start, values) of the ascending run of u32 from 0 that ends at `end`; no values when it is no such run."""
    markers: list[int] = []
    above = 0
    at = end
    for at in range(end - 4, max(0, end - 4 * (MAX_SYMBOLS // NAMES_PER_MARKER)), -4):
        value = _u32(image, at)
        if markers and not NAMES_PER_MARKER <= above - value <= NAMES_PER_MARKER * LONGEST_NAME:
            return at + 4, []
        markers.append(value)
        if value == 0:
            return at, markers[::-1] if len(markers) > 1 else []
        above = value
    return min(at, end - 4), []


def _names_start(image: bytes, markers_at: int, markers: list[int]) -> tuple[int, int]:
    """Where the names start and how many they are: the number lies before them and must agree with the markers."""
    last = markers_at - markers[-1]
    first = max(0, last - NAMES_PER_MARKER * LONGEST_NAME - 8)
    for names in range(last & ~7, first, -8):
        count = _u32(image, names - 8)
        if -(-count // NAMES_PER_MARKER) != len(markers) or _u32(image, names - 4):
            continue
        if _skip_names(image, names, NAMES_PER_MARKER) == names + markers[1]:
            return names, count
    raise SymbolError(f"no symbol names before the markers at {markers_at:#x}")


def _skip_names(image: bytes, at: int, count: int) -> int:
    for _ in range(count):
        if at + 2 > len(image):
            break
        length = image[at]
        at += 1 + length if length < 0x80 else 2 + (length & 0x7F | image[at + 1] << 7)
    return at


def _compressed_names(image: bytes, at: int, count: int, *, end: int) -> list[bytes]:
    """The names as token numbers. A length over 127 takes a second byte (from 6.1; before, none was that long)."""
    pieces: list[bytes] = []
    add = pieces.append
    for _ in range(count):
        length = image[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | image[at] << 7
            at += 1
        if at + length > end:
            raise SymbolError(f"the kernel's symbol names run over their end at {end:#x}")
        add(image[at : at + length])
        at += length
    return pieces


def _expand(pieces: list[bytes], tokens: list[bytes]) -> bytes:
    """All names in full, each ended by a zero byte. One translation in C beats a join for each of 100,000 names."""
    longest = max(map(len, tokens))
    if sum(map(len, pieces)) * longest > MAX_TEXT:
        raise SymbolError("the kernel's symbol names are too long to be real")
    table = {number: token.decode("latin-1") for number, token in enumerate(tokens)}
    table[ord(SEPARATOR)] = "\0"
    pieces.append(b"")
    return SEPARATOR.join(piece.decode("latin-1") for piece in pieces).translate(table).encode("latin-1")


def _addresses(image: bytes, number_at: int, count: int, *, index_end: int) -> array[int]:
    """Addresses from offsets and base, wherever this kernel keeps them."""
    if not 0 < count <= MAX_SYMBOLS:
        raise SymbolError(f"{count} kernel symbols: expected 1 to {MAX_SYMBOLS}")
    after = _align(index_end, 8)
    size = _align(4 * count, 8)
    for offsets_at in (after, number_at - 8 - size):
        base_at = offsets_at + size
        if offsets_at < 0 or base_at + 8 > len(image):
            continue
        base = int.from_bytes(image[base_at : base_at + 8], "little")
        # The base is the start of the kernel's text: 2 MiB aligned, in the top 2 GiB.
        if base >> 31 != 0x1FFFFFFFF or base & 0xFFF:
            continue
        offsets = struct.unpack_from(f"<{count}i", image, offsets_at)
        addresses = _relocate(offsets, base)
        if addresses is not None:
            return addresses
    raise SymbolError("the kernel's symbol offsets and their base were not found")


def _relocate(offsets: tuple[int, ...], base: int) -> array[int] | None:
    """Offsets to addresses, or None when the result is not in ascending order, as it must be.

    With CONFIG_KALLSYMS_ABSOLUTE_PERCPU (SMP) an offset below 0 counts from the base downwards, one above is
    a percpu address; without it all are plain distances from the base.
    """
    if offsets[-1] < 0:
        addresses = array("Q", [offset if offset >= 0 else base - 1 - offset for offset in offsets])
    else:
        addresses = array("Q", [base + offset for offset in offsets]) if min(offsets) >= 0 else array("Q")
    ascending = all(map(int.__le__, addresses, addresses[1:]))
    return addresses if addresses and ascending and addresses[-1] < SPACE else None
