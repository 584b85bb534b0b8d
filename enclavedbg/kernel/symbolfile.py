"""A symbol file for the running kernel, made from its image alone: what a debugger loads in place of a vmlinux.

An ELF file with the kernel's own section addresses and no code: names from kallsyms, call frame information from ORC,
types from BTF. Source: ELF-64 Object File Format 1.5. Addresses are as linked; the debugger adds the slide.
"""

from __future__ import annotations

import logging
import struct
from bisect import bisect_left
from dataclasses import dataclass

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.btf import Btf, Kind
from enclavedbg.kernel.debugframe import debug_frame
from enclavedbg.kernel.dwarf import TypedSymbol, debug_types
from enclavedbg.kernel.image import EHDR, EM_X86_64, KERNEL_BASE, SHDR, SHF_EXECINSTR, SHT_NOBITS, SHT_PROGBITS
from enclavedbg.kernel.orc import OrcTable
from enclavedbg.kernel.symbols import KernelSymbols

log = logging.getLogger(__name__)

SYM = struct.Struct("<IBBHQQ")
SHT_SYMTAB, SHT_STRTAB = 2, 3
SHN_ABS = 0xFFF1
ET_EXEC = 2
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2

PADDING_PREFIX = "__pfx_"
"""Names of the padding before functions: never run, one for each function."""

SYSTEM_CALL_ENTRIES = ("entry_SYSCALL_64", "entry_SYSCALL_compat", "entry_SYSENTER_compat")
"""Where user space comes in by an instruction of its own, not interrupted."""

GLOBALS = {
    "boot_cpu_data": "struct cpuinfo_x86",
    "const_pcpu_hot": "struct pcpu_hot",
    "current_task": "struct task_struct *",
    "init_cred": "struct cred",
    "init_mm": "struct mm_struct",
    "init_net": "struct net",
    "init_nsproxy": "struct nsproxy",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_user_ns": "struct user_namespace",
    "init_uts_ns": "struct uts_namespace",
    "iomem_resource": "struct resource",
    "ioport_resource": "struct resource",
    "jiffies": "long unsigned int",
    "jiffies_64": "u64",
    "memblock": "struct memblock",
    "modules": "struct list_head",
    "net_namespace_list": "struct list_head",
    "pcpu_hot": "struct pcpu_hot",
    "prb": "struct printk_ringbuffer *",
    "runqueues": "struct rq",
    "saved_command_line": "char *",
    "super_blocks": "struct list_head",
    "system_state": "enum system_states",
    "tainted_mask": "long unsigned int",
    "tick_cpu_device": "struct tick_device",
    "vmap_area_list": "struct list_head",
}
"""Types of well-known variables: BTF lists those of percpu variables only. Those a kernel lacks are left out."""


@dataclass(frozen=True, slots=True)
class _OutSection:
    name: str
    kind: int
    flags: int = 0
    address: int = 0
    contents: bytes = b""
    size: int = 0
    link: int = 0
    info: int = 0
    alignment: int = 1
    entry_size: int = 0


def build(elf: bytes) -> bytes:
    """The symbol file for an unpacked kernel image; raises SymbolError when the image has no kallsyms.

    A kernel without ORC or BTF gets a file without unwind information or types.
    """
    symbols = KernelSymbols.from_vmlinux(elf)
    image = symbols.image
    mapped = [
        _OutSection(s.name, SHT_NOBITS, s.flags, s.address, size=s.size, alignment=s.alignment)
        for s in image.sections
        if s.allocated and s.address >= KERNEL_BASE and s.size
    ]
    tables = _symbol_sections(symbols, mapped)
    return _elf([*mapped, *tables, *_frame_section(symbols), *_type_sections(symbols)])


def _symbol_sections(symbols: KernelSymbols, mapped: list[_OutSection]) -> list[_OutSection]:
    """`.symtab` and `.strtab`."""
    table = symbols.table
    sizes, indexes = _extents(symbols, mapped)
    executable = {i for i, section in enumerate(mapped, 1) if section.flags & SHF_EXECINSTR}
    bindings = {}
    for letter in {entry[0] for entry in table.entries}:
        bindings[letter] = (STB_WEAK if letter in "wWvV" else STB_GLOBAL if letter.isupper() else STB_LOCAL) << 4
    local: list[bytes] = []
    other: list[bytes] = []
    names = [""]
    at = 1
    pack = SYM.pack
    for entry, address, size, index in zip(table.entries, table.addresses, sizes, indexes, strict=True):
        if entry.startswith(PADDING_PREFIX, 1):
            continue
        binding = bindings[entry[0]]
        kind = STT_FUNC if index in executable else STT_OBJECT
        (other if binding else local).append(pack(at, binding | kind, 0, index, address, size))
        names.append(entry[1:])
        at += len(entry)  # the type letter's place is taken by the zero byte
    number = len(mapped) + 1
    return [
        _OutSection(
            ".symtab", SHT_SYMTAB, contents=b"".join([bytes(SYM.size), *local, *other]), link=number + 1,
            info=len(local) + 1, alignment=8, entry_size=SYM.size,
        ),
        _OutSection(".strtab", SHT_STRTAB, contents="\0".join([*names, ""]).encode("latin-1")),
    ]  # fmt: skip


