"""Encoders for what enclavedbg.kernel reads: a tiny vmlinux with kallsyms, BTF and ORC tables, made in code."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import accumulate

TEXT = 0xFFFF_FFFF_8100_0000
PERCPU = [("A", "fixed_percpu_data", 0), ("A", "cpu_number", 0x1000)]


def align(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


# --- kallsyms ---------------------------------------------------------------------------------------------------------


@dataclass
class KallsymsWriter:
    """`symbols` are (type, name, address), by address. `order` is "6.1", "6.2" (with the sequence table) or "6.4"."""

    symbols: list[tuple[str, str, int]]
    order: str = "6.4"
    absolute_percpu: bool = False
    tokens: dict[int, str] = field(default_factory=lambda: {0x80: "sys_", 0x81: "do_", 0x82: "kernel"})
    base: int = TEXT

    def names(self) -> list[bytes]:
        texts = []
        for kind, name, _ in self.symbols:
            text = (kind + name).encode()
            for number, token in self.tokens.items():
                text = text.replace(token.encode(), bytes([number]))
            length = len(text)
            head = bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
            texts.append(head + text)
        return texts

    def encode(self) -> bytes:
        names = self.names()
        starts = list(accumulate(map(len, names), initial=0))
        markers = struct.pack(f"<{-(-len(names) // 256)}I", *starts[:-1:256])
        offsets = align(struct.pack(f"<{len(names)}I", *map(self.offset, self.symbols)), 8)
        offsets += struct.pack("<Q", self.base)
        head = align(struct.pack("<I", len(names)), 8) + align(b"".join(names), 8) + align(markers, 8)
        tail = self.token_table()
        sequence = align(bytes(range(1, 4)) * len(names), 8)
        match self.order:
            case "6.1":
                return offsets + head + tail
            case "6.2":
                return offsets + head + sequence + tail
            case "6.4":
                return head + tail + offsets
        raise ValueError(self.order)

    def token_table(self) -> bytes:
        """Token table and index."""
        tokens = [self.tokens.get(i, chr(i) if 0x20 < i < 0x7F else "").encode() for i in range(256)]
        table = b"".join(token + b"\0" for token in tokens)
        return align(table, 8) + struct.pack("<256H", *list(accumulate((len(t) + 1 for t in tokens), initial=0))[:256])

    def offset(self, symbol: tuple[str, str, int]) -> int:
        if not self.absolute_percpu:
            return symbol[2] - self.base
        return symbol[2] if symbol[0] == "A" else (self.base - 1 - symbol[2]) & 0xFFFF_FFFF


def many_symbols(count: int, *, step: int = 0x40) -> list[tuple[str, str, int]]:
    """Functions of all sorts of names; a few lie at one address, a few names are long."""
    symbols = [("T", "startup_64", TEXT), ("T", "_text", TEXT)]
    for i in range(count - 2):
        name = f"do_sys_call_{i:x}" if i % 3 else f"kernel_{'x' * (i % 200)}{i}"
        symbols.append(("t" if i % 2 else "T", name, TEXT + step * (i + 1)))
    return symbols


# --- BTF --------------------------------------------------------------------------------------------------------------


@dataclass
class BtfWriter:
    """Adds types in order; each method returns the new type's id."""

    words: list[int] = field(default_factory=list)
    strings: bytearray = field(default_factory=lambda: bytearray(1))
    count: int = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, value: int, *trailer: int, vlen: int = 0, flag: bool = False) -> int:
        self.words += [self.name(name), flag << 31 | kind << 24 | vlen, value, *trailer]
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, *, encoding: int = 0) -> int:
        return self.add(1, name, size, encoding << 24 | size * 8)

    def pointer(self, target: int) -> int:
        return self.add(2, "", target)

    def array(self, element: int, index: int, count: int) -> int:
        return self.add(3, "", 0, element, index, count)

    def composite(self, kind: int, name: str, size: int, members: list[tuple[str, int, int, int]]) -> int:
        """`members` are (name, type, bit offset, bit size)."""
        flag = any(bits for *_, bits in members)
        words = []
        for member, type_id, place, bits in members:
            words += [self.name(member), type_id, bits << 24 | place]
        return self.add(kind, name, size, *words, vlen=len(members), flag=flag)

    def struct(self, name: str, size: int, *members: tuple[str, int, int] | tuple[str, int, int, int]) -> int:
        return self.composite(4, name, size, [(*m, 0) if len(m) == 3 else m for m in members])

    def union(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        return self.composite(5, name, size, [(*m, 0) for m in members])

    def enum(self, name: str, values: dict[str, int], *, signed: bool = False) -> int:
        words = [word for text, value in values.items() for word in (self.name(text), value & 0xFFFF_FFFF)]
        return self.add(6, name, 4, *words, vlen=len(values), flag=signed)

    def enum64(self, name: str, values: dict[str, int], *, signed: bool = False) -> int:
        words = [
            word
            for text, value in values.items()
            for word in (self.name(text), value & 0xFFFF_FFFF, value >> 32 & 0xFFFF_FFFF)
        ]
        return self.add(19, name, 8, *words, vlen=len(values), flag=signed)

    def modifier(self, kind: int, target: int, name: str = "") -> int:
        return self.add(kind, name, target)

    def prototype(self, returns: int, *parameters: tuple[str, int]) -> int:
        words = [word for name, type_id in parameters for word in (self.name(name), type_id)]
        return self.add(13, "", returns, *words, vlen=len(parameters))

    def section(self, name: str, *variables: tuple[int, int, int]) -> int:
        return self.add(15, name, 0, *[word for v in variables for word in v], vlen=len(variables))

    def encode(self) -> bytes:
        types = struct.pack(f"<{len(self.words)}I", *self.words)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.strings))
        return header + types + bytes(self.strings)


