"""A strict reader for the CBOR (RFC 8949) that guests and documents bring.

cbor2 writes our messages but does not read others': it acts on semantic tags (it compiles regular
expressions, builds decimals and cyclic lists), lets duplicate keys and trailing bytes pass, and differs in
these between releases. Here a tag stays a tag, and the value is exactly what the bytes say.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from enclavedbg.errors import NsmError

MAX_DEPTH = 16
"""Nesting that messages and documents never reach; the reader is recursive."""


class CborError(NsmError):
    """The bytes are not one well-formed CBOR item; `offset` is where that showed."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(f"{message} at byte {offset}")
        self.offset = offset


class DuplicateKeyError(CborError):
    """A map holds a key twice, so two readers may see two values."""


class TrailingBytesError(CborError):
    """Bytes follow the item."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """An item with a semantic tag, not interpreted."""

    tag: int
    value: Any


@dataclass(frozen=True, slots=True)
class Simple:
    """A simple value other than false, true and null; 23 is undefined."""

    value: int


def decode(data: bytes, *, tolerate: Callable[[CborError], object] | None = None) -> Any:
    """The one item that `data` holds: int, bytes, str, list, dict, bool, None, float, Tagged or Simple.

    Definite and indefinite lengths, and integers in any width, are read alike. Map keys may be integers, text
    or bytes. Raises CborError; with `tolerate`, duplicate keys (of which the first counts) and trailing bytes are
    told to that instead.
    """
    reader = _Reader(data, tolerate)
    value = reader.item(0)
    if reader.at != len(data):
        reader.breach(TrailingBytesError(f"{len(data) - reader.at} bytes follow the item", offset=reader.at))
    return value


_BREAK = object()
_INDEFINITE = 31
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}


class _Reader:
    def __init__(self, data: bytes, tolerate: Callable[[CborError], object] | None) -> None:
        self.data = data
        self.at = 0
        self._tolerate = tolerate

    def breach(self, error: CborError) -> None:
        """A fault that does not keep the rest from being read."""
        if self._tolerate is None:
            raise error
        self._tolerate(error)

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise CborError(f"{length} bytes expected, {len(self.data) - self.at} left", offset=self.at)
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def argument(self, info: int) -> int:
        """The number in an item's head (RFC 8949, section 3)."""
        if info < 24:
            return info
        if info > 27:
            raise CborError(f"reserved additional information {info}", offset=self.at - 1)
        return int.from_bytes(self.take(1 << (info - 24)), "big")

    def item(self, depth: int, *, may_break: bool = False) -> Any:
        if depth > MAX_DEPTH:
            raise CborError(f"more than {MAX_DEPTH} levels of nesting", offset=self.at)
        start = self.at
        head = self.take(1)[0]
        major, info = head >> 5, head & 31
        match major:
            case 0:
                return self.argument(info)
            case 1:
                return -1 - self.argument(info)
            case 2:
                return self.string(major, info)
            case 3:
                try:
                    return self.string(major, info).decode()
                except UnicodeDecodeError:
                    raise CborError("text that is not UTF-8", offset=start) from None
            case 4:
                return self.array(info, depth)
            case 5:
                return self.map(info, depth)
            case 6:
                return Tagged(self.argument(info), self.item(depth + 1))
            case _:
                return self.simple(info, start, may_break=may_break)

    def string(self, major: int, info: int) -> bytes:
        if info != _INDEFINITE:
            return self.take(self.argument(info))
        pieces: list[bytes] = []
        while (head := self.take(1)[0]) != 0xFF:
            if head >> 5 != major or head & 31 == _INDEFINITE:
                raise CborError("a string's chunk is not a definite string of its type", offset=self.at - 1)
            piece = self.take(self.argument(head & 31))
            if major == 3:
                piece.decode()  # each chunk must be whole text by itself (3.2.3)
            pieces.append(piece)
        return b"".join(pieces)

    def count(self, info: int, each: int) -> int | None:
        """Number of entries of a container, None when a break ends it; refused when the bytes cannot hold them."""
        if info == _INDEFINITE:
            return None
        count = self.argument(info)
        if count * each > len(self.data) - self.at:
            raise CborError(f"a container of {count} entries in {len(self.data) - self.at} bytes", offset=self.at)
        return count

    def array(self, info: int, depth: int) -> list[Any]:
        count = self.count(info, 1)
        if count is not None:
            return [self.item(depth + 1) for _ in range(count)]
        items: list[Any] = []
        while (value := self.item(depth + 1, may_break=True)) is not _BREAK:
            items.append(value)
        return items

    def map(self, info: int, depth: int) -> dict[int | str | bytes, Any]:
        count = self.count(info, 2)
        entries: dict[int | str | bytes, Any] = {}
        while count is None or count > 0:
            start = self.at
            key = self.item(depth + 1, may_break=count is None)
            if key is _BREAK:
                break
            # bool is an int to Python, and 1 == True: one would hide the other.
            if not isinstance(key, int | str | bytes) or isinstance(key, bool):
                raise CborError("a map key that is not an integer, text or bytes", offset=start)
            if key in entries:
                self.breach(DuplicateKeyError(f"the map key {key!r:.40} occurs twice", offset=start))
            value = self.item(depth + 1)
            entries.setdefault(key, value)
            if count is not None:
                count -= 1
        return entries

    def simple(self, info: int, start: int, *, may_break: bool) -> Any:
        if info in _FLOATS:
            return _FLOATS[info].unpack(self.take(1 << (info - 24)))[0]
        if info == _INDEFINITE:
            if may_break:
                return _BREAK
            raise CborError("a break outside a container of indefinite length", offset=start)
        value = self.argument(info)
        if info == 24 and value < 32:
            raise CborError(f"simple value {value} in two bytes", offset=start)
        return {20: False, 21: True, 22: None}.get(value, Simple(value))
