"""BTF: the types of the whole kernel, carried in its own image when built with CONFIG_DEBUG_INFO_BTF.

Source: include/uapi/linux/btf.h and Documentation/bpf/btf.rst of Linux 6.12. The type section is an array of
32-bit words; parsing walks it once and keeps where each record starts, everything else is read when asked for.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from enclavedbg.errors import SymbolError

HEADER = struct.Struct("<HBBIIIII")
MAGIC = 0xEB9F
VERSION = 1
RECORD_WORDS = 3
POINTER_SIZE = 8
MAX_DEPTH = 32
"""Bound on chains of typedefs and on nesting of structs: the kernel stays under ten; a cycle would not end."""
MAX_ANONYMOUS = 256
MAX_NAME = 4096
"""Bound on a name: names may share their ends, so that a few bytes could stand for very many."""


class Kind(IntEnum):
    """BTF_KIND_* of btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Words that follow a record: always, and for each of its vlen items.
TRAILER_WORDS = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
ITEM_WORDS = {
    Kind.STRUCT: 3, Kind.UNION: 3, Kind.ENUM: 2, Kind.FUNC_PROTO: 2, Kind.DATASEC: 3, Kind.ENUM64: 3,
}  # fmt: skip
MODIFIERS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
COMPOSITES = frozenset({Kind.STRUCT, Kind.UNION})
SIZED = frozenset({Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.DATASEC, Kind.FLOAT, Kind.ENUM64})

INT_SIGNED = 1
INT_CHAR = 2
INT_BOOL = 4


@dataclass(frozen=True, slots=True)
class BtfType:
    """One type record. `size` is in bytes for sized kinds and 0 for others; `type_id` is what it refers to, or 0."""

    id: int
    kind: Kind
    name: str
    size: int
    type_id: int
    count: int
    kind_flag: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union; `bit_size` is 0 unless it is a bit field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int

    @property
    def offset(self) -> int:
        """Offset in bytes of the (first) byte that holds the member."""
        return self.bit_offset >> 3


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type_id: int


