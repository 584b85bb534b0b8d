"""BTF as DWARF, so that a stock gdb or lldb knows the kernel's types: `ptype struct task_struct`.

Source: DWARF 4, sections 4, 5 and 7.5. One compilation unit without code holds every type; `.debug_str` is BTF's own
string section, so a name is just its offset. A first pass computes where each entry will lie, so that references can
be written at once; every entry's size follows from its BTF record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.btf import INT_BOOL, INT_CHAR, INT_SIGNED, MAX_DEPTH, POINTER_SIZE, RECORD_WORDS, Btf, Kind
from enclavedbg.kernel.debugframe import uleb

UNIT_HEADER = struct.Struct("<IHIB")
DWARF_VERSION = 4
DW_LANG_C99 = 0xC
DW_OP_ADDR = 3
DW_OP_CONST8U = 0xE
NO_ADDRESS = 1 << 63
MAX_INFO = 256 << 20
"""Bound on `.debug_info`: fifty times what a distribution kernel needs."""


class Tag(IntEnum):
    """DW_TAG_*."""

    ARRAY = 0x01
    ENUMERATION = 0x04
    PARAMETER = 0x05
    MEMBER = 0x0D
    POINTER = 0x0F
    UNIT = 0x11
    STRUCT = 0x13
    SUBROUTINE = 0x15
    TYPEDEF = 0x16
    UNION = 0x17
    VARIADIC = 0x18
    SUBRANGE = 0x21
    BASE = 0x24
    CONST = 0x26
    ENUMERATOR = 0x28
    VARIABLE = 0x34
    VOLATILE = 0x35
    RESTRICT = 0x37


NAME = (0x03, 0x0E)  # DW_AT_name, DW_FORM_strp
TYPE = (0x49, 0x13)  # DW_AT_type, DW_FORM_ref4
SIZE = (0x0B, 0x06)  # DW_AT_byte_size, DW_FORM_data4
SIZE1 = (0x0B, 0x0B)  # DW_FORM_data1
ENCODING = (0x3E, 0x0B)
PLACE = (0x38, 0x06)  # DW_AT_data_member_location, DW_FORM_data4
BIT_PLACE = (0x6B, 0x06)  # DW_AT_data_bit_offset
BIT_SIZE = (0x0D, 0x0B)
COUNT = (0x37, 0x06)
DECLARATION = (0x3C, 0x19)  # DW_FORM_flag_present
PROTOTYPED = (0x27, 0x19)
EXTERNAL = (0x3F, 0x19)
LOCATION = (0x02, 0x18)  # DW_FORM_exprloc
VALUE4 = (0x1C, 0x06)
VALUE8 = (0x1C, 0x07)
LANGUAGE = (0x13, 0x0B)


class Shape(IntEnum):
    """The abbreviations: one number for each combination of tag and attributes."""

    UNIT = 1
    BASE = 2
    POINTER = 3
    POINTER_VOID = 4
    ARRAY = 5
    SUBRANGE = 6
    SUBRANGE_OPEN = 7
    STRUCT = 8
    STRUCT_ANONYMOUS = 9
    UNION = 10
    UNION_ANONYMOUS = 11
    MEMBER = 12
    BIT_FIELD = 13
    ENUM = 14
    ENUM_ANONYMOUS = 15
    ENUMERATOR = 16
    ENUMERATOR8 = 17
    STRUCT_DECLARED = 18
    UNION_DECLARED = 19
    TYPEDEF = 20
    TYPEDEF_VOID = 21
    CONST = 22
    CONST_VOID = 23
    VOLATILE = 24
    VOLATILE_VOID = 25
    RESTRICT = 26
    SUBROUTINE = 27
    SUBROUTINE_VOID = 28
    PARAMETER = 29
    VARIADIC = 30
    VARIABLE = 31


SHAPES: dict[Shape, tuple[Tag, bool, tuple[tuple[int, int], ...]]] = {
    Shape.UNIT: (Tag.UNIT, True, (NAME, LANGUAGE)),
    Shape.BASE: (Tag.BASE, False, (NAME, SIZE1, ENCODING)),
    Shape.POINTER: (Tag.POINTER, False, (SIZE1, TYPE)),
    Shape.POINTER_VOID: (Tag.POINTER, False, (SIZE1,)),
    Shape.ARRAY: (Tag.ARRAY, True, (TYPE,)),
    Shape.SUBRANGE: (Tag.SUBRANGE, False, (COUNT,)),
    Shape.SUBRANGE_OPEN: (Tag.SUBRANGE, False, ()),
    Shape.STRUCT: (Tag.STRUCT, True, (NAME, SIZE)),
    Shape.STRUCT_ANONYMOUS: (Tag.STRUCT, True, (SIZE,)),
    Shape.UNION: (Tag.UNION, True, (NAME, SIZE)),
    Shape.UNION_ANONYMOUS: (Tag.UNION, True, (SIZE,)),
    Shape.MEMBER: (Tag.MEMBER, False, (NAME, TYPE, PLACE)),
    Shape.BIT_FIELD: (Tag.MEMBER, False, (NAME, TYPE, BIT_PLACE, BIT_SIZE)),
    Shape.ENUM: (Tag.ENUMERATION, True, (NAME, SIZE1)),
    Shape.ENUM_ANONYMOUS: (Tag.ENUMERATION, True, (SIZE1,)),
    Shape.ENUMERATOR: (Tag.ENUMERATOR, False, (NAME, VALUE4)),
    Shape.ENUMERATOR8: (Tag.ENUMERATOR, False, (NAME, VALUE8)),
    Shape.STRUCT_DECLARED: (Tag.STRUCT, False, (NAME, DECLARATION)),
    Shape.UNION_DECLARED: (Tag.UNION, False, (NAME, DECLARATION)),
    Shape.TYPEDEF: (Tag.TYPEDEF, False, (NAME, TYPE)),
    Shape.TYPEDEF_VOID: (Tag.TYPEDEF, False, (NAME,)),
    Shape.CONST: (Tag.CONST, False, (TYPE,)),
    Shape.CONST_VOID: (Tag.CONST, False, ()),
    Shape.VOLATILE: (Tag.VOLATILE, False, (TYPE,)),
    Shape.VOLATILE_VOID: (Tag.VOLATILE, False, ()),
    Shape.RESTRICT: (Tag.RESTRICT, False, (TYPE,)),
    Shape.SUBROUTINE: (Tag.SUBROUTINE, True, (PROTOTYPED, TYPE)),
    Shape.SUBROUTINE_VOID: (Tag.SUBROUTINE, True, (PROTOTYPED,)),
    Shape.PARAMETER: (Tag.PARAMETER, False, (TYPE,)),
    Shape.VARIADIC: (Tag.VARIADIC, False, ()),
    Shape.VARIABLE: (Tag.VARIABLE, False, (NAME, TYPE, EXTERNAL, LOCATION)),
}

REFERRING = {
    Kind.PTR: (Shape.POINTER, Shape.POINTER_VOID),
    Kind.TYPEDEF: (Shape.TYPEDEF, Shape.TYPEDEF_VOID),
    Kind.CONST: (Shape.CONST, Shape.CONST_VOID),
    Kind.VOLATILE: (Shape.VOLATILE, Shape.VOLATILE_VOID),
    Kind.RESTRICT: (Shape.RESTRICT, Shape.RESTRICT),
}
"""Kinds that only refer to another type: the abbreviation with a target, and the one for void."""

DW_ATE_BOOLEAN, DW_ATE_FLOAT, DW_ATE_SIGNED, DW_ATE_SIGNED_CHAR, DW_ATE_UNSIGNED, DW_ATE_UNSIGNED_CHAR = (
    2,
    4,
    5,
    6,
    7,
    8,
)


@dataclass(frozen=True, slots=True)
class TypedSymbol:
    """A variable to describe: where it lies, and its BTF type. A `fixed` address does not move with the kernel."""

    name: str
    type_id: int
    address: int
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class DebugSections:
    """Contents of `.debug_info`, `.debug_aranges`, `.debug_abbrev` and `.debug_str`."""

    info: bytes
    ranges: bytes
    abbreviations: bytes
    strings: bytes


def debug_types(btf: Btf, variables: Iterable[TypedSymbol] = ()) -> DebugSections:
    """Describe every type of a kernel, and some variables; raises SymbolError when BTF contradicts itself."""
    return _Unit(btf).build(list(variables))


class _Unit:
    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._words = btf.words
        self._starts = btf.starts
        self._kinds = bytes([0, *(btf.words[at + 1] >> 24 & 31 for at in btf.starts[1:])])
        # A type that gets no entry of its own stands for the one it refers to: tags, until something else.
        self._target = self._targets()

    def build(self, variables: list[TypedSymbol]) -> DebugSections:
        strings = bytearray(self._btf.strings)
        unit_name = _append(strings, "types of the kernel, from its BTF")
        head = struct.pack("<BIB", Shape.UNIT, unit_name, DW_LANG_C99)
        self._place(UNIT_HEADER.size + len(head))
        pieces = [head, *self._entries(), *(self._variable(v, strings) for v in variables), b"\0"]
        body = b"".join(pieces)
        unit = UNIT_HEADER.pack(len(body) + UNIT_HEADER.size - 4, DWARF_VERSION, 0, POINTER_SIZE)
        return DebugSections(unit + body, _address_ranges(), _abbreviations(), bytes(strings))

    def _targets(self) -> list[int]:
        target = list(range(len(self._starts)))
        for type_id, kind in enumerate(self._kinds):
            if kind in (Kind.TYPE_TAG, Kind.DECL_TAG, Kind.FUNC, Kind.VAR, Kind.DATASEC):
                target[type_id] = 0
            if kind != Kind.TYPE_TAG:
                continue
            there = type_id
            for _ in range(MAX_DEPTH):
                there = self._words[self._starts[there] + 2]
                if there >= len(self._starts):
                    raise SymbolError(f"BTF type {type_id} refers to {there}, of {len(self._starts)}")
                if self._kinds[there] != Kind.TYPE_TAG:
                    target[type_id] = there
                    break
        return target

    def _place(self, at: int) -> None:
        """Compute where every type's entry lies: offset from the unit's start, 0 for those without one."""
        places = [0]
        for type_id in range(1, len(self._starts)):
            size = self._size(type_id)
            places.append(at if size else 0)
            at += size
        if at > MAX_INFO:
            raise SymbolError(f"BTF types would make {at >> 20} MiB of debug information")
        self._at = [places[target] for target in self._target]

    def _size(self, type_id: int) -> int:
        at = self._starts[type_id]
        name, info, value = self._words[at : at + RECORD_WORDS]
        items = info & 0xFFFF
        match self._kinds[type_id]:
            case Kind.PTR:
                return 6 if self._target_of(value) else 2
            case Kind.STRUCT | Kind.UNION:
                fields = sum(map(0xFFFFFF.__lt__, self._words[at + 5 : at + 3 + 3 * items : 3])) if info >> 31 else 0
                return (9 if name else 5) + 13 * items + fields + 1
            case Kind.TYPEDEF:
                return 9 if self._target_of(value) else 5
            case Kind.CONST | Kind.VOLATILE | Kind.RESTRICT:
                return 5 if self._target_of(value) or self._kinds[type_id] == Kind.RESTRICT else 1
            case Kind.INT | Kind.FLOAT:
                return 7
            case Kind.ARRAY:
                return 5 + (5 if self._words[at + 5] else 1) + 1
            case Kind.ENUM | Kind.ENUM64:
                return (6 if name else 2) + items * (13 if self._wide(at, info) else 9) + 1
            case Kind.FWD:
                return 5
            case Kind.FUNC_PROTO:
                types = self._words[at + 4 : at + 3 + 2 * items : 2]
                unnamed = sum(1 for t in types if not self._target_of(t))
                return (5 if self._target_of(value) else 1) + 5 * items - 4 * unnamed + 1
            case _:
                return 0

    def _target_of(self, type_id: int) -> int:
        try:
            return self._target[type_id]
        except IndexError:
            raise SymbolError(f"BTF type {type_id} is referred to, of {len(self._starts)}") from None

    def _entries(self) -> Iterable[bytes]:
        for type_id in range(1, len(self._starts)):
            at = self._starts[type_id]
            name, info, value = self._words[at : at + RECORD_WORDS]
            kind = self._kinds[type_id]
            if kind in (Kind.STRUCT, Kind.UNION):
                yield self._composite(at, name, info, value)
            elif kind in REFERRING:
                yield self._reference(Kind(kind), name, value)
            elif kind == Kind.FUNC_PROTO:
                yield self._prototype(at, info & 0xFFFF, value)
            elif kind in (Kind.ENUM, Kind.ENUM64):
                yield self._enumeration(at, name, info, value)
            elif kind == Kind.ARRAY:
                yield self._array(at)
            elif kind == Kind.INT:
                encoding = _encoding(self._words[at + 3] >> 24 & 15, value)
                yield struct.pack("<BIBB", Shape.BASE, name, value & 0xFF, encoding)
            elif kind == Kind.FLOAT:
                yield struct.pack("<BIBB", Shape.BASE, name, value & 0xFF, DW_ATE_FLOAT)
            elif kind == Kind.FWD:
                yield struct.pack("<BI", Shape.UNION_DECLARED if info >> 31 else Shape.STRUCT_DECLARED, name)

    def _composite(self, at: int, name: int, info: int, size: int) -> bytes:
        is_union = info >> 24 & 31 == Kind.UNION
        if name:
            head = struct.pack("<BII", Shape.UNION if is_union else Shape.STRUCT, name, size)
        else:
            head = struct.pack("<BI", Shape.UNION_ANONYMOUS if is_union else Shape.STRUCT_ANONYMOUS, size)
        items, end = info & 0xFFFF, at + RECORD_WORDS + 3 * (info & 0xFFFF)
        names, types, places = (self._words[at + first : end : 3] for first in (3, 4, 5))
        references = self._references(types)
        if not (info >> 31 and any(map(0xFFFFFF.__lt__, places))):
            fields = [int(Shape.MEMBER)] * (4 * items)
            fields[1::4], fields[2::4], fields[3::4] = names, references, [place >> 3 for place in places]
            return head + struct.pack("<" + "BIII" * items, *fields) + b"\0"
        members = [
            struct.pack("<BIIIB", Shape.BIT_FIELD, member, reference, place & 0xFFFFFF, place >> 24)
            if place >> 24
            else struct.pack("<BIII", Shape.MEMBER, member, reference, place >> 3)
            for member, reference, place in zip(names, references, places, strict=True)
        ]
        return head + b"".join(members) + b"\0"

    def _references(self, types: Iterable[int]) -> list[int]:
        try:
            return [self._at[type_id] for type_id in types]
        except IndexError:
            raise SymbolError("BTF has a member of a type that it does not have") from None

    def _reference(self, kind: Kind, name: int, value: int) -> bytes:
        shape, void = REFERRING[kind]
        match kind:
            case Kind.PTR:
                body = bytes([POINTER_SIZE])
            case Kind.TYPEDEF:
                body = struct.pack("<I", name)
            case _:
                body = b""
        if self._target_of(value) or kind is Kind.RESTRICT:
            return bytes([shape]) + body + struct.pack("<I", self._at[value])
        return bytes([void]) + body

    def _prototype(self, at: int, items: int, value: int) -> bytes:
        out = [
            struct.pack("<BI", Shape.SUBROUTINE, self._at[value])
            if self._target_of(value)
            else bytes([Shape.SUBROUTINE_VOID])
        ]
        for type_id in self._words[at + 4 : at + 3 + 2 * items : 2]:
            known = self._target_of(type_id)
            out.append(struct.pack("<BI", Shape.PARAMETER, self._at[type_id]) if known else bytes([Shape.VARIADIC]))
        out.append(b"\0")
        return b"".join(out)

    def _wide(self, at: int, info: int) -> bool:
        """Whether constants need eight bytes: DWARF reads four as unsigned."""
        if info >> 24 & 31 == Kind.ENUM64:
            return True
        values = self._words[at + 4 : at + 3 + 2 * (info & 0xFFFF) : 2]
        return (bool(info >> 31) or self._btf.enums_are_signed) and any(map(0x7FFFFFFF.__lt__, values))

    def _enumeration(self, at: int, name: int, info: int, size: int) -> bytes:
        head = struct.pack("<BI", Shape.ENUM, name) if name else bytes([Shape.ENUM_ANONYMOUS])
        items, words, end = info & 0xFFFF, self._words, at + RECORD_WORDS
        out = [head, bytes([size & 0xFF])]
        if info >> 24 & 31 == Kind.ENUM64:
            for item in range(end, end + 3 * items, 3):
                out.append(struct.pack("<BIII", Shape.ENUMERATOR8, *words[item : item + 3]))
        elif self._wide(at, info):
            for item in range(end, end + 2 * items, 2):
                value = words[item + 1] - (words[item + 1] >> 31 << 32)
                out.append(struct.pack("<BIq", Shape.ENUMERATOR8, words[item], value))
        else:
            fields = [int(Shape.ENUMERATOR)] * (3 * items)
            fields[1::3], fields[2::3] = words[end : end + 2 * items : 2], words[end + 1 : end + 2 * items : 2]
            out.append(struct.pack("<" + "BII" * items, *fields))
        out.append(b"\0")
        return b"".join(out)

    def _array(self, at: int) -> bytes:
        element, _, items = self._words[at + 3 : at + 6]
        (reference,) = self._references([element])
        subrange = struct.pack("<BI", Shape.SUBRANGE, items) if items else bytes([Shape.SUBRANGE_OPEN])
        return struct.pack("<BI", Shape.ARRAY, reference) + subrange + b"\0"

    def _variable(self, variable: TypedSymbol, strings: bytearray) -> bytes:
        operation = DW_OP_CONST8U if variable.fixed else DW_OP_ADDR
        location = struct.pack("<BQ", operation, variable.address)
        (reference,) = self._references([variable.type_id])
        if not reference:
            return b""
        name = _append(strings, variable.name)
        return struct.pack("<BIIB", Shape.VARIABLE, name, reference, len(location)) + location


def _append(strings: bytearray, name: str) -> int:
    at = len(strings)
    strings += name.encode() + b"\0"
    return at


def _address_ranges() -> bytes:
    """`.debug_aranges` (DWARF 4, 6.1.2) that gives the unit one byte at an address no processor can use.

    Without any range gdb takes the addresses of the unit's variables for code of the unit, and complains later.
    """
    body = struct.pack("<HIBBIQQQQ", 2, 0, POINTER_SIZE, 0, 0, NO_ADDRESS, 1, 0, 0)
    return struct.pack("<I", len(body)) + body


def _encoding(flags: int, size: int) -> int:
    if flags & INT_BOOL:
        return DW_ATE_BOOLEAN
    character = size == 1 or flags & INT_CHAR
    if flags & INT_SIGNED:
        return DW_ATE_SIGNED_CHAR if character else DW_ATE_SIGNED
    return DW_ATE_UNSIGNED_CHAR if character else DW_ATE_UNSIGNED


def _abbreviations() -> bytes:
    out = bytearray()
    for shape, (tag, children, attributes) in SHAPES.items():
        out += uleb(shape) + uleb(tag) + bytes([children])
        for attribute, form in attributes:
            out += uleb(attribute) + uleb(form)
        out += b"\0\0"
    return bytes(out) + b"\0"
