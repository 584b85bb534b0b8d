from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import GuestFault
from enclavedbg.kernel.orc import OrcTable
from enclavedbg.kernel.symbols import KernelSymbols
from enclavedbg.kernel.unwind import PT_REGS, Backtrace, backtrace
from tests.kernel.builders import TEXT, small_kernel

STACK = 0xFFFF_C900_0000_4000
OTHER_STACK = 0xFFFF_C900_0000_0000
USER_STACK = 0x7FFC_0000_0000
USER = 0x40_1000
ELF = small_kernel()
SYMBOLS = KernelSymbols.from_vmlinux(ELF)
ORC = OrcTable.from_vmlinux(ELF)
START_KERNEL, OPENAT, SYSCALL = TEXT + 0x100, TEXT + 0x200, TEXT + 0x310
EXCEPTION, SWITCH = TEXT + 0x410, TEXT + 0x500


@dataclass
class Cpu:
    rip: int
    regs: dict[str, int] = field(default_factory=dict)


class Memory:
    """Some mapped 4 KiB pages."""

    def __init__(self, *pages: int) -> None:
        self.pages = {page: bytearray(0x1000) for page in pages}

    def words(self, address: int, *values: int) -> None:
        page = self.pages[address & ~0xFFF]
        struct.pack_into(f"<{len(values)}Q", page, address & 0xFFF, *values)

    def read(self, address: int, length: int) -> bytes:
        data = b""
        while len(data) < length:
            page = self.pages.get(address + len(data) & ~0xFFF)
            if page is None:
                if not data:
                    raise GuestFault(f"{address:#x} is not mapped", address=address)
                break
            at = address + len(data) & 0xFFF
            data += page[at : at + length - len(data)]
        return data


def pt_regs(**values: int) -> list[int]:
    return [values.get(name, 0) for name in PT_REGS]


def walk(memory: Memory, rip: int, *, limit: int = 64, **regs: int) -> Backtrace:
    return backtrace(memory.read, Cpu(rip, regs), SYMBOLS, ORC, limit=limit)


def names(trace: Backtrace) -> list[str | None]:
    return [f.symbol for f in trace.frames]


def test_calls_lead_to_the_end_of_the_stack() -> None:
    memory = Memory(STACK)
    memory.words(STACK + 0x100, 0x1111, 0)  # do_sys_openat2's own two words
    memory.words(STACK + 0x110, START_KERNEL + 0x11)
    memory.words(STACK + 0x118, 0xBEEF, TEXT + 0x10)  # start_kernel's saved rbp, and its return address
    trace = walk(memory, OPENAT + 5, rsp=STACK + 0x100, rbp=STACK + 0x200)
    assert names(trace) == ["do_sys_openat2", "start_kernel", "startup_64"]
    assert [f.offset for f in trace.frames] == [5, 0x11, 0x10]
    assert [f.cfa for f in trace.frames] == [STACK + 0x118, STACK + 0x128, 0]
    assert trace.frames[2].registers["rbp"] == 0xBEEF
    assert trace.end == "end of stack"
    assert [f.interrupted for f in trace.frames] == [True, False, False]


def test_a_return_address_belongs_to_the_call_before_it() -> None:
    # A call as the last instruction of start_kernel returns to the first byte of the next function.
    memory = Memory(STACK)
    memory.words(STACK + 0x110, OPENAT)
    memory.words(STACK + 0x200, 0, TEXT + 0x10)
    trace = walk(memory, OPENAT + 5, rsp=STACK + 0x100, rbp=STACK + 0x200, limit=2)
    assert names(trace) == ["do_sys_openat2", "start_kernel"]
    assert trace.frames[1].offset == 0x100
    assert trace.end == "stopped after 2 frames"


def test_an_exception_gives_every_register_and_the_exact_address() -> None:
    memory = Memory(STACK)
    memory.words(STACK + 0x100, 0, 0, EXCEPTION + 3)
    saved = pt_regs(rip=START_KERNEL, rsp=STACK + 0x300, rbp=0x77, r12=12, rbx=3, cs=0x10)
    memory.words(STACK + 0x118, *saved)
    memory.words(STACK + 0x300, TEXT + 0x20)
    trace = walk(memory, OPENAT + 5, rsp=STACK + 0x100, rbp=0x1234)
    assert names(trace) == ["do_sys_openat2", "asm_exc_page_fault", "start_kernel", "startup_64"]
    interrupted = trace.frames[2]
    assert interrupted.interrupted and interrupted.offset == 0
    assert {name: interrupted.registers[name] for name in ("r12", "rbx", "rbp")} == {"r12": 12, "rbx": 3, "rbp": 0x77}
    # What a callee may change is not known in a caller.
    assert "r12" not in trace.frames[1].registers


