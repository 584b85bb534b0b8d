"""The tour's step with a real gdb, driven over its machine interface."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from enclavedbg.demo import StepFailed, expect

if TYPE_CHECKING:
    from enclavedbg.machine.enclave import Enclave

FUNCTION = "__x64_sys_poll"
"""Where the demo's program waits for connections: it comes here again with every request."""

CALLER = "do_syscall_64"
ANSWER_SECONDS = 20.0


class Gdb:
    """One gdb process. The methods block, and belong in a worker thread."""

    def __init__(self) -> None:
        from pygdbmi.gdbcontroller import GdbController

        self._controller = GdbController(
            command=["gdb", "--nx", "--quiet", "--interpreter=mi3"],
            time_to_check_for_additional_output_sec=0.001,  # an answer is complete when it comes
        )
        self._pending: list[dict[str, Any]] = []

    def command(self, text: str) -> dict[str, Any]:
        """Send a command and return its result; raises StepFailed with gdb's own words on an error."""
        self._controller.write(text, read_response=False)
        result = self._wait(lambda record: record["type"] == "result", text)
        if result["message"] == "error":
            raise StepFailed(f"gdb answered to {text!r}: {(result['payload'] or {}).get('msg', 'an error')}")
        return result["payload"] or {}

    def stopped(self) -> dict[str, Any]:
        """Wait until the guest stands still and return why and where."""
        payload: dict[str, Any] = self._wait(
            lambda record: record["type"] == "notify" and record["message"] == "stopped", "the guest's stop"
        )["payload"]
        return payload

    def value(self, expression: str) -> int:
        """The value of an expression, as an unsigned number."""
        text = str(self.command(f'-data-evaluate-expression "(unsigned long)({expression})"')["value"])
        return int(text.split()[0], 0)

    def close(self) -> None:
        """End the process, and wait for it."""
        process = self._controller.gdb_process
        self._controller.exit()
        if process is not None:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()

    def _wait(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            for at, record in enumerate(self._pending):
                if wanted(record):
                    # What came before it was seen and not wanted by anyone.
                    del self._pending[: at + 1]
                    return record
            left = deadline - time.monotonic()
            if left <= 0:
                raise StepFailed(f"gdb said nothing for {ANSWER_SECONDS:.0f} s about {what}")
            self._pending += self._controller.get_gdb_response(timeout_sec=min(left, 1), raise_error_on_timeout=False)


async def visit(
    enclave: Enclave,
    address: str,
    *,
    poke: Callable[[], Coroutine[Any, Any, None]],
    say: Callable[[str], None],
) -> str:
    """Attach, stop at FUNCTION, look, step, leave; `poke` makes the guest call it. Says what gdb showed."""
    if shutil.which("gdb") is None:
        raise StepFailed("gdb is missing; install it: apt install gdb")
    gdb = await asyncio.to_thread(Gdb)
    try:
        return await _visit(enclave, gdb, address, poke, say)
    finally:
        await asyncio.to_thread(gdb.close)


async def _visit(
    enclave: Enclave,
    gdb: Gdb,
    address: str,
    poke: Callable[[], Coroutine[Any, Any, None]],
    say: Callable[[str], None],
) -> str:
    began = time.monotonic()
    # The kernel's symbols are made when gdb asks for them, which takes a busy machine more than gdb's two seconds.
    await asyncio.to_thread(gdb.command, "-gdb-set remotetimeout 30")
    await asyncio.to_thread(gdb.command, f"-target-select remote {address}")
    expect(not enclave.debug.running, "gdb attached, and the enclave runs on")
    await asyncio.to_thread(gdb.command, f"-break-insert {FUNCTION}")
    await asyncio.to_thread(gdb.command, "-exec-continue")
    poking = asyncio.create_task(poke())
    try:
        stop = await asyncio.to_thread(_breakpoint_stop, gdb)
        frames = (await asyncio.to_thread(gdb.command, "-stack-list-frames"))["stack"]
        took = time.monotonic() - began
        _show_frames(frames, say)
        expect(stop["frame"].get("func") == FUNCTION, f"gdb stopped in {stop['frame'].get('func')}, not {FUNCTION}")
        names = [frame.get("func") for frame in frames]
        expect(names[0] == FUNCTION and CALLER in names, f"the backtrace is {names}; expected {FUNCTION} .. {CALLER}")
        await _step(enclave, gdb, say)
        await asyncio.to_thread(gdb.command, "-break-delete")
        await asyncio.to_thread(gdb.command, "-target-detach")
        await poking  # the guest runs on: it answers
    finally:
        poking.cancel()
        await asyncio.gather(poking, return_exceptions=True)
    return f"from connect to a backtrace with names in {took:.2f} s; step, registers, detach"


def _breakpoint_stop(gdb: Gdb) -> dict[str, Any]:
    while True:
        stop = gdb.stopped()
        if stop.get("reason") == "breakpoint-hit":
            return stop


def _show_frames(frames: list[dict[str, Any]], say: Callable[[str], None]) -> None:
    for frame in frames:
        say(f"     #{frame['level']:<2} {frame['addr']} in {frame.get('func', '??')}")


async def _step(enclave: Enclave, gdb: Gdb, say: Callable[[str], None]) -> None:
    """One instruction on, and gdb's registers are the machine's."""
    before = await asyncio.to_thread(gdb.value, "$rip")
    await asyncio.to_thread(gdb.command, "-exec-step-instruction")
    await asyncio.to_thread(gdb.stopped)
    after = await asyncio.to_thread(gdb.value, "$rip")
    expect(after != before, f"after a step gdb is still at {before:#x}")
    state = enclave.debug.state()
    real = {"rip": state.rip, "rsp": state.regs["rsp"], "rdi": state.regs["rdi"]}
    for name, value in real.items():
        shown = await asyncio.to_thread(gdb.value, f"${name}")
        expect(shown == value, f"gdb shows {name} {shown:#x}, the machine has {value:#x}")
        say(f"     {name} {value:#018x}")