@dataclass(frozen=True, slots=True)
class Prototype:
    """A function's parameters in order, and the id of what it returns (0: void)."""

    name: str
    parameters: tuple[Parameter, ...]
    return_type: int
    variadic: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a data section; `offset` in the section, in bytes. Kernels list their percpu variables."""

    name: str
    type_id: int
    section: str
    offset: int
    size: int


class Btf:
    """The type graph of a kernel. Type ids count from 1; 0 is void. Unknown names and ids raise SymbolError."""

    def __init__(self, words: array[int], starts: list[int], strings: bytes) -> None:
        self.words = words
        self.starts = starts
        """Index of each type's first word, by id; the entry for id 0 is unused."""
        self.strings = strings

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Btf:
        """Check the header and every record's bounds; raises SymbolError when they do not fit."""
        if len(data) < HEADER.size:
            raise SymbolError(f"BTF of {len(data)} bytes: its header alone has {HEADER.size}")
        magic, version, _, header, type_at, type_size, string_at, string_size = HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise SymbolError(f"BTF magic {magic:#x} version {version}: expected {MAGIC:#x} version {VERSION}")
        type_at, string_at = header + type_at, header + string_at
        if type_at + type_size > len(data) or string_at + string_size > len(data) or type_size % 4:
            raise SymbolError("BTF sections end after the data")
        strings = bytes(data[string_at : string_at + string_size])
        if strings[:1] != b"\0" or strings[-1:] != b"\0":
            raise SymbolError("BTF strings do not begin and end with a zero byte")
        words = array("I")
        words.frombytes(bytes(data[type_at : type_at + type_size]))
        if sys.byteorder == "big":
            words.byteswap()
        return cls(words, _index(words), strings)

    def __len__(self) -> int:
        """Number of types, void included."""
        return len(self.starts)

    def type(self, type_id: int) -> BtfType:
        """The record of a type."""
        if not 0 <= type_id < len(self.starts):
            raise SymbolError(f"BTF type {type_id}: there are {len(self.starts)}")
        if type_id == 0:
            return BtfType(0, Kind.VOID, "void", 0, 0, 0, False)
        at = self.starts[type_id]
        name, info, value = self.words[at : at + RECORD_WORDS]
        kind = Kind(info >> 24 & 31)
        sized = kind in SIZED
        return BtfType(
            type_id,
            kind,
            self.string(name),
            value if sized else 0,
            0 if sized or kind is Kind.FWD else value,
            info & 0xFFFF,
            bool(info >> 31),
        )

    def string(self, offset: int) -> str:
        """A name by its offset; raises SymbolError outside the strings."""
        end = self.strings.find(b"\0", offset, offset + MAX_NAME)
        if not 0 <= offset <= end:
            raise SymbolError(f"BTF name at {offset:#x}: no string of at most {MAX_NAME} bytes in the strings")
        return self.strings[offset:end].decode("utf-8", "replace")

    def find(self, name: str, *kinds: Kind) -> BtfType | None:
        """The first type of that name and of one of these kinds (any, when none is given), or None."""
        for type_id in self._by_name.get(name, ()):
            found = self.type(type_id)
            if not kinds or found.kind in kinds:
                return found
        return None

    def struct(self, name: str) -> BtfType:
        """The struct or union of that name, or the one behind a typedef of that name."""
        found = self.find(name, Kind.STRUCT, Kind.UNION)
        if found is None:
            alias = self.find(name, Kind.TYPEDEF)
            found = self.resolve(alias.id) if alias else None
        if found is None or found.kind not in COMPOSITES:
            raise SymbolError(f"this kernel has no struct {name}")
        return found

    def resolve(self, type_id: int) -> BtfType:
        """The type behind typedefs and qualifiers."""
        for _ in range(MAX_DEPTH):
            found = self.type(type_id)
            if found.kind not in MODIFIERS:
                return found
            type_id = found.type_id
        raise SymbolError(f"BTF type {type_id} refers to itself")

    def members(self, composite: BtfType) -> tuple[Member, ...]:
        """The members of a struct or union, anonymous ones included, in order."""
        if composite.kind not in COMPOSITES:
            raise SymbolError(f"BTF type {composite.id} ({composite.name}) has no members")
        return tuple(
            Member(self.string(name), type_id, place & 0xFFFFFF, place >> 24)
            if composite.kind_flag
            else Member(self.string(name), type_id, place, 0)
            for name, type_id, place in self._items(composite)
        )

    def member(self, struct_name: str, path: str) -> Member:
        """A member by its path ("se.vruntime"), looking into anonymous members; bit_offset from the outer start."""
        here = self.struct(struct_name)
        bits = 0
        found: Member | None = None
        for part in path.split("."):
            if found is not None:
                here = self.resolve(found.type_id)
            found = self._member_of(here, part, set())
            if found is None:
                raise SymbolError(f"struct {struct_name} of this kernel has no member {path}")
            bits += found.bit_offset
        assert found is not None
        return Member(found.name, found.type_id, bits, found.bit_size)

    def offset(self, struct_name: str, *paths: str) -> int:
        """Offset in bytes of the first of these members that the kernel has: newest name first."""
        return self.first_member(struct_name, *paths).offset

    def first_member(self, struct_name: str, *paths: str) -> Member:
        """The first of these members that the kernel has (members are renamed between versions)."""
        for path in paths[:-1]:
            try:
                return self.member(struct_name, path)
            except SymbolError:
                continue
        return self.member(struct_name, paths[-1])

    def size(self, type_id: int) -> int:
        """Size in bytes of a type; 0 for void and functions."""
        elements = 1
        for _ in range(MAX_DEPTH):
            found = self.resolve(type_id)
            if found.kind is Kind.PTR:
                return elements * POINTER_SIZE
            if found.kind is not Kind.ARRAY:
                return elements * found.size
            type_id, _, count = self._trailer(found)
            elements *= count
        raise SymbolError(f"BTF type {type_id} is an array of itself")

    def element(self, type_id: int) -> tuple[int, int]:
        """(element type id, number of elements) of an array type."""
        found = self.resolve(type_id)
        if found.kind is not Kind.ARRAY:
            raise SymbolError(f"BTF type {type_id} is no array")
        element, _, count = self._trailer(found)
        return element, count

    def pointer_to(self, type_id: int) -> int | None:
        """The id of the pointer to a type, or None when the kernel has none."""
        for pointer in range(1, len(self.starts)):
            at = self.starts[pointer]
            if self.words[at + 1] >> 24 & 31 == Kind.PTR and self.words[at + 2] == type_id:
                return pointer
        return None

    def enumerators(self, name: str) -> dict[str, int]:
        """The constants of a named enum."""
        found = self.find(name, Kind.ENUM, Kind.ENUM64)
        if found is None:
            raise SymbolError(f"this kernel has no enum {name}")
        return dict(self._enumerators(found))

    def prototype(self, function: str) -> Prototype | None:
        """What a function takes and returns, or None when BTF does not list it."""
        found = self.find(function, Kind.FUNC)
        if found is None:
            return None
        proto = self.type(found.type_id)
        if proto.kind is not Kind.FUNC_PROTO:
            raise SymbolError(f"BTF type {proto.id} is not the prototype of {function}")
        items = [(self.string(name), type_id) for name, type_id in self._items(proto)]
        variadic = bool(items) and items[-1] == ("", 0)
        parameters = tuple(Parameter(*item) for item in (items[:-1] if variadic else items))
        return Prototype(function, parameters, proto.type_id, variadic)

    def variables(self) -> Iterator[Variable]:
        """The variables that data sections list."""
        for type_id in range(1, len(self.starts)):
            if self.words[self.starts[type_id] + 1] >> 24 & 31 != Kind.DATASEC:
                continue
            section = self.type(type_id)
            for variable_id, offset, size in self._items(section):
                variable = self.type(variable_id)
                if variable.kind is not Kind.VAR:
                    raise SymbolError(f"BTF type {variable_id} in {section.name} is no variable")
                yield Variable(variable.name, variable.type_id, section.name, offset, size)

    def describe(self, type_id: int) -> str:
        """A type as C writes it, without a declared name: "struct file *", "char [16]"."""
        return self._describe(type_id, MAX_DEPTH)

    def _describe(self, type_id: int, depth: int) -> str:
        suffix = ""
        for left in range(depth, 0, -1):
            found = self.type(type_id)
            match found.kind:
                case Kind.PTR:
                    suffix = f"*{suffix}"
                case Kind.ARRAY:
                    type_id, _, count = self._trailer(found)
                    suffix = f"{suffix}[{count}]"
                    continue
                case Kind.CONST | Kind.VOLATILE | Kind.RESTRICT:
                    pointee = self.type(found.type_id).kind is Kind.PTR
                    word = found.kind.name.lower()
                    if not pointee:
                        return f"{word} {self._describe(found.type_id, left - 1)} {suffix}".rstrip()
                    suffix = f" {word} {suffix}"
                case Kind.TYPE_TAG:
                    pass
                case Kind.STRUCT | Kind.UNION | Kind.ENUM | Kind.ENUM64 | Kind.FWD:
                    return f"{_keyword(found)} {found.name or '{...}'} {suffix}".rstrip()
                case Kind.FUNC_PROTO:
                    return f"{self._describe(found.type_id, left - 1)} ({suffix})(...)"
                case _:
                    return f"{found.name} {suffix}".rstrip()
            type_id = found.type_id
        raise SymbolError(f"BTF type {type_id} refers to itself")

    @cached_property
    def enums_are_signed(self) -> bool:
        """Whether the encoder is one from before 6.0: none of its enums says that it is signed, all of them are."""
        heads = (self.words[at + 1] for at in self.starts[1:])
        return not any(info >> 31 for info in heads if info >> 24 & 31 in (Kind.ENUM, Kind.ENUM64))

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        by_offset: dict[int, list[int]] = {}
        words = self.words
        for type_id in range(1, len(self.starts)):
            offset = words[self.starts[type_id]]
            if offset:
                by_offset.setdefault(offset, []).append(type_id)
        names: dict[str, list[int]] = {}
        for offset, ids in by_offset.items():
            names.setdefault(self.string(offset), []).extend(ids)
        return names

    def _member_of(self, composite: BtfType, name: str, seen: set[int]) -> Member | None:
        if len(seen) >= MAX_ANONYMOUS:
            raise SymbolError(f"BTF type {composite.id} has too many anonymous members")
        seen.add(composite.id)
        anonymous = []
        for member in self.members(composite):
            if member.name == name:
                return member
            if not member.name:
                anonymous.append(member)
        for outer in anonymous:
            inner = self.resolve(outer.type_id)
            if inner.kind in COMPOSITES and inner.id not in seen:
                found = self._member_of(inner, name, seen)
                if found is not None:
                    return Member(name, found.type_id, outer.bit_offset + found.bit_offset, found.bit_size)
        return None

    def _items(self, record: BtfType) -> Iterator[tuple[int, ...]]:
        width = ITEM_WORDS[record.kind]
        at = self.starts[record.id] + RECORD_WORDS
        for item in range(at, at + width * record.count, width):
            yield tuple(self.words[item : item + width])

    def _trailer(self, record: BtfType) -> tuple[int, ...]:
        at = self.starts[record.id] + RECORD_WORDS
        return tuple(self.words[at : at + TRAILER_WORDS[record.kind]])

    def _enumerators(self, record: BtfType) -> Iterator[tuple[str, int]]:
        for name, *value in self._items(record):
            number = value[0] if len(value) == 1 else value[0] | value[1] << 32
            bits = 32 * len(value)
            if number >> bits - 1 and (record.kind_flag or self.enums_are_signed):
                number -= 1 << bits
            yield self.string(name), number


def _index(words: array[int]) -> list[int]:
    """Where each record starts; raises SymbolError on a kind without known length, or when one is cut off."""
    trailer = [TRAILER_WORDS.get(Kind(k), 0) + RECORD_WORDS if k < len(Kind) else 0 for k in range(32)]
    item = [ITEM_WORDS.get(Kind(k), 0) if k < len(Kind) else 0 for k in range(32)]
    trailer[Kind.VOID] = 0
    starts = [0]
    add = starts.append
    at, end = 0, len(words)
    while at < end:
        add(at)
        info = words[at + 1] if at + 1 < end else 0
        kind = info >> 24 & 31
        length = trailer[kind]
        if not length:
            raise SymbolError(f"BTF type {len(starts) - 1} has kind {kind}: expected 1 to {Kind.ENUM64}")
        at += length + item[kind] * (info & 0xFFFF)
    if at != end:
        raise SymbolError(f"BTF type {len(starts) - 1} ends after the type section")
    return starts


def _keyword(record: BtfType) -> str:
    if record.kind is Kind.FWD:
        return "union" if record.kind_flag else "struct"
    return "enum" if record.kind is Kind.ENUM64 else record.kind.name.lower()