def _extents(symbols: KernelSymbols, mapped: list[_OutSection]) -> tuple[list[int], list[int]]:
    """For every symbol its size and section index.

    Only the first symbol of an address gets a size: gdb prefers one with a size, and the first is the name that the
    kernel itself shows. A symbol outside the mapped sections is absolute.
    """
    addresses = symbols.table.addresses
    count = len(addresses)
    sizes = [0] * count
    indexes = [SHN_ABS] * count
    for number, section in enumerate(mapped, 1):
        start, end = section.address, section.address + section.size
        low, high = bisect_left(addresses, start), bisect_left(addresses, end)
        indexes[low:high] = [number] * (high - low)
        after = end
        for at in range(high - 1, low - 1, -1):
            address = addresses[at]
            if at == low or addresses[at - 1] != address:
                sizes[at] = after - address
                after = address
    return sizes, indexes


def _frame_section(symbols: KernelSymbols) -> list[_OutSection]:
    try:
        table = OrcTable.from_image(symbols.image)
    except SymbolError as error:
        log.info("no unwind information in the symbol file: %s", error)
        return []
    contents = debug_frame(table, callers=[_span(symbols, name) for name in SYSTEM_CALL_ENTRIES])
    return [_OutSection(".debug_frame", SHT_PROGBITS, contents=contents, alignment=8)]


def _span(symbols: KernelSymbols, name: str) -> tuple[int, int]:
    """(start, end) of assembly code whose inner labels are symbols that begin with its name; empty when absent."""
    start = end = symbols.address(name) or 0
    while start and (found := symbols.symbol_after(end)) is not None:
        end = found.address
        if not found.name.startswith(name):
            break
    return start, end


def _type_sections(symbols: KernelSymbols) -> list[_OutSection]:
    contents = symbols.image.contents(".BTF")
    if contents is None:
        log.info("no types in the symbol file: the kernel was built without CONFIG_DEBUG_INFO_BTF")
        return []
    try:
        btf = Btf.parse(contents)
        debug = debug_types(btf, _variables(symbols, btf))
    except SymbolError as error:
        log.info("no types in the symbol file: %s", error)
        return []
    return [
        _OutSection(".debug_info", SHT_PROGBITS, contents=debug.info),
        _OutSection(".debug_aranges", SHT_PROGBITS, contents=debug.ranges),
        _OutSection(".debug_abbrev", SHT_PROGBITS, contents=debug.abbreviations),
        _OutSection(".debug_str", SHT_PROGBITS, 0x30, contents=debug.strings, entry_size=1),
    ]


def _variables(symbols: KernelSymbols, btf: Btf) -> list[TypedSymbol]:
    """Variables whose type is known: the percpu ones that BTF lists, and those of GLOBALS."""
    found = {v.name: TypedSymbol(v.name, v.type_id, v.offset, fixed=True) for v in btf.variables()}
    for name, declared in GLOBALS.items():
        address = symbols.address(name)
        type_id = _type_named(btf, declared)
        if name not in found and address is not None and address >= KERNEL_BASE and type_id is not None:
            found[name] = TypedSymbol(name, type_id, address)
    return list(found.values())


def _type_named(btf: Btf, declared: str) -> int | None:
    """The id of "struct x", "enum x", a typedef or base type, or a pointer to one of them."""
    base = declared.removesuffix(" *")
    keyword, _, tag = base.partition(" ")
    match keyword:
        case "struct" if tag:
            found = btf.find(tag, Kind.STRUCT)
        case "enum" if tag:
            found = btf.find(tag, Kind.ENUM, Kind.ENUM64)
        case _:
            found = btf.find(base, Kind.TYPEDEF, Kind.INT)
    if found is None or base == declared:
        return found.id if found else None
    return btf.pointer_to(found.id)


def _elf(sections: list[_OutSection]) -> bytes:
    """Lay the sections out behind an ELF header, the section table last."""
    names = bytearray(b"\0")
    name_at = []
    for section in sections:
        name_at.append(len(names))
        names += section.name.encode("ascii", "replace") + b"\0"
    shstrtab = _OutSection(".shstrtab", SHT_STRTAB, contents=b"")
    name_at.append(len(names))
    names += shstrtab.name.encode() + b"\0"
    pieces, headers = [bytes(EHDR.size)], [bytes(SHDR.size)]
    offset = EHDR.size
    for section, name in zip([*sections, shstrtab], name_at, strict=True):
        contents = bytes(names) if section is shstrtab else section.contents
        padding = -offset % 8
        pieces += [bytes(padding), contents]
        offset += padding
        headers.append(
            SHDR.pack(
                name, section.kind, section.flags, section.address, offset, section.size or len(contents),
                section.link, section.info, section.alignment, section.entry_size,
            )
        )  # fmt: skip
        offset += len(contents)
    padding = -offset % 8
    pieces[0] = EHDR.pack(
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), ET_EXEC, EM_X86_64, 1, 0, 0, offset + padding, 0,
        EHDR.size, 0, 0, SHDR.size, len(headers), len(headers) - 1,
    )  # fmt: skip
    return b"".join([*pieces, bytes(padding), *headers])
