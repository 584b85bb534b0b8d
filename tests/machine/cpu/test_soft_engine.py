"""The software CPU on guests of a few instructions, through the native part and in Python alone."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from enclavedbg.errors import MachineError
from enclavedbg.machine.cpu.engine import (
    BreakpointHit,
    Halted,
    Interrupted,
    StepDone,
    TripleFault,
    WatchKind,
    Watchpoint,
    WatchpointHit,
)
from enclavedbg.machine.cpu.soft import native
from tests.machine.cpu.bare import (
    ALIAS,
    CODE,
    DATA,
    HANDLERS,
    HLT,
    KERNEL_CS,
    USER_CODE,
    BareGuest,
)

DEAD = Halted(interruptible=False)


@pytest.fixture(params=["native", "python"])
def guest(request: pytest.FixtureRequest) -> Iterator[BareGuest]:
    if request.param == "native" and native.load() is None:
        pytest.skip("the native part is not built: no C compiler at installation")
    guest = BareGuest(native=request.param == "native")
    yield guest
    guest.close()


def movabs_rax(value: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", value)


def mov_rbx(value: int) -> bytes:
    return b"\x48\xc7\xc3" + struct.pack("<i", value)


def test_runs_to_halt(guest: BareGuest) -> None:
    guest.code(movabs_rax(0x1122334455667788), mov_rbx(7), HLT)
    guest.start()
    assert guest.engine.run() == DEAD
    state = guest.engine.save_state()
    assert (state.regs["rax"], state.regs["rbx"]) == (0x1122334455667788, 7)
    assert state.halted
    assert state.rip == CODE + 18


def test_invalid_opcode_reaches_the_guests_handler(guest: BareGuest) -> None:
    guest.gate(6, b"\x5b" + HLT)  # pop rbx: the address of the instruction
    guest.code(b"\x90\x0f\x0b")  # nop; ud2
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.regs()["rbx"] == CODE + 1


def test_page_fault_brings_address_and_error_code(guest: BareGuest) -> None:
    guest.gate(14, b"\x5b\x59" + HLT)  # pop rbx: error code; pop rcx: rip
    guest.code(movabs_rax(0x7000_0000_0000), b"\x48\x89\x00")  # mov [rax], rax
    guest.start()
    assert guest.engine.run() == DEAD
    state = guest.engine.save_state()
    assert state.cr2 == 0x7000_0000_0000
    assert state.regs["rbx"] == 2  # a write, page not present, in ring 0
    assert state.regs["rcx"] == CODE + 10


def test_software_interrupt_returns_behind_it(guest: BareGuest) -> None:
    guest.gate(0x80, b"\x48\xff\xc3\x48\xcf")  # inc rbx; iretq
    guest.code(b"\x31\xdb\xcd\x80\xcd\x80", HLT)  # xor ebx, ebx; int 80h twice
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.regs()["rbx"] == 2


def test_fault_from_user_mode_switches_to_the_kernels_stack(guest: BareGuest) -> None:
    guest.gate(13, b"\x48\x89\xe3" + HLT)  # mov rbx, rsp
    guest.code(HLT, at=USER_CODE)  # not allowed in ring 3
    guest.to_user(USER_CODE)
    guest.start()
    assert guest.engine.run() == DEAD
    state = guest.engine.save_state()
    assert state.segments["cs"].selector == KERNEL_CS
    assert state.cpl == 0
    frame = struct.unpack("<6Q", guest.memory.read(state.regs["rbx"], 48))
    assert frame[1:3] == (USER_CODE, 0x2B)


def test_undeliverable_fault_becomes_a_double_fault(guest: BareGuest) -> None:
    guest.gate(8, b"\x5b" + HLT, ist=1)
    guest.code(movabs_rax(0x7000_0000_0000), b"\x48\x8b\x00")  # no gate for 14
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.engine.save_state().rip == HANDLERS + 8 * 64 + 2


def test_bad_kernel_stack_becomes_a_double_fault_on_its_own_stack(guest: BareGuest) -> None:
    guest.gate(14, HLT)
    guest.gate(8, b"\x5b" + HLT, ist=1)
    guest.state.regs["rsp"] = 0x6000_0000_0000
    guest.code(b"\x50")  # push rax
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.engine.save_state().rip == HANDLERS + 8 * 64 + 2


@pytest.mark.parametrize("code", [b"\x0f\x0b", movabs_rax(0x7000_0000_0000) + b"\x48\x8b\x00"])
def test_no_handler_at_all_is_a_triple_fault(guest: BareGuest, code: bytes) -> None:
    guest.state.idtr.limit = 0
    guest.code(code)
    guest.start()
    assert isinstance(guest.engine.run(), TripleFault)


def test_triple_fault_on_an_unmapped_stack(guest: BareGuest) -> None:
    guest.gate(14, HLT)
    guest.gate(8, HLT)
    guest.state.regs["rsp"] = 0x6000_0000_0000
    guest.code(b"\x50")
    guest.start()
    assert isinstance(guest.engine.run(), TripleFault)


def test_syscall_and_sysret(guest: BareGuest) -> None:
    guest.state.msrs.star = 0x0018_0010 << 32
    guest.state.msrs.lstar = CODE
    guest.state.msrs.sfmask = 0x1  # clears carry
    guest.code(b"\x48\x89\xcb\x4d\x89\xdc\x48\x0f\x07")  # mov rbx, rcx; mov r12, r11; sysretq
    guest.code(b"\xf9\x0f\x05\x0f\x0b", at=USER_CODE)  # stc; syscall; ud2
    guest.gate(6, b"\x5f" + HLT)  # pop rdi
    guest.to_user(USER_CODE)
    guest.start()
    assert guest.engine.run() == DEAD
    regs = guest.regs()
    assert regs["rbx"] == USER_CODE + 3
    assert regs["r12"] & 1, "r11 holds the flags from before the mask"
    assert regs["rdi"] == USER_CODE + 3, "sysret went back to ring 3, where ud2 faulted"


def test_breakpoint_stops_before_the_instruction_and_is_passed(guest: BareGuest) -> None:
    guest.code(b"\x90\x48\xff\xc0\x48\xff\xc0", HLT)  # nop; inc rax; inc rax
    guest.start()
    guest.engine.set_breakpoints(frozenset({CODE + 4}))
    assert guest.engine.run() == BreakpointHit(CODE + 4)
    assert guest.regs()["rax"] == 1
    assert guest.engine.run() == DEAD
    assert guest.regs()["rax"] == 2


def test_breakpoint_holds_in_code_that_ran_before(guest: BareGuest) -> None:
    guest.code(b"\x48\xff\xc0\x48\x83\xf8\x05\x75\xf7", HLT)  # loop: inc rax; cmp rax, 5; jne loop
    guest.start()
    guest.engine.set_breakpoints(frozenset({CODE}))
    hits = 0
    while guest.engine.run() == BreakpointHit(CODE):
        hits += 1
        if hits == 2:
            guest.engine.set_breakpoints(frozenset({CODE + 3}))
            assert guest.engine.run() == BreakpointHit(CODE + 3)
            guest.engine.set_breakpoints(frozenset({CODE}))
    # The first run begins on the breakpoint and passes it.
    assert (hits, guest.regs()["rax"]) == (4, 5)


def test_steps_are_single_instructions(guest: BareGuest) -> None:
    guest.code(b"\x90\x48\xff\xc0\x48\xff\xc0", HLT)
    guest.start()
    for address, rax in ((CODE + 1, 0), (CODE + 4, 1), (CODE + 7, 2), (CODE + 8, 2)):
        assert guest.engine.step() == StepDone()
        assert (guest.engine.save_state().rip, guest.regs()["rax"]) == (address, rax)
    assert guest.engine.step() == DEAD, "stepping a halted CPU reports the halt"


def test_step_between_blocks_that_ran_before(guest: BareGuest) -> None:
    guest.code(b"\x48\xff\xc0\x48\x83\xf8\x08\x75\xf7", HLT)
    guest.start()
    guest.engine.set_breakpoints(frozenset({CODE + 9}))
    assert guest.engine.run() == BreakpointHit(CODE + 9)
    guest.state.regs["rax"] = 0
    guest.start()
    seen = []
    for _ in range(6):
        assert guest.engine.step() == StepDone()
        seen.append(guest.engine.save_state().rip - CODE)
    assert seen == [3, 7, 0, 3, 7, 0]


def test_step_into_a_fault_stops_at_the_handlers_first_instruction(guest: BareGuest) -> None:
    handler = guest.gate(6, b"\x90" + HLT)
    guest.code(b"\x0f\x0b")
    guest.start()
    assert guest.engine.step() == StepDone()
    assert guest.engine.save_state().rip == handler


def test_step_of_a_repeated_instruction_is_one_iteration(guest: BareGuest) -> None:
    guest.code(b"\xf3\xa4", HLT)  # rep movsb
    guest.state.regs.update(rcx=3, rsi=DATA, rdi=DATA + 0x100)
    guest.start()
    counts = []
    while guest.engine.save_state().rip == CODE:
        assert guest.engine.step() == StepDone()
        counts.append(guest.regs()["rcx"])
    assert counts[:3] == [2, 1, 0]


def test_step_holds_interrupts_back(guest: BareGuest) -> None:
    guest.gate(0x40, b"\x48\xff\xc3\x48\xcf")
    guest.code(b"\x90\x90", HLT)
    guest.state.rflags = 0x202
    guest.start()
    guest.controller.vector = 0x40
    assert guest.engine.step() == StepDone()
    assert (guest.engine.save_state().rip, guest.controller.acknowledged) == (CODE + 1, 0)
    assert guest.engine.run() == Halted(interruptible=True)
    assert (guest.regs()["rbx"], guest.controller.acknowledged) == (1, 1)


def test_step_leaves_a_halt_when_an_interrupt_waits_without_taking_it(guest: BareGuest) -> None:
    guest.code(b"\xfb", HLT, b"\x48\xff\xc0", HLT)  # sti; hlt; inc rax
    guest.start()
    assert guest.engine.run() == Halted(interruptible=True)
    assert guest.engine.step() == Halted(interruptible=True)
    guest.controller.vector = 0x40
    assert guest.engine.step() == StepDone()
    assert (guest.regs()["rax"], guest.controller.acknowledged) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (WatchKind.WRITE, b"\x48\x89\x07"),  # mov [rdi], rax
        (WatchKind.READ, b"\x48\x8b\x07"),  # mov rax, [rdi]
        (WatchKind.ACCESS, b"\x48\x8b\x07"),
        (WatchKind.WRITE, b"\xf0\x48\xff\x07"),  # lock inc qword [rdi]
    ],
)
def test_watchpoint_stops_behind_the_access_done_once(guest: BareGuest, kind: WatchKind, code: bytes) -> None:
    watch = Watchpoint(DATA + 2, 1, kind)
    guest.memory.write_u64(DATA, 0x10)
    guest.state.regs.update(rax=0x77, rdi=DATA)
    guest.code(b"\x90", code, b"\x48\xff\xc3", b"\x48\xff\xc3", HLT)
    guest.start()
    guest.engine.set_watchpoints((watch,))
    assert guest.engine.run() == WatchpointHit(watch, DATA + 2)
    if guest.engine.native:
        assert guest.engine.save_state().rip == CODE + 1 + len(code)
        assert guest.regs()["rbx"] == 0
    expected = {b"\x48\x89\x07": 0x77, b"\xf0\x48\xff\x07": 0x11}.get(code, 0x10)
    assert guest.memory.read_u64(DATA) == expected
    assert guest.engine.run() == DEAD
    assert guest.regs()["rbx"] == 2


def test_watchpoint_ignores_the_rest_of_the_page_and_can_go(guest: BareGuest) -> None:
    guest.state.regs.update(rdi=DATA)
    guest.code(b"\x48\x89\x47\x10", b"\x48\x89\x07", HLT)  # mov [rdi+16], rax; mov [rdi], rax
    guest.start()
    guest.engine.set_watchpoints((Watchpoint(DATA, 8, WatchKind.WRITE),))
    assert isinstance(guest.engine.run(), WatchpointHit)
    guest.start()
    guest.engine.set_watchpoints(())
    assert guest.engine.run() == DEAD


def test_interrupt_is_taken_when_allowed_and_acknowledged_once(guest: BareGuest) -> None:
    guest.gate(0x40, b"\x48\xff\xc3\x48\xcf")  # inc rbx; iretq
    guest.code(b"\x90\xfb\x48\xff\xc0" + HLT)  # nop; sti; inc rax; hlt
    guest.start()
    guest.controller.vector = 0x40
    assert guest.engine.run() == Halted(interruptible=True)
    regs = guest.regs()
    assert (regs["rax"], regs["rbx"], guest.controller.acknowledged) == (1, 1, 1)


def test_halt_ends_with_the_next_interrupt(guest: BareGuest) -> None:
    guest.gate(0x41, b"\x48\xff\xc3\x48\xcf")
    guest.code(b"\xfb", HLT, b"\xfa", HLT)
    guest.start()
    assert guest.engine.run() == Halted(interruptible=True)
    assert guest.engine.run() == Halted(interruptible=True), "nothing woke it"
    guest.controller.vector = 0x41
    assert guest.engine.run() == DEAD
    assert guest.regs()["rbx"] == 1


def test_withdrawn_interrupt_is_not_delivered(guest: BareGuest) -> None:
    guest.gate(0x40, b"\x48\xff\xc3\x48\xcf")
    guest.code(b"\xee", b"\xfb\x90\x90\xfa", HLT)  # out dx, al; sti; nop; nop; cli

    class Withdraw:
        def port_read(self, offset: int, size: int) -> int:
            return 0

        def port_write(self, offset: int, size: int, value: int) -> None:
            guest.controller.vector = None

    guest.bus.attach_ports(0x99, 1, Withdraw())
    guest.state.regs["rdx"] = 0x99
    guest.start()
    guest.controller.vector = 0x40
    assert guest.engine.run() == DEAD
    assert (guest.regs()["rbx"], guest.controller.acknowledged) == (0, 0)


def test_code_written_through_a_second_mapping_is_seen(guest: BareGuest) -> None:
    # Call a function at DATA, patch it through the alias, call again; 100 rounds.
    function = DATA
    guest.code(b"\xb8\x00\x00\x00\x00\xc3", at=function)  # mov eax, imm32; ret
    guest.state.regs.update(rsi=function, rdi=ALIAS + function, rcx=100)
    guest.code(
        b"\xff\xd6",  # loop: call rsi
        b"\x48\x01\xc3",  # add rbx, rax
        b"\xff\x47\x01",  # inc dword [rdi+1]
        b"\x48\xff\xc9",  # dec rcx
        b"\x75\xf3",  # jnz loop
        HLT,
    )
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.regs()["rbx"] == sum(range(100))


def test_code_that_patches_the_page_it_runs_in(guest: BareGuest) -> None:
    guest.state.regs.update(rcx=50, rdi=CODE + 3)
    guest.code(
        b"\x48\x05\x00\x00\x00\x00",  # loop: add rax, imm32 (patched)
        b"\xff\x47\xff",  # inc dword [rdi-1]
        b"\x48\xff\xc9",
        b"\x75\xf2",
        HLT,
    )
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.regs()["rax"] == sum(range(50))


def test_ports_and_holes_reach_the_bus(guest: BareGuest) -> None:
    seen: list[tuple[str, int, int, int]] = []

    class Device:
        def port_read(self, offset: int, size: int) -> int:
            seen.append(("in", offset, size, 0))
            return 0x5A

        def port_write(self, offset: int, size: int, value: int) -> None:
            seen.append(("out", offset, size, value))

    guest.bus.attach_ports(0x100, 2, Device())
    guest.state.regs.update(rdx=0x101, rax=0x42)
    guest.code(b"\xee\xec\x66\xba\x00\x02\x66\xed", HLT)  # out dx, al; in al, dx; mov dx, 200h; in ax, dx
    guest.start()
    assert guest.engine.run() == DEAD
    assert seen == [("out", 1, 1, 0x42), ("in", 1, 1, 0)]
    assert guest.regs()["rax"] & 0xFFFF == 0xFFFF, "no device at port 200h"


def test_memory_hole_reads_ones_and_swallows_writes(guest: BareGuest) -> None:
    hole = 0x8000_0000
    guest.memory.write_u64(0x9000 + 0x1000 + 16, (hole) | 0x87)  # a 1 GiB page at the hole
    guest.state.regs["rdi"] = hole + 0x123
    guest.code(b"\x48\x89\x07\x48\x8b\x07", HLT)
    guest.start()
    assert guest.engine.run() == DEAD
    assert guest.regs()["rax"] == 0xFFFF_FFFF_FFFF_FFFF


def test_a_devices_error_comes_out_of_run(guest: BareGuest) -> None:
    class Broken:
        def port_read(self, offset: int, size: int) -> int:
            raise MachineError("broken device")

        def port_write(self, offset: int, size: int, value: int) -> None:
            raise AssertionError

    guest.bus.attach_ports(0x99, 1, Broken())
    guest.state.regs["rdx"] = 0x99
    guest.code(b"\xec", HLT)
    guest.start()
    with pytest.raises(MachineError, match="broken device"):
        guest.engine.run()


def test_stops_from_another_thread_never_run_an_instruction_twice(guest: BareGuest) -> None:
    # loop: lock inc [rdi]; inc rax; jmp loop - the two counts stay within one of each other.
    guest.state.regs["rdi"] = DATA
    guest.code(b"\xf0\x48\xff\x07\x48\xff\xc0\xeb\xf7")
    guest.start()
    done = threading.Event()

    def poke() -> None:
        while not done.wait(0.0003):
            guest.engine.interrupt()

    poker = threading.Thread(target=poke)
    poker.start()
    try:
        for _ in range(100):
            assert guest.engine.run() == Interrupted()
            rip = guest.engine.save_state().rip
            ahead = 1 if rip == CODE + 4 else 0
            assert guest.memory.read_u64(DATA) == guest.regs()["rax"] + ahead
    finally:
        done.set()
        poker.join()


def test_state_goes_out_and_in_unchanged(guest: BareGuest) -> None:
    guest.code(b"\xd9\xe8\xd9\xeb\x0f\x57\xc0\xf3\x0f\x5a\xc8", HLT)  # fld1; fldpi; xorps xmm0; cvtss2sd xmm1, xmm0
    guest.state.fpu.xmm[5] = bytes(range(16))
    guest.state.fpu.mxcsr = 0x1FA0
    guest.state.segments["fs"].base = 0x1234_5678_9ABC
    guest.state.msrs.kernel_gs_base = 0xFFFF_8880_0000_0000
    guest.state.rflags = 0x8D7
    guest.start()
    assert guest.engine.run() == DEAD
    state = guest.engine.save_state()
    assert state.rflags == 0x8D7
    assert state.fpu.st[0].hex() == "35c26821a2da0fc90040"  # pi
    assert state.fpu.st[1].hex() == "0000000000000080ff3f"  # 1
    assert state.fpu.ftw == 0x0FFF
    assert state.fpu.fsw >> 11 & 7 == 6
    assert state.fpu.xmm[5] == bytes(range(16))
    guest.engine.load_state(state)
    again = guest.engine.save_state()
    again.msrs.tsc = state.msrs.tsc
    assert again == state


def test_time_stamp_counter_can_stand_still(guest: BareGuest) -> None:
    guest.code(b"\x0f\x31", HLT)  # rdtsc
    guest.state.msrs.tsc = 1 << 40
    guest.start()
    assert guest.engine.run() == DEAD
    first = guest.regs()["rdx"] << 32 | guest.regs()["rax"]
    guest.state.msrs.tsc = 1 << 20
    guest.start()
    assert guest.engine.run() == DEAD
    second = guest.regs()["rdx"] << 32 | guest.regs()["rax"]
    assert 1 << 40 < first < (1 << 40) + 30_000_000_000
    assert 1 << 20 < second < (1 << 20) + 30_000_000_000


@pytest.mark.parametrize(
    ("leaf", "register", "bit", "code"),
    [
        (1, "rcx", 20, b"\xf2\x48\x0f\x38\xf1\xc3"),  # SSE4.2: crc32 rax, rbx
        (1, "rcx", 23, b"\xf3\x48\x0f\xb8\xc3"),  # POPCNT
        (1, "rcx", 25, b"\x66\x0f\x38\xdc\xc1"),  # AES: aesenc xmm0, xmm1
        (1, "rcx", 1, b"\x66\x0f\x3a\x44\xc1\x00"),  # PCLMULQDQ
        (1, "rcx", 22, b"\x48\x0f\x38\xf0\x07"),  # MOVBE rax, [rdi]
        (7, "rbx", 3, b"\xc4\xe2\xe0\xf2\xc0"),  # BMI1: andn
        (7, "rbx", 8, b"\xc4\xe2\xe0\xf5\xc0"),  # BMI2: bzhi/pdep group
        (7, "rbx", 19, b"\x66\x48\x0f\x38\xf6\xc3"),  # ADX: adcx
        (7, "rbx", 0, b"\xf3\x48\x0f\xae\xd0"),  # FSGSBASE: wrfsbase rax
        (0x8000_0001, "rcx", 5, b"\xf3\x48\x0f\xbd\xc3"),  # LZCNT
        (0x8000_0001, "rdx", 27, b"\x0f\x01\xf9"),  # RDTSCP
    ],
)
def test_every_offered_feature_works(guest: BareGuest, leaf: int, register: str, bit: int, code: bytes) -> None:
    guest.gate(6, b"\x41\xbf\x01\x00\x00\x00" + HLT)  # mov r15d, 1
    guest.state.cr4 |= 1 << 16  # FSGSBASE
    guest.state.regs.update(rax=leaf, rcx=0, rdi=DATA)
    guest.code(b"\x0f\xa2\x49\x89\xda\x49\x89\xcb\x49\x89\xd4", code, HLT)  # cpuid; r10, r11, r12 = ebx, ecx, edx
    guest.start()
    assert guest.engine.run() == DEAD
    regs = guest.regs()
    offered = {"rbx": regs["r10"], "rcx": regs["r11"], "rdx": regs["r12"]}[register]
    assert offered >> bit & 1
    assert regs["r15"] == 0, "the instruction is offered but faults"


def test_too_many_watchpoints_are_refused(guest: BareGuest) -> None:
    watches = tuple(Watchpoint(DATA + 8 * i, 8, WatchKind.WRITE) for i in range(native.MAX_WATCHPOINTS + 1))
    guest.start()
    if not guest.engine.native:
        guest.engine.set_watchpoints(watches)  # Python's have no limit
        return
    with pytest.raises(MachineError, match="at most 64"):
        guest.engine.set_watchpoints(watches)