def kernel_types() -> BtfWriter:
    """A few types with everything that BTF has: qualifiers, bit fields, anonymous members, all kinds."""
    btf = BtfWriter()
    integer = btf.integer("int", 4, encoding=1)
    char = btf.integer("char", 1, encoding=1)
    unsigned = btf.integer("unsigned int", 4)
    btf.integer("_Bool", 1, encoding=4)
    btf.add(16, "double", 8)
    text = btf.array(char, unsigned, 16)
    # Forward references are the rule in a kernel: list_head (id 7) refers to the pointer (id 8) after it.
    assert btf.struct("list_head", 16, ("next", 8, 0), ("prev", 8, 64)) == 7
    pointer = btf.pointer(7)
    assert pointer == 8
    anonymous = btf.union("", 8, ("pid", integer, 0), ("tgid", unsigned, 0))
    flags = btf.struct("", 4, ("on_rq", unsigned, 0, 1), ("policy", unsigned, 1, 3))
    volatile = btf.modifier(9, unsigned)
    task = btf.struct(
        "task_struct", 64, ("__state", volatile, 0), ("tasks", 7, 64), ("", anonymous, 192), ("comm", text, 256),
        ("flags", flags, 384),
    )  # fmt: skip
    btf.modifier(8, task, "task_t")
    btf.enum("system_states", {"SYSTEM_BOOTING": 0, "SYSTEM_RUNNING": 4})
    btf.enum("signs", {"MINUS": -1, "PLUS": 1}, signed=True)
    btf.enum64("wide", {"HIGH": 1 << 40, "LOWEST": -(1 << 63)}, signed=True)
    btf.add(7, "opaque", 0)
    constant = btf.modifier(10, char)
    name = btf.pointer(constant)
    open_proto = btf.prototype(integer, ("dfd", integer), ("filename", name), ("", 0))
    btf.add(12, "do_sys_openat2", open_proto)
    btf.pointer(open_proto)
    tagged = btf.modifier(18, task, "rcu")
    btf.pointer(tagged)
    btf.modifier(11, btf.pointer(task))
    btf.add(17, "tag", task, 0xFFFF_FFFF)
    btf.pointer(0)
    btf.array(task, unsigned, 0)
    variable = btf.add(14, "cpu_number", integer, 1)
    btf.section(".data..percpu", (variable, 0x1000, 4))
    return btf


# --- ORC --------------------------------------------------------------------------------------------------------------


def orc_flags(sp: int, bp: int, kind: int, *, signal: bool = False) -> int:
    """The last two bytes of an entry as Linux 6.4 and later lay them out."""
    return sp | bp << 4 | kind << 8 | signal << 11


def orc_tables(entries: list[tuple[int, int, int, int]], *, base: int) -> tuple[bytes, bytes]:
    """(.orc_unwind_ip, .orc_unwind) of (address, sp offset, bp offset, flags) for tables placed at `base`."""
    places = b"".join(struct.pack("<i", address - (base + 4 * i)) for i, (address, *_) in enumerate(entries))
    return places, b"".join(struct.pack("<hhH", *entry) for _, *entry in entries)


# --- ELF --------------------------------------------------------------------------------------------------------------


