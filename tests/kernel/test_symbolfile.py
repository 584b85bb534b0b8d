from __future__ import annotations

import io
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.symbolfile import build
from tests.kernel.builders import DATA, TEXT, BtfWriter, kernel_types, small_kernel

needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed: apt-get install gdb")


@cache
def built() -> bytes:
    return build(small_kernel(btf=kernel_types().encode()))


@pytest.fixture(scope="module")
def symbol_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("symbols") / "kernel.sym"
    path.write_bytes(built())
    return path


def gdb(path: Path, *commands: str) -> list[str]:
    """Lines that gdb prints for these commands, complaints about the file included."""
    words = ["gdb", "-nx", "-batch", "-ex", "set complaints 1000", "-ex", f"file {path}"]
    for command in commands:
        words += ["-ex", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_file_has_the_kernels_sections_without_their_bytes() -> None:
    elf = ELFFile(io.BytesIO(built()))
    sections = {s.name: s for s in elf.iter_sections()}
    assert sections[".text"]["sh_addr"] == TEXT and sections[".text"]["sh_type"] == "SHT_NOBITS"
    assert sections[".data"]["sh_addr"] == DATA
    assert ".data..percpu" not in sections
    assert {".symtab", ".strtab", ".debug_frame", ".debug_info", ".debug_abbrev", ".debug_str"} <= sections.keys()


def test_local_symbols_come_first_and_functions_have_sizes() -> None:
    elf = ELFFile(io.BytesIO(built()))
    table = elf.get_section_by_name(".symtab")
    symbols = list(table.iter_symbols())
    bindings = [s["st_info"]["bind"] for s in symbols]
    assert bindings.index("STB_GLOBAL") == table["sh_info"]
    assert "STB_LOCAL" not in bindings[table["sh_info"] :]
    named = {s.name: s for s in symbols}
    start = named["start_kernel"]
    assert (start["st_value"], start["st_size"], start["st_info"]["type"]) == (TEXT + 0x100, 0x100, "STT_FUNC")
    assert (named["startup_64"]["st_size"], named["_text"]["st_size"]) == (0x100 - 0x10, 0)
    assert named["init_task"]["st_info"]["type"] == "STT_OBJECT"
    assert named["cpu_number"]["st_shndx"] == "SHN_ABS"
    assert "__pfx_start_kernel" not in named


def test_frame_information_covers_calls_exceptions_and_the_end() -> None:
    dwarf = ELFFile(io.BytesIO(built())).get_dwarf_info()
    rows = {}
    for entry in dwarf.CFI_entries():
        if "initial_location" in entry.header:
            for row in entry.get_decoded().table:
                rows[row["pc"]] = (row, entry.cie["augmentation"])
    call, augmentation = rows[TEXT + 0x101]
    assert (call["cfa"].reg, call["cfa"].offset) == (7, 16)
    assert (call[16].arg, call[6].arg) == (-8, -16)
    assert augmentation == b"z"
    system_call, augmentation = rows[TEXT + 0x310]
    assert (system_call[16].arg, system_call[7].arg, augmentation) == (128, 152, b"z")
    exception, augmentation = rows[TEXT + 0x410]
    assert (exception[16].arg, exception[15].arg, augmentation) == (128, 0, b"zS")
    hardware, _ = rows[TEXT + 0x400]
    assert (hardware[16].arg, hardware[7].arg) == (0, 24)
    end, _ = rows[TEXT]
    assert end[16].type == "UNDEFINED"
    assert TEXT + 0x600 not in rows


def test_types_are_those_of_btf() -> None:
    unit = next(ELFFile(io.BytesIO(built())).get_dwarf_info().iter_CUs())
    found = {}
    for die in unit.iter_DIEs():
        name = die.attributes.get("DW_AT_name")
        if name is not None:
            found[die.tag, name.value] = die
    task = found["DW_TAG_structure_type", b"task_struct"]
    assert task.attributes["DW_AT_byte_size"].value == 64
    members = [m.attributes["DW_AT_name"].value for m in task.iter_children()]
    assert members == [b"__state", b"tasks", b"", b"comm", b"flags"]
    high = found["DW_TAG_enumerator", b"HIGH"]
    assert high.attributes["DW_AT_const_value"].value == 1 << 40
    assert ("DW_TAG_variable", b"init_task") in found and ("DW_TAG_variable", b"cpu_number") in found


def test_a_kernel_without_unwind_tables_or_types_still_has_names() -> None:
    for elf in (small_kernel(orc=False, percpu=False), small_kernel(btf=b"rubbish")):
        names = [s.name for s in ELFFile(io.BytesIO(build(elf))).iter_sections()]
        assert ".symtab" in names and ".debug_info" not in names


def test_an_image_without_symbols_is_refused() -> None:
    with pytest.raises(SymbolError):
        build(b"\x7fELF")


@pytest.mark.live
@needs_gdb
def test_gdb_reads_names_and_types_without_a_complaint(symbol_file: Path) -> None:
    assert gdb(
        symbol_file,
        "info symbol start_kernel",
        f"info symbol {TEXT + 0x123:#x}",
        f"info symbol {TEXT:#x}",
        "b do_sys_openat2",
        "p sizeof(struct task_struct)",
        "p &((struct task_struct *)0)->comm",
        "p &init_task.comm",
        "p &init_task",
        "p (enum signs)-1",
        "p (enum system_states)4",
        "p/x HIGH",
        "whatis ((struct task_struct *)0)->flags.policy",
        "p &cpu_number",
    ) == [
        "start_kernel in section .text",
        "start_kernel + 35 in section .text",
        "startup_64 in section .text",
        f"Breakpoint 1 at {TEXT + 0x200:#x}",
        "$1 = 64",
        "$2 = (char (*)[16]) 0x20",
        f"$3 = (char (*)[16]) {DATA + 32:#x} <init_task+32>",
        f"$4 = (struct task_struct *) {DATA:#x} <init_task>",
        "$5 = MINUS",
        "$6 = SYSTEM_RUNNING",
        "$7 = 0x10000000000",
        "type = unsigned int",
        "$8 = (int *) 0x1000",
    ]


@pytest.mark.live
@needs_gdb
def test_gdb_prints_a_struct_as_it_was_declared(symbol_file: Path) -> None:
    assert gdb(symbol_file, "ptype struct task_struct", "ptype struct list_head") == [
        "type = struct task_struct {",
        "    volatile unsigned int __state;",
        "    struct list_head tasks;",
        "    union {",
        "        int pid;",
        "        unsigned int tgid;",
        "    };",
        "    char comm[16];",
        "    struct {",
        "        unsigned int on_rq : 1;",
        "        unsigned int policy : 3;",
        "    } flags;",
        "}",
        "type = struct list_head {",
        "    struct list_head *next;",
        "    struct list_head *prev;",
        "}",
    ]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_damage_is_refused_or_built(data: st.DataObject) -> None:
    elf = bytearray(small_kernel(btf=kernel_types().encode()))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(elf) - 1))
        elf[at] = data.draw(st.integers(0, 255))
    try:
        result = build(bytes(elf))
    except SymbolError:
        return
    assert result.startswith(b"\x7fELF")


def test_types_that_refer_to_nothing_leave_the_names_alone() -> None:
    writer = BtfWriter()
    writer.pointer(99)
    names = [s.name for s in ELFFile(io.BytesIO(build(small_kernel(btf=writer.encode())))).iter_sections()]
    assert ".symtab" in names and ".debug_info" not in names
