"""The installed gdb, in batch mode, against the fake machine behind a real server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclavedbg.gdbstub.monitor import MonitorCommand
from tests.gdbstub.elf import symbol_elf
from tests.gdbstub.fake import DATA, TEXT, FakeMachine
from tests.gdbstub.serving import Serving, serving

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (apt install gdb)"),
]

SYMBOLS = {"start_kernel": TEXT, "store_byte": TEXT + 2, "loop_end": TEXT + 4, "cpu_idle": TEXT + 0x100}


@pytest.fixture
def served() -> Iterator[Serving]:
    elf = symbol_elf(TEXT, 4096, SYMBOLS)
    commands = [MonitorCommand("pcrs", "the measurements", lambda words: "PCR0 0011\n")]
    with serving(symbol_file=lambda: elf, kernel=elf, commands=commands) as it:
        yield it


def gdb(served: Serving, *commands: str, status: int = 0) -> str:
    """Run gdb with commands after it has attached, and take all it wrote."""
    arguments = ["gdb", "--nx", "--batch", "-ex", "set tcp connect-timeout 5", "-ex", "set remotetimeout 30"]
    for command in (f"target remote {served.host}:{served.port}", *commands):
        arguments += ["-ex", command]
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_symbols_without_any_setup(served: Serving) -> None:
    out = gdb(served, "info symbol $pc", "x/4i $pc", "info line cpu_idle", "bt 1")
    assert "start_kernel in section .text" in out
    assert "<start_kernel>:\tnop" in out
    assert "<store_byte>:\tmov    %al,(%rdi)" in out
    assert "#0  0xffffffff81000000 in start_kernel ()" in out


def test_registers_have_names_and_bits(served: Serving) -> None:
    out = gdb(served, "info registers", "p $cr0", "p $eflags", "p $efer", "p/x $gs_base", "p $st0", "p $xmm1.v4_int32",
              "p/x $lstar", "info registers system")  # fmt: skip
    assert "[ PE MP ET NE WP AM PG ]" in out
    assert "[ PF ZF IF ]" in out
    assert "[ SCE LME LMA NXE ]" in out
    assert "= 0xffff888007000000" in out
    assert "{16843009, 16843009, 16843009, 16843009}" in out
    assert "= 0xffffffff81800000" in out
    assert "k_gs_base" in out and "idtr_limit" in out


def test_breakpoints_steps_and_watchpoints(served: Serving) -> None:
    out = gdb(
        served,
        "break *loop_end",
        "continue",
        "stepi",
        "stepi",
        "p $pc",
        "delete",
        f"watch *(char *){DATA:#x}",
        f"set var *(char *){DATA:#x} = 5",
        "continue",
        "info breakpoints",
    )
    assert "Breakpoint 1, 0xffffffff81000004 in loop_end ()" in out
    assert "= (void (*)()) 0xffffffff81000001 <start_kernel+1>" in out
    assert "ardware watchpoint 2" in out and "breakpoint already hit 1 time" in out
    assert not served.machine.breakpoints and not served.machine.watchpoints


def test_memory_is_read_and_written(served: Serving) -> None:
    out = gdb(
        served,
        f"set var *(unsigned long *){DATA + 8:#x} = 0x7d23242a0300ff",
        f"x/gx {DATA + 8:#x}",
        "x/x 0x10",
        status=1,
    )
    assert "0x007d23242a0300ff" in out
    assert bytes(served.machine.pages[0x200_0000][8:16]) == bytes.fromhex("ff00032a24237d00")
    assert "Cannot access memory at address 0x10" in out


def test_registers_are_written(served: Serving) -> None:
    out = gdb(served, "set $rax = 0x1234", "set $pc = $pc + 1", "set $eflags = 0x202", "set $st3 = 1.5", "disconnect")
    assert "Could not" not in out
    cpu = served.machine.cpu
    assert (cpu.regs["rax"], cpu.rip, cpu.rflags) == (0x1234, TEXT + 1, 0x202)
    assert cpu.fpu.st[3] == bytes.fromhex("00000000000000c0ff3f")


def test_detach_and_attach_again(served: Serving) -> None:
    gdb(served, "break start_kernel", "detach")
    assert served.machine.running and not served.machine.breakpoints
    out = gdb(served, "p $cs", "detach")
    assert "$1 = 16" in out
    gdb(served, "p 1")
    assert served.machine.running, "gdb detaches when its batch is over, and the machine runs on"


def test_disconnect_leaves_the_machine_stopped(served: Serving) -> None:
    gdb(served, "break start_kernel", "disconnect")
    served.settle()
    assert not served.machine.running and not served.machine.breakpoints


def test_the_kernel_is_readable_and_breakable_before_paging() -> None:
    elf = symbol_elf(TEXT, 4096, SYMBOLS)
    machine = FakeMachine(threaded=True)
    machine.kernel_mapped = False
    with serving(machine=machine, symbol_file=lambda: elf, kernel=elf) as served:
        out = gdb(served, "break store_byte", "continue", "x/i $pc")
    assert "Breakpoint 1, 0xffffffff81000002 in store_byte ()" in out
    assert "=> 0xffffffff81000002 <store_byte>:\tmov    %al,(%rdi)" in out


def test_monitor_commands(served: Serving) -> None:
    out = gdb(served, "monitor help", "monitor pcrs", "monitor registers", "monitor nonsense", status=1)
    assert "pcrs       the measurements" in out and "PCR0 0011" in out
    assert "privilege level 0" in out
    assert "there is no command 'nonsense'" in out


def test_the_end_is_shown_before_gdb_lets_go(served: Serving) -> None:
    served.machine.pages[0x100_0000][5] = 0xF4
    out = gdb(served, "continue", "p $pc", "continue")
    said = out.index("enclavedbg: hang: the CPU halted with interrupts off")
    assert out.index("Program received signal SIGTRAP") > said
    assert "= (void (*)()) 0xffffffff81000005 <loop_end+1>" in out
    assert "exited with code 014" in out


def test_ctrl_c_stops_the_machine(served: Serving) -> None:
    command = ["gdb", "--nx", "--quiet", "--interpreter=mi3"]
    resumed = threading.Event()
    served.machine.events.subscribe(lambda record: resumed.set() if record.event.kind == "resume" else None)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        killer = threading.Timer(30, process.kill)
        killer.start()
        process.stdin.write(f"-target-select remote {served.host}:{served.port}\n-exec-continue\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("*running"):
                assert resumed.wait(10)
                os.kill(process.pid, signal.SIGINT)
            if line.startswith("*stopped") and "SIGINT" in line:
                break
        else:
            pytest.fail("gdb ended without having stopped the machine")
        assert not served.machine.running
        process.stdin.write("-gdb-exit\n")
        process.stdin.flush()
        killer.cancel()


def test_the_script_loads_and_its_commands_reach_monitor(served: Serving) -> None:
    script = Path(__file__).parents[2] / "gdb-scripts" / "enclavedbg.gdb"
    out = gdb(served, f"source {script}", "pcrs", "regs", "break not_there_yet")
    assert "PCR0 0011" in out and "privilege level 0" in out and "(not_there_yet) pending" in out


def test_kill_is_refused_without_harm_or_ends_the_guest(served: Serving) -> None:
    assert "Can't kill process" in gdb(served, "kill", status=1)
    ended: list[bool] = []
    with serving(end_guest=lambda: ended.append(True)) as other:
        assert "[Inferior 1 (process 1) killed]" in gdb(other, "kill")
    assert ended == [True]


def test_a_second_gdb_is_told_why_it_cannot_attach(served: Serving) -> None:
    with served.client() as first:
        first.ask("qSupported:swbreak+")
        out = gdb(served, status=1)
    assert "is attached to this machine; detach it first" in out
