from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace

import pytest

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.events import Record
from enclavedbg.shell.commands import COMMANDS
from enclavedbg.shell.table import CommandError

from .conftest import SECONDS, Live

pytestmark = pytest.mark.live


def test_stop_says_where_and_continue_goes_on(live: Live) -> None:
    text = live.command("stop")
    # No name in a user program; dots in the names of functions that the compiler cloned.
    assert re.search(r"^(?:[\w.]+(?:\+0x[0-9a-f]+)?:\n)?=> [0-9a-f]{16}  \w", text, re.M)
    assert not live.enclave.debug.running
    assert live.command("stop").startswith("It is stopped already")
    assert live.command("c") == ""
    assert live.enclave.debug.running
    assert live.command("continue") == "It is running.\n"


@pytest.mark.parametrize("line", ["regs", "mem linux_banner", "dis", "bt", "step"])
def test_a_running_machine_cannot_be_looked_into(live: Live, line: str) -> None:
    with pytest.raises((MachineError, CommandError), match="running; stop it first"):
        live.command(line)


def at_poll(live: Live) -> asyncio.Future[str]:
    """Stop the machine where the demo's program waits for connections; the future is an echo on its way."""
    live.command("break __x64_sys_poll")
    live.command("c")

    async def poke() -> str:
        async with await live.enclave.vsock.connect(5000, label="test") as stream:
            await stream.write(b"hello")
            return (await stream.read_exactly(5)).decode()

    answer = asyncio.run_coroutine_threadsafe(poke(), live.loop)
    assert live.enclave.debug.wait_stopped(10)
    return asyncio.wrap_future(answer, loop=live.loop)


def test_step_executes_instructions(stopped: Live) -> None:
    at_poll(stopped)
    before = stopped.enclave.debug.state().rip
    text = stopped.command("step")
    after = stopped.enclave.debug.state().rip
    assert 0 < after - before <= 15
    assert f"=> {after:016x}" in text
    stopped.command("step 5")
    assert stopped.enclave.debug.state().rip != after


def test_registers(stopped: Live) -> None:
    state = stopped.enclave.debug.state()
    text = stopped.command("regs")
    for name, value in state.regs.items():
        assert re.search(rf"\b{name} {value:016x}\b", text)
    assert f"{state.rip:016x}" in text and f"cr3 {state.cr3:x}" in text
    everything = stopped.command("regs all")
    assert "gdtr" in everything and "efer" in everything


def test_memory(stopped: Live) -> None:
    text = stopped.command("mem linux_banner 32")
    assert len(text.splitlines()) == 2
    assert "|Linux version 6.|" in text
    physical = stopped.command("mem p:linux_banner-0xffffffff80000000 16")  # the kernel is not moved
    assert physical.startswith("00000000016") and "|Linux version 6.|" in physical


@pytest.mark.parametrize(
    "line",
    [
        "step 0",
        "step 10001",
        "mem",
        "mem linux_banner 0",
        "mem linux_banner 1000000",
        "mem a b c",
        "mem linux_banner x",
    ],
)
def test_counts_and_addresses_that_are_refused(stopped: Live, line: str) -> None:
    with pytest.raises(CommandError):
        stopped.command(line)


def test_memory_that_is_not_there(stopped: Live) -> None:
    with pytest.raises(GuestFault):
        stopped.command("mem 0xdead000000000000")
    with pytest.raises(GuestFault):
        stopped.command("mem p:0xfff0000000")


def test_disassembly_names_functions_and_targets(stopped: Live) -> None:
    text = stopped.command("dis do_syscall_64 40")
    assert text.startswith("do_syscall_64:\n")
    assert len(re.findall(r"^   ffffffff[0-9a-f]{8}  ", text, re.M)) == 40
    assert re.search(r"call 0x[0-9a-f]+  \w+", text)
    assert "=> " in stopped.command("dis")
    assert "nothing is mapped" in stopped.command("dis 0x10000000000")


def test_backtrace_goes_down_to_the_bottom(stopped: Live) -> None:
    at_poll(stopped)
    frames = stopped.command("bt").splitlines()
    assert frames[0].startswith("#0 ")
    assert any("entry_SYSCALL_64" in frame for frame in frames)
    assert frames[-1].startswith("("), "the reason why it ends"


