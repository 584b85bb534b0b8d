"""The packaged demo kernel: what the parsers make of a real one, and a real stack in the running machine."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import enclavedbg
from enclavedbg.eif.bzimage import parse_bzimage, unpack_kernel
from enclavedbg.kernel.btf import Btf
from enclavedbg.kernel.image import KernelImage
from enclavedbg.kernel.log import LogRecord, read_log
from enclavedbg.kernel.orc import OrcLayout, OrcTable
from enclavedbg.kernel.symbolfile import build
from enclavedbg.kernel.symbols import KernelSymbols
from enclavedbg.kernel.unwind import Backtrace, backtrace
from enclavedbg.machine.enclave import Enclave, EnclaveConfig

DATA = Path(enclavedbg.__file__).parent / "data"
EIF = DATA / "demo.eif"
KERNEL = DATA / "demo-bzImage"

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not (EIF.exists() and KERNEL.exists()), reason="the package has no demo image"),
]


@cache
def kernel_elf() -> bytes:
    return bytes(unpack_kernel(parse_bzimage(KERNEL.read_bytes())).elf)


@cache
def symbols() -> KernelSymbols:
    return KernelSymbols.from_vmlinux(kernel_elf())


def test_well_known_names_are_where_code_is() -> None:
    assert len(symbols()) > 20_000
    for name in ("start_kernel", "panic", "do_sys_openat2", "do_syscall_64", "schedule", "nsm_sendrecv_msg_locked"):
        address = symbols().address(name)
        assert address is not None, name
        assert symbols().lookup(address + 1) == (name, 1)
        section = symbols().image.section_at(address)
        assert section is not None and section.executable
    release = symbols().image.release()
    assert release is not None and release.startswith("6.12.")


def test_types_agree_with_each_other() -> None:
    contents = KernelImage(kernel_elf()).contents(".BTF")
    assert contents is not None
    btf = Btf.parse(contents)
    comm = btf.member("task_struct", "comm")
    assert btf.describe(comm.type_id) == "char [16]" and btf.size(comm.type_id) == 16
    assert comm.offset + 16 <= btf.struct("task_struct").size
    assert [btf.size(p.type_id) for p in btf.prototype("do_sys_openat2").parameters] == [4, 8, 8]  # type: ignore[union-attr]
    assert btf.enumerators("system_states")["SYSTEM_RUNNING"] > 0


def test_the_unwind_table_covers_every_function_named_by_the_kernel() -> None:
    orc = OrcTable.from_vmlinux(kernel_elf())
    assert orc.layout is OrcLayout.V6_4
    for name in ("start_kernel", "panic", "do_sys_openat2", "schedule"):
        entry = orc.lookup(symbols().address(name) or 0)
        assert entry is not None and entry.usable and entry.sp_offset == 8


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed: apt-get install gdb")
def test_gdb_reads_the_symbol_file_without_a_complaint(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(build(kernel_elf()))
    commands = [
        "file " + str(path),
        "info symbol start_kernel",
        "b panic",
        "p sizeof(struct task_struct) > 1000",
        "p sizeof(init_task.comm)",
        "p (enum system_states)0",
        "whatis jiffies",
        "whatis prb",
    ]
    words = ["gdb", "-nx", "-batch", "-ex", "set complaints 1000"]
    for command in commands:
        words += ["-ex", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "start_kernel in section .init.text",
        f"Breakpoint 1 at {symbols().address('panic'):#x}",
        "$1 = 1",
        "$2 = 16",
        "$3 = SYSTEM_BOOTING",
        "type = unsigned long",
        "type = struct printk_ringbuffer *",
    ]


async def stop_at(*names: str) -> tuple[list[Backtrace], list[LogRecord], str]:
    """Boot the demo image, walk the stack at the first call of each function, in order; the log and console there."""
    enclave = Enclave(EnclaveConfig(eif=EIF, ephemeral_authority=True), loop=asyncio.get_running_loop())
    try:
        enclave.start(halted=True)
        elf = enclave.kernel_elf
        names_of, orc = KernelSymbols.from_vmlinux(elf), OrcTable.from_vmlinux(elf)
        traces = []
        debug = enclave.debug
        for name in names:
            address = names_of.address(name)
            assert address is not None
            assert await asyncio.to_thread(debug.wait_stopped, 30)
            debug.add_breakpoint(address, owner="test")
            debug.resume()
            assert await asyncio.to_thread(debug.wait_stopped, 30)
            state = debug.state()
            assert state.rip == address
            traces.append(backtrace(debug.read_virtual, state, names_of, orc))
            debug.clear_owner("test")
        contents = names_of.image.contents(".BTF")
        assert contents is not None
        log = read_log(debug.read_virtual, names_of, Btf.parse(contents))
        return traces, log, enclave.console.text()
    finally:
        await enclave.close()


def test_stacks_of_the_running_kernel_are_walked_to_their_ends() -> None:
    traces, log, console = asyncio.run(stop_at("start_kernel", "do_sys_openat2", "irq_exit_rcu"))
    early, call, interrupt = traces
    assert [f.symbol for f in early.frames][:3] == ["start_kernel", "x86_64_start_reservations", "x86_64_start_kernel"]
    assert early.end == "end of stack"
    path = [f.symbol for f in call.frames]
    assert path[0] == "do_sys_openat2"
    assert path.index("do_syscall_64") + 1 == path.index("entry_SYSCALL_64_after_hwframe")
    user = call.frames[path.index("entry_SYSCALL_64_after_hwframe") + 1]
    assert user.user and user.interrupted and user.registers["cs"] & 3 == 3
    entry = next(i for i, f in enumerate(interrupt.frames) if f.symbol and f.symbol.startswith("asm_"))
    assert interrupt.frames[entry + 1].interrupted
    # A kernel thread or the idle task ends in the kernel, a process in its own code.
    assert interrupt.end == "end of stack" or interrupt.frames[-1].user

    assert log[0].text.startswith("Linux version 6.12.")
    assert [r.sequence for r in log] == list(range(len(log)))
    assert all(a.time_ns <= b.time_ns for a, b in pairwise(log)) and {r.facility for r in log} == {0}
    # Every message that the console shows is one of the log's, with its time.
    shown = [line.split("] ", 1)[1].rstrip() for line in console.splitlines() if line.startswith("[")]
    assert len(shown) > 20 and set(shown) <= {line.rstrip() for r in log for line in r.text.splitlines()}
