from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import SymbolError
from enclavedbg.kernel.btf import Btf, Kind, Member
from enclavedbg.kernel.dwarf import debug_types
from tests.kernel.builders import BtfWriter, kernel_types


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.parse(kernel_types().encode())


def test_every_kind_is_indexed(btf: Btf) -> None:
    kinds = {btf.type(i).kind for i in range(len(btf))}
    assert kinds == set(Kind)
    assert len(btf) == kernel_types().count + 1


def test_members_are_found_by_path_through_anonymous_ones(btf: Btf) -> None:
    task = btf.struct("task_struct")
    assert (task.kind, task.size) == (Kind.STRUCT, 64)
    assert [m.name for m in btf.members(task)] == ["__state", "tasks", "", "comm", "flags"]
    assert btf.offset("task_struct", "tasks") == 8
    assert btf.offset("task_struct", "tasks.prev") == 16
    assert btf.offset("task_struct", "tgid") == 24
    assert btf.offset("task_struct", "comm") == 32
    policy = btf.member("task_struct", "flags.policy")
    assert (policy.bit_offset, policy.bit_size, policy.offset) == (385, 3, 48)


def test_renamed_members_are_tried_in_order(btf: Btf) -> None:
    assert btf.offset("task_struct", "state", "__state") == 0
    assert btf.first_member("task_struct", "nothing", "tasks") == Member("tasks", 7, 64, 0)
    with pytest.raises(SymbolError, match="struct task_struct of this kernel has no member stack"):
        btf.offset("task_struct", "state", "stack")


def test_a_typedef_leads_to_its_struct(btf: Btf) -> None:
    assert btf.struct("task_t").name == "task_struct"
    with pytest.raises(SymbolError, match="no struct nothing"):
        btf.struct("nothing")
    with pytest.raises(SymbolError, match="has no members"):
        btf.members(btf.type(1))


def test_sizes(btf: Btf) -> None:
    comm = btf.member("task_struct", "comm")
    assert btf.size(comm.type_id) == 16
    assert btf.element(comm.type_id) == (2, 16)
    assert btf.size(btf.member("task_struct", "tasks.next").type_id) == 8
    assert btf.size(0) == 0


def test_enumerators_have_their_sign(btf: Btf) -> None:
    assert btf.enumerators("system_states") == {"SYSTEM_BOOTING": 0, "SYSTEM_RUNNING": 4}
    assert btf.enumerators("signs") == {"MINUS": -1, "PLUS": 1}
    assert btf.enumerators("wide") == {"HIGH": 1 << 40, "LOWEST": -(1 << 63)}
    with pytest.raises(SymbolError, match="no enum none"):
        btf.enumerators("none")


def test_encoders_before_6_0_have_signed_enums_only() -> None:
    writer = BtfWriter()
    writer.enum("old", {"ERROR": -1, "FINE": 0})
    assert Btf.parse(writer.encode()).enumerators("old") == {"ERROR": -1, "FINE": 0}


def test_prototypes_name_their_parameters(btf: Btf) -> None:
    proto = btf.prototype("do_sys_openat2")
    assert proto is not None
    assert [(p.name, btf.describe(p.type_id)) for p in proto.parameters] == [
        ("dfd", "int"),
        ("filename", "const char *"),
    ]
    assert proto.variadic and btf.describe(proto.return_type) == "int"
    assert btf.prototype("no_such_function") is None


def test_percpu_variables_are_listed(btf: Btf) -> None:
    (variable,) = btf.variables()
    assert (variable.name, variable.section, variable.offset, variable.size) == (
        "cpu_number", ".data..percpu", 0x1000, 4,
    )  # fmt: skip


def test_descriptions_read_like_c(btf: Btf) -> None:
    texts = {btf.describe(i) for i in range(len(btf))}
    assert {"void", "void *", "struct list_head *", "char [16]", "struct task_struct [0]"} <= texts
    assert {"volatile unsigned int", "enum signs", "struct opaque", "int ()(...)", "int (*)(...)"} <= texts


def test_ids_and_strings_outside_are_refused(btf: Btf) -> None:
    for type_id in (-1, len(btf), 1 << 40):
        with pytest.raises(SymbolError, match="BTF type"):
            btf.type(type_id)
    for offset in (-1, 1 << 20):
        with pytest.raises(SymbolError, match="BTF name"):
            btf.string(offset)


def test_circles_end() -> None:
    writer = BtfWriter()
    writer.modifier(10, 2)
    writer.modifier(9, 1)
    writer.array(3, 1, 1 << 30)
    assert writer.struct("self", 8, ("", 4, 0), ("", 5, 0)) == 4
    writer.union("other", 8, ("", 4, 0), ("x", 4, 0))
    btf = Btf.parse(writer.encode())
    for type_id in (1, 3):
        with pytest.raises(SymbolError):
            btf.size(type_id)
        with pytest.raises(SymbolError):
            btf.describe(type_id)
    assert btf.offset("self", "x") == 0
    with pytest.raises(SymbolError, match="has no member y"):
        btf.offset("self", "y")


def test_anonymous_members_do_not_multiply() -> None:
    # 64 levels, each with two ways to the next: 2^64 paths to a member that is not there.
    writer = BtfWriter()
    for level in range(1, 65):
        writer.struct("top" if level == 1 else "", 8, ("", level + 1, 0), ("", level + 1, 0))
    writer.integer("int", 4)
    with pytest.raises(SymbolError, match="no member"):
        Btf.parse(writer.encode()).offset("top", "missing")


def headed(types: bytes, strings: bytes, *, version: int = 1, claim: int = 0) -> bytes:
    size = len(types) + claim
    return struct.pack("<HBBIIIII", 0xEB9F, version, 0, 24, 0, size, size, len(strings)) + types + strings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its header alone"),
        (bytes(24), "magic"),
        (headed(b"", b"\0", version=2), "version 2"),
        (headed(b"", b"\0", claim=400), "end after the data"),
        (headed(b"", b"x"), "zero byte"),
        (headed(struct.pack("<III", 0, 31 << 24, 0), b"\0"), "kind 31"),
        (headed(struct.pack("<II", 0, 2 << 24), b"\0"), "ends after"),
    ],
)
def test_damaged_headers_are_named(data: bytes, message: str) -> None:
    with pytest.raises(SymbolError, match=message):
        Btf.parse(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_an_error_of_our_own_wherever_it_is(data: st.DataObject) -> None:
    raw = bytearray(kernel_types().encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        btf = Btf.parse(bytes(raw))
    except SymbolError:
        return
    for look in (
        lambda: btf.offset("task_struct", "flags.policy"),
        lambda: btf.enumerators("wide"),
        lambda: btf.prototype("do_sys_openat2"),
        lambda: list(btf.variables()),
        lambda: [btf.describe(i) for i in range(len(btf))],
        lambda: [btf.size(i) for i in range(len(btf))],
        lambda: debug_types(btf),
    ):
        try:
            look()
        except SymbolError:
            continue


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_parsed(data: bytes) -> None:
    for raw in (data, headed(data[: len(data) & ~3], b"\0")):
        try:
            btf = Btf.parse(raw)
            debug_types(btf)
        except SymbolError:
            continue
