"""Verdicts from what Linux wrote last: transcripts as kernels of the 6.12 series write them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.machine.events import BootStage, ConsoleLine, Record
from enclavedbg.machine.verdict import Outcome, Verdict, Witness

PANIC = """\
[    0.412345] sysrq: Trigger a crash
[    0.412901] Kernel panic - not syncing: sysrq triggered crash
[    0.413400] CPU: 0 UID: 0 PID: 1 Comm: demo Not tainted 6.12.95 #1
[    0.414002] Call Trace:
[    0.414310]  <TASK>
[    0.415000] Kernel Offset: disabled
[    0.415513] Rebooting in 30 seconds..
"""
PANIC_WITHOUT_REBOOT = """\
[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
[    1.6] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---
"""
OOPS = """\
[    0.5][   T45] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    0.5][   T45] #PF: supervisor write access in kernel mode
[    0.5][   T45] Oops: Oops: 0002 [#1] PREEMPT NOPTI
"""


def witness(transcript: str = "") -> Witness:
    witness = Witness()
    for line in transcript.splitlines():
        witness.read(line)
    return witness


def test_nothing_said() -> None:
    assert witness().reset() == Verdict(
        Outcome.CLEAN, "the enclave ended: the guest reset the machine; the console stayed empty"
    )
    assert witness().triple_fault(0x10, "").line == "triple fault at 0x10; the console stayed empty"


def test_a_panic_is_one_however_the_machine_ends() -> None:
    seen = witness(PANIC)
    panic = Verdict(Outcome.PANIC, "kernel panic: sysrq triggered crash")
    assert seen.panic_over
    assert [seen.reset(), seen.power_off(), seen.dead_halt(0), seen.deaf(0, 10), seen.panicked()] == [panic] * 5
    assert panic.exit_status == 10


def test_the_end_of_a_panic_is_told_once() -> None:
    told: list[int] = []
    seen = Witness()
    seen.on_panic_over = lambda: told.append(seen.lines)
    for line in (PANIC_WITHOUT_REBOOT + PANIC_WITHOUT_REBOOT).splitlines():
        seen.read(line)
    assert told == [2]
    assert seen.panicked().line == "kernel panic: VFS: Unable to mount root fs on unknown-block(0,0)"


def test_a_program_may_not_lie_about_a_panic_being_over() -> None:
    seen = witness("Rebooting in 30 seconds..")
    assert not seen.panic_over
    assert seen.panic is None


def test_an_oops_is_told_with_every_later_end() -> None:
    words = ", after a kernel error: BUG: kernel NULL pointer dereference, address: 0000000000000000"
    seen = witness(OOPS + "init: /demo killed by signal 9 (Killed)\n[    1.0] reboot: Restarting system")
    assert seen.reset().line == f"the enclave ended: init: /demo killed by signal 9 (Killed){words}"
    assert seen.reset().outcome is Outcome.CLEAN
    assert witness(OOPS + PANIC).reset().line == f"kernel panic: sysrq triggered crash{words}"


def test_the_first_oops_counts() -> None:
    seen = witness("[ 1.0] kernel BUG at lib/x.c:1!\n[ 1.1] Oops: invalid opcode: 0000 [#1]")
    assert seen.oops == "kernel BUG at lib/x.c:1!"
    assert witness("init: BUG: is only a word here").oops is None


def test_clean_ends() -> None:
    restart = "[    1.0] reboot: Restarting system"
    assert witness(restart).reset().line == "the enclave ended: the guest rebooted"
    assert witness().power_off().line == "the enclave ended: the guest powered off"
    exited = "init: /demo exited with status 3"
    assert witness(f"{exited}\n{restart}").reset().line == f"the enclave ended: {exited}"


def test_a_power_off_without_acpi_is_a_halt_that_is_meant() -> None:
    assert witness("[    1.0] reboot: Power off not available: System halted instead").dead_halt(0).line == (
        "the enclave ended: the guest powered off"
    )
    assert witness("[    1.0] reboot: Power down").dead_halt(0).line == "the enclave ended: the guest powered off"
    assert witness("[    1.0] reboot: System halted").dead_halt(0).line == "the enclave ended: the guest halted"


def test_a_halt_that_is_not_meant_is_a_hang() -> None:
    verdict = witness("[    0.1] Booting").dead_halt(0xFF)
    assert verdict == Verdict(
        Outcome.HANG, "hang: the CPU halted with interrupts off at 0xff; last console line: Booting"
    )
    assert verdict.exit_status == 12


def test_time_limit() -> None:
    assert witness("x").timed_out(1.5, 0x99).line == "still running after 1.5 s, the CPU at 0x99; last console line: x"
    assert witness("x").timed_out(60, None).exit_status == 13


def test_time_stamps_of_every_kind_are_left_out() -> None:
    for stamp in ("[    0.1] ", "<6>[12345.678901] ", "[    0.1][    T1] ", "[    0.1][ C0] "):
        assert witness(f"{stamp}Kernel panic - not syncing: x").panicked().line == "kernel panic: x"
        assert witness(f"{stamp}hello").last[-1] == "hello"


def test_only_console_events_are_read() -> None:
    seen = Witness()
    seen(Record(0, 0, BootStage("Kernel panic - not syncing: no")))
    assert (seen.lines, seen.panic) == (0, None)
    seen(Record(1, 0, ConsoleLine("Kernel panic - not syncing: yes")))
    assert seen.panic == "yes"


@given(
    st.lists(st.text(alphabet=st.characters(exclude_characters="\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")), max_size=30)
)
def test_any_console_gives_one_line(lines: list[str]) -> None:
    seen = Witness()
    for line in lines:
        seen.read(line)
    for verdict in (
        seen.reset(),
        seen.power_off(),
        seen.dead_halt(1),
        seen.deaf(1, 10),
        seen.triple_fault(1, ""),
        seen.timed_out(1, 1),
    ):
        assert "\n" not in verdict.line
        assert verdict.line == verdict.summary()
        assert verdict.exit_status == verdict.outcome.value