def test_breakpoints(stopped: Live) -> None:
    assert stopped.command("break") == "There are no breakpoints.\n"
    answer = at_poll(stopped)
    listed = stopped.command("break")
    assert "__x64_sys_poll" in listed
    assert "__x64_sys_poll" in stopped.command("bt").splitlines()[0]
    assert "do_syscall_64" in stopped.command("bt")
    assert stopped.enclave.debug.state().rip == stopped.call(stopped.session.address("__x64_sys_poll"))
    assert "is gone" in stopped.command(f"delete {listed.split()[0]}")
    assert stopped.enclave.debug.breakpoints == {}
    stopped.command("c")

    async def wait() -> str:
        return await answer

    assert stopped.call(wait()) == "hello"


def test_a_breakpoint_can_be_set_while_the_machine_runs(live: Live) -> None:
    number = live.command("break do_exit").split()[1]
    assert live.enclave.debug.running
    live.command(f"delete {number}")
    assert live.enclave.debug.running and live.enclave.debug.breakpoints == {}


def test_one_address_twice(stopped: Live) -> None:
    first = int(stopped.command("break do_exit").split()[1])
    second = int(stopped.command("break do_exit").split()[1])
    stopped.command(f"delete {first}")
    assert len(stopped.enclave.debug.breakpoints) == 1
    stopped.command(f"delete {second}")
    assert stopped.enclave.debug.breakpoints == {}
    with pytest.raises(CommandError, match="no breakpoint"):
        stopped.command(f"delete {first}")


def test_symbols(live: Live) -> None:
    text = live.command("sym do_syscall_6")
    address = text.split()[0]
    assert "do_syscall_64" in text
    assert live.command(f"sym 0x{address}") == f"0x{address} is do_syscall_64\n"
    assert "No symbol" in live.command("sym zzzzzzz")


def test_expressions(stopped: Live) -> None:
    state = stopped.enclave.debug.state()
    base = stopped.call(stopped.session.address("start_kernel"))
    for text, value in [
        ("start_kernel+0x10", base + 16),
        ("start_kernel - 4 + 2", base - 2),
        ("$rip", state.rip),
        ("$pc+1", state.rip + 1),
        ("$cr3", state.cr3),
        ("-1", (1 << 64) - 1),
        ("0x10", 16),
        ("10", 10),
    ]:
        assert stopped.call(stopped.session.address(text)) == value


def test_a_mistyped_symbol_gets_a_suggestion(live: Live) -> None:
    with pytest.raises(CommandError, match=r"did you mean do_exit\?"):
        live.command("break do_exti")
    with pytest.raises(CommandError, match="lists similar names"):
        live.command("break zzzz")


def test_steps_that_are_given_up_leave_a_machine_that_stands(stopped: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    debug = stopped.enclave.debug
    step = debug.step

    async def give_up() -> None:
        work = asyncio.create_task(COMMANDS.run(stopped.session, "step 10000"))
        # Ctrl-C comes when a step has begun.
        monkeypatch.setattr(debug, "step", lambda: (step(), asyncio.get_running_loop().call_soon(work.cancel)))
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not debug.running

    for _ in range(5):
        stopped.call(give_up())
    assert stopped.command("c") == "", "and goes on at once"
    assert debug.running


def test_a_breakpoint_that_is_given_up_leaves_a_machine_that_runs(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    debug = live.enclave.debug
    interrupt = debug.interrupt
    resumed = threading.Semaphore(0)

    def hear(record: Record) -> None:
        if record.event.kind == "resume":
            resumed.release()

    async def give_up() -> None:
        loop = asyncio.get_running_loop()
        work = asyncio.create_task(COMMANDS.run(live.session, "break do_exit"))
        monkeypatch.setattr(debug, "interrupt", lambda: (interrupt(), loop.call_soon(work.cancel)))
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not live.session.breakpoints

    unsubscribe = live.enclave.events.subscribe(hear)
    for _ in range(3):
        live.call(give_up())
        assert resumed.acquire(timeout=SECONDS)
    unsubscribe()


def test_early_code_is_not_taken_for_a_user_program(stopped: Live) -> None:
    debug = stopped.enclave.debug
    at_poll(stopped)
    before = debug.state()
    assert before.cpl == 0
    try:
        debug.set_state(replace(before, rip=0x1000000))
        assert "kernel code, before its own page tables" in stopped.command("bt").splitlines()[0]
    finally:
        debug.set_state(before)


@pytest.mark.parametrize("text", ["", "+", "no_such_symbol_here", "$nope", "start_kernel start_kernel", "0x", "1 2"])
def test_expressions_that_mean_nothing(stopped: Live, text: str) -> None:
    with pytest.raises(CommandError):
        stopped.call(stopped.session.address(text))
