"""The register table: GDB's own numbers, values that make the round trip, and states that no CPU can be in."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import ProtocolError
from enclavedbg.gdbstub import registers
from enclavedbg.gdbstub.registers import NUMBERS, REGISTERS, read_all, write_all, write_register
from enclavedbg.gdbstub.targetxml import FLAGS, TARGET_XML
from enclavedbg.machine.cpu.state import CpuState
from tests.gdbstub.fake import long_mode_state

GENERAL = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
X87_CONTROL = ["fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"]
AMD64 = [
    *GENERAL, "rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs",
    *(f"st{n}" for n in range(8)), *X87_CONTROL, *(f"xmm{n}" for n in range(16)), "mxcsr",
]  # fmt: skip


def real_mode_state() -> CpuState:
    return CpuState(rip=0xFFF0)


def protected_mode_state() -> CpuState:
    state = CpuState(rip=0x10_0000, cr0=0x11)
    state.segments["cs"].selector = 8
    return state


STATES = [long_mode_state, real_mode_state, protected_mode_state]


def test_the_first_registers_are_gdbs_own() -> None:
    assert [r.name for r in REGISTERS[:57]] == AMD64
    widths = [64] * 17 + [32] * 7 + [80] * 8 + [32] * 8 + [128] * 16 + [32]
    assert [r.bits for r in REGISTERS[:57]] == widths
    # Clients without target.xml read this many bytes of `g`.
    assert registers.OFFSETS[57] == 536


def test_target_xml_numbers_what_the_block_holds() -> None:
    described = ET.fromstring(TARGET_XML).iter("reg")
    assert [(r.get("name"), int(r.get("bitsize") or 0), int(r.get("regnum") or 0)) for r in described] == [
        (r.name, r.bits, number) for number, r in enumerate(REGISTERS)
    ]


def test_target_xml_defines_every_type_it_uses() -> None:
    root = ET.fromstring(TARGET_XML)
    built_in = {"int", "int32", "int64", "code_ptr", "data_ptr", "i387_ext"}
    for feature in root.iter("feature"):
        defined = {e.get("id") for e in feature if e.tag != "reg"}
        assert {r.get("type") for r in feature.iter("reg")} <= defined | built_in
    assert {flags.get("id") for flags in root.iter("flags")} == set(FLAGS)


def test_names_are_unique() -> None:
    assert len(NUMBERS) == len(REGISTERS)


@pytest.mark.parametrize("make", STATES)
def test_writing_back_what_was_read_changes_nothing(make: type) -> None:
    state = make()
    assert write_all(state, tuple(read_all(state))) == state


@pytest.mark.parametrize("make", STATES)
def test_each_register_reads_back_as_written(make: type) -> None:
    for number, register in enumerate(REGISTERS):
        if register.name in ("orig_rax", "tsc", "cs", "ss", "cr0", "cr4", "efer"):
            continue
        value = {"eflags": 0x246}.get(register.name, 5).to_bytes(register.size, "little")
        state = write_register(make(), number, value)
        assert registers.read_register(state, number) == value, register.name


def test_values_are_where_gdb_expects_them() -> None:
    state = long_mode_state()
    block = read_all(state)
    at = dict(zip(NUMBERS, registers.OFFSETS, strict=True))
    assert block[at["rip"] : at["rip"] + 8] == state.rip.to_bytes(8, "little")
    assert block[at["st1"] : at["st1"] + 10] == state.fpu.st[1]
    assert block[at["ftag"] : at["ftag"] + 4] == bytes.fromhex("ff000000")
    assert block[at["fioff"] : at["fioff"] + 4] == bytes.fromhex("bc9a7856")
    assert block[at["fiseg"] : at["fiseg"] + 4] == bytes.fromhex("34120000")
    assert block[at["orig_rax"] : at["orig_rax"] + 8] == b"\xff" * 8
    assert block[at["cr3"] : at["cr3"] + 8] == state.cr3.to_bytes(8, "little")


def test_bytes_sent_as_unknown_leave_their_register_alone() -> None:
    state = long_mode_state()
    data: list[int | None] = list(read_all(state))
    data[0:8] = [None] * 8
    data[8:16] = [7] * 8
    changed = write_all(state, data)
    assert changed.regs["rax"] == state.regs["rax"]
    assert changed.regs["rbx"] == 0x0707070707070707


@given(st.lists(st.one_of(st.none(), st.integers(0, 255)), max_size=registers.BLOCK_SIZE + 8))
@settings(max_examples=50)
def test_any_block_gives_a_state_or_protocol_error(data: list[int | None]) -> None:
    state = long_mode_state()
    before = copy.deepcopy(state)
    try:
        changed = write_all(state, data)
    except ProtocolError:
        changed = state
    assert state == before
    assert len(read_all(changed)) == registers.BLOCK_SIZE


@given(st.integers(0, len(REGISTERS) - 1), st.integers(0, (1 << 128) - 1))
def test_any_value_gives_a_state_that_can_be_read_or_protocol_error(number: int, value: int) -> None:
    size = REGISTERS[number].size
    try:
        state = write_register(long_mode_state(), number, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
    except ProtocolError:
        return
    read_all(state)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("cr0", 0x8000_0000, "PG without PE"),
        ("cr0", 1 << 40, "reserved"),
        ("cr0", 0x33, "LMA"),
        ("efer", 0x501 & ~0x100, "LMA"),
        ("cr4", 0, "PAE"),
        ("cr8", 16, "reserved"),
        ("rip", 0x8000_0000_0000_0000, "canonical"),
        ("gs_base", 0x8000_0000_0000, "canonical"),
        ("cs", 0x33, "hidden"),
        ("fs", 0x10000, "16 bits"),
        ("mxcsr", 0x10000, "reserved"),
        ("tsc", 5, "clock"),
    ],
)
def test_impossible_values_are_refused_with_a_reason(name: str, value: int, words: str) -> None:
    number = NUMBERS[name]
    with pytest.raises(ProtocolError, match=words):
        write_register(long_mode_state(), number, value.to_bytes(REGISTERS[number].size, "little"))


def test_a_value_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ProtocolError, match="4 bytes for rax, expected 8"):
        write_register(long_mode_state(), 0, bytes(4))


def test_reserved_flags_are_as_the_cpu_has_them() -> None:
    state = write_register(long_mode_state(), NUMBERS["eflags"], b"\xff" * 4)
    assert state.rflags == 0x3F7FD7


def test_a_real_mode_selector_moves_its_base() -> None:
    state = write_register(real_mode_state(), NUMBERS["cs"], bytes.fromhex("34120000"))
    assert (state.segments["cs"].selector, state.segments["cs"].base) == (0x1234, 0x12340)