def test_the_start_of_an_exception_has_the_hardwares_frame_only() -> None:
    memory = Memory(STACK)
    memory.words(STACK + 0x108, START_KERNEL, 0x10, 0x246, STACK + 0x300, 0x18)
    memory.words(STACK + 0x300, TEXT + 0x20)
    trace = walk(memory, TEXT + 0x404, rsp=STACK + 0x100, rbp=0x55, r13=13)
    assert names(trace) == ["asm_exc_page_fault", "start_kernel", "startup_64"]
    assert trace.frames[1].registers["r13"] == 13


def test_a_system_call_leads_to_user_space() -> None:
    memory = Memory(STACK, USER_STACK)
    memory.words(STACK + 0x100, 0, 0, SYSCALL + 4)
    memory.words(STACK + 0x118, *pt_regs(rip=USER, rsp=USER_STACK + 0x100, rbp=USER_STACK + 0x200, cs=0x33))
    memory.words(USER_STACK + 0x200, 0, USER + 0x50)
    trace = walk(memory, OPENAT + 5, rsp=STACK + 0x100, rbp=0)
    assert names(trace) == ["do_sys_openat2", "entry_SYSCALL_64_after_hwframe", None, None]
    assert [f.user for f in trace.frames] == [False, False, True, True]
    assert trace.frames[3].ip == USER + 0x50
    assert trace.end == "no unwind information here, and no frame pointer"


def test_interrupt_stacks_lead_back_to_the_task_whichever_is_higher() -> None:
    for own, task in ((OTHER_STACK, STACK), (STACK, OTHER_STACK)):
        memory = Memory(own, task)
        memory.words(own + 0x100, 0, 0, SWITCH + 9, task + 0x500)
        memory.words(task + 0x4F8, 0xAB, OPENAT + 7)  # rbp at sp - 16 + 8, return address below sp + 8
        memory.words(task + 0x510, TEXT + 0x10)
        trace = walk(memory, OPENAT + 5, rsp=own + 0x100, rbp=1)
        assert names(trace)[:2] == ["do_sys_openat2", "switch_stack"]
        assert trace.frames[1].cfa == task + 0x508
        assert names(trace)[2] == "do_sys_openat2"
        assert trace.frames[2].registers["rbp"] == 0xAB


def test_a_call_through_null_is_walked_back() -> None:
    memory = Memory(STACK)
    memory.words(STACK, OPENAT + 5)
    memory.words(STACK + 0x18, TEXT + 0x10)
    trace = walk(memory, 0, rsp=STACK, rbp=0)
    assert names(trace) == [None, "do_sys_openat2", "startup_64"]


@pytest.mark.parametrize(
    ("pages", "rsp", "end"),
    [
        ((), STACK, "cannot read the stack"),
        ((STACK,), STACK + 0xFFC - 0x10, "cannot read the stack"),
        ((STACK,), STACK + 0x100, "end of stack"),
    ],
)
def test_the_end_says_why(pages: tuple[int, ...], rsp: int, end: str) -> None:
    trace = walk(Memory(*pages), OPENAT + 5, rsp=rsp, rbp=0)
    assert len(trace.frames) == 1
    assert trace.end.startswith(end)


def test_a_stack_that_leads_down_ends_the_walk() -> None:
    memory = Memory(STACK)
    memory.words(STACK + 0x80, 0, START_KERNEL + 0x90)
    trace = walk(memory, START_KERNEL + 0x90, rsp=STACK + 0x100, rbp=STACK + 0x80)
    assert "leads downwards" in trace.end


def test_without_tables_frame_pointers_are_followed() -> None:
    memory = Memory(STACK)
    memory.words(STACK + 0x200, STACK + 0x300, START_KERNEL + 0x20)
    memory.words(STACK + 0x300, 0, TEXT + 0x10)
    state = Cpu(OPENAT + 5, {"rsp": STACK + 0x180, "rbp": STACK + 0x200})
    trace = backtrace(memory.read, state, SYMBOLS, None)
    assert names(trace) == ["do_sys_openat2", "start_kernel", "startup_64"]


WORD = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(TEXT, TEXT + 0x700),
    st.integers(STACK, STACK + 0x1000),
    st.integers(USER_STACK, USER_STACK + 0x1000),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORD, max_size=64), WORD, WORD, WORD)
def test_any_memory_ends_in_a_backtrace(words: list[int], rip: int, rsp: int, rbp: int) -> None:
    memory = Memory(STACK, USER_STACK)
    memory.words(STACK, *words)
    memory.words(USER_STACK, *reversed(words))
    trace = walk(memory, rip, rsp=rsp, rbp=rbp)
    assert 1 <= len(trace.frames) <= 64
    assert trace.end