@dataclass
class ElfWriter:
    """A stripped vmlinux: sections with contents, table and names intact."""

    sections: list[tuple[str, int, int, bytes, int]] = field(default_factory=list)

    def add(self, name: str, address: int, data: bytes = b"", *, flags: int = 2, nobits: int = 0) -> None:
        self.sections.append((name, address, flags, data, nobits))

    def encode(self) -> bytes:
        names = bytearray(b"\0")
        body = bytearray(64)
        headers = [bytes(64)]
        for name, address, flags, data, nobits in [*self.sections, (".shstrtab", 0, 0, b"", 0)]:
            at = len(names)
            names += name.encode() + b"\0"
            contents = bytes(names) if name == ".shstrtab" else data
            kind = 3 if name == ".shstrtab" else 8 if nobits else 1
            body += bytes(-len(body) % 16)
            size = nobits or len(contents)
            headers.append(struct.pack("<IIQQQQIIQQ", at, kind, flags, address, len(body), size, 0, 0, 16, 0))
            body += contents
        body += bytes(-len(body) % 8)
        struct.pack_into(
            "<16sHHIQQQIHHHHHH", body, 0, b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, len(body), 0, 64, 56, 0, 64,
            len(headers), len(headers) - 1,
        )  # fmt: skip
        return bytes(body) + b"".join(headers)


ORC_BASE = TEXT + 0x40_0000
DATA = TEXT + 0x80_0000


FILLERS = 300
TEXT_SIZE = 0x4000


def small_kernel(*, btf: bytes | None = None, orc: bool = True, percpu: bool = True) -> bytes:
    """A vmlinux with code, data, kallsyms, types and unwind tables that belong together."""
    symbols = [
        *(PERCPU if percpu else []),
        ("T", "startup_64", TEXT),
        ("T", "_text", TEXT),
        ("t", "__pfx_start_kernel", TEXT + 0xF0),
        ("T", "start_kernel", TEXT + 0x100),
        ("T", "do_sys_openat2", TEXT + 0x200),
        ("T", "entry_SYSCALL_64", TEXT + 0x300),
        ("T", "entry_SYSCALL_64_after_hwframe", TEXT + 0x310),
        ("T", "asm_exc_page_fault", TEXT + 0x400),
        ("t", "switch_stack", TEXT + 0x500),
        *(("t", f"filler_{i:03}", TEXT + 0x1000 + 16 * i) for i in range(FILLERS)),
        ("D", "init_task", DATA),
        ("D", "jiffies", DATA + 0x100),
        ("B", "_end", DATA + 0x1000),
    ]
    elf = ElfWriter()
    elf.add(".text", TEXT, bytes(TEXT_SIZE), flags=6)
    elf.add(".rodata", TEXT + 0x20_0000, KallsymsWriter(symbols, absolute_percpu=percpu).encode())
    if btf is not None:
        elf.add(".BTF", TEXT + 0x30_0000, btf)
    places, entries = orc_tables(
        [
            (TEXT, 0, 0, orc_flags(0, 0, 1)),
            (TEXT + 0x100, 8, 0, orc_flags(5, 0, 2)),
            (TEXT + 0x101, 16, -16, orc_flags(5, 1, 2)),
            (TEXT + 0x180, 16, -16, orc_flags(4, 1, 2)),
            (TEXT + 0x200, 24, 0, orc_flags(5, 0, 2)),
            (TEXT + 0x300, 0, 0, orc_flags(0, 0, 1)),
            (TEXT + 0x310, 0, 0, orc_flags(5, 0, 3, signal=True)),
            (TEXT + 0x400, 8, 0, orc_flags(5, 0, 4, signal=True)),
            (TEXT + 0x410, 0, 0, orc_flags(5, 0, 3, signal=True)),
            (TEXT + 0x500, 8, 0, orc_flags(5, 0, 2)),
            (TEXT + 0x508, 8, -16, orc_flags(9, 1, 2)),
            (TEXT + 0x600, 0, 0, orc_flags(0, 0, 0)),
        ],
        base=ORC_BASE,
    )
    if orc:
        elf.add(".orc_unwind_ip", ORC_BASE, places)
        elf.add(".orc_unwind", ORC_BASE + len(places), entries)
    elf.add(".data", DATA, bytes(0x1000), flags=3)
    elf.add(".data..percpu", 0, bytes(0x2000), flags=3)
    elf.add(".bss", DATA + 0x1000, flags=3, nobits=0x1000)
    return elf.encode()
