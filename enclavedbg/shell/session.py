"""What the commands share: the enclave, its kernel's symbols, the person's breakpoints, and waiting for stops."""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from enclavedbg.errors import EnclaveDbgError, SymbolError
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.events import Event, EventStream, GuestStopped, Record
from enclavedbg.shell.table import CommandError
from enclavedbg.shell.text import Text, lines

if TYPE_CHECKING:
    from enclavedbg.eif import EifImage, Measurements
    from enclavedbg.kernel.btf import Btf
    from enclavedbg.kernel.orc import OrcTable
    from enclavedbg.kernel.symbols import KernelSymbols
    from enclavedbg.kernel.unwind import Backtrace
    from enclavedbg.machine.catchpoints import Catchpoint, Catchpoints
    from enclavedbg.machine.clock import Clock
    from enclavedbg.machine.console import Console
    from enclavedbg.machine.debug import DebugTarget
    from enclavedbg.machine.memory import GuestMemory
    from enclavedbg.machine.verdict import Verdict
    from enclavedbg.nsm.module import SecureModule
    from enclavedbg.vsock.switch import VsockSwitch

log = logging.getLogger(__name__)

_T = TypeVar("_T")

OWNER = "shell"
"""Whose breakpoints ours are, to the machine."""

LIVE = frozenset({"boot", "console", "nsm.exchange", "nsm.pcr", "vsock.connection", "vsock.heartbeat"})
"""Kinds of events that are shown as they happen, unless the person chooses others."""

STOP_SECONDS = 5.0
GIVE_UP_SECONDS = 0.5
"""For a stop that is on its way when its command is given up: HLT takes up to 55 ms, a tick of the timer."""

INTERRUPTED = "interrupted"
"""The reason of a stop that a debugger asked for."""

ENDED = "the enclave has ended; it can be looked at, and not go on"

_BARE_ADDRESS = re.compile(r"[0-9a-f]{16}")
_TERM = re.compile(r"\s*([+-]?)\s*([^\s+-]+)")


class EnclaveView(Protocol):
    """What the shell sees of an enclave; `machine.enclave.Enclave` has this shape."""

    @property
    def events(self) -> EventStream: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def memory(self) -> GuestMemory: ...
    @property
    def console(self) -> Console: ...
    @property
    def image(self) -> EifImage: ...
    @property
    def measurements(self) -> Measurements: ...
    @property
    def kernel_elf(self) -> bytes: ...
    @property
    def nsm(self) -> SecureModule: ...
    @property
    def vsock(self) -> VsockSwitch: ...
    @property
    def catchpoints(self) -> Catchpoints: ...
    @property
    def debug(self) -> DebugTarget: ...
    @property
    def verdict(self) -> Verdict | None: ...


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint set here: its address and how the person named it."""

    number: int
    address: int
    text: str


class Session:
    """One person's look at one enclave. All methods belong to the event loop.

    `notes` are facts for `status` that the enclave does not know itself, such as gdb's address.
    """

    def __init__(self, enclave: EnclaveView, *, notes: dict[str, str] | None = None) -> None:
        self.enclave = enclave
        self.notes = notes or {}
        self.breakpoints: dict[int, Breakpoint] = {}
        self.debugger: Callable[[], bool] = lambda: False
        """Whether gdb is attached; its server knows."""
        self.tell: Callable[[Text], None] | None = None
        """Shows what comes after its command has returned; None where nobody would see it."""
        self.hushed = False
        """A command stops and resumes the machine itself: no news for the person."""
        self.ended = asyncio.Event()
        """Set by `quit`."""
        self.live: set[str] = set(LIVE)
        """Kinds of events shown as they happen; stops, warnings and the verdict always are."""
        self._symbols: asyncio.Task[KernelSymbols] | None = None
        self._orc: asyncio.Task[OrcTable | None] | None = None
        self._btf: asyncio.Task[Btf] | None = None
        self._late: set[asyncio.Task[None]] = set()
        self._next_number = 1

    @property
    def target(self) -> DebugTarget:
        return self.enclave.debug

    # --- symbols and addresses

    async def symbols(self) -> KernelSymbols:
        """The kernel's symbols, read once, beside the loop; raises SymbolError when there are none."""
        return await asyncio.shield(self.start_symbols())

    def start_symbols(self) -> asyncio.Task[KernelSymbols]:
        """Begin to read the symbols, unless that has begun."""
        if self._symbols is None:
            self._symbols = asyncio.create_task(asyncio.to_thread(self._read_symbols))
            self._symbols.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._symbols

    def _read_symbols(self) -> KernelSymbols:
        from enclavedbg.kernel.symbols import KernelSymbols

        return KernelSymbols.from_vmlinux(self.enclave.kernel_elf)

    def known_symbols(self) -> KernelSymbols | None:
        """The symbols if they are there already."""
        task = self._symbols
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    def name_of(self, address: int) -> str | None:
        """`name+0x1c` for an address of the kernel, if its symbols are there already."""
        symbols = self.known_symbols()
        return symbols.describe(address) if symbols is not None and symbols.lookup(address) is not None else None

    async def types(self) -> Btf:
        """The kernel's types, read once, beside the loop; raises SymbolError when there are none."""
        if self._btf is None:
            self._btf = asyncio.create_task(asyncio.to_thread(self._read_types))
        return await asyncio.shield(self._btf)

    def _read_types(self) -> Btf:
        from enclavedbg.kernel.btf import Btf
        from enclavedbg.kernel.image import KernelImage

        contents = KernelImage(self.enclave.kernel_elf).contents(".BTF")
        if contents is None:
            raise SymbolError("this kernel has no type information (BTF); it needs CONFIG_DEBUG_INFO_BTF")
        return Btf.parse(contents)

    async def describe(self, address: int) -> str:
        """`name+0x1c`, or plain hex when the kernel has no name for it."""
        try:
            return (await self.symbols()).describe(address)
        except SymbolError:
            return f"{address:#x}"

    async def address(self, text: str) -> int:
        """The address that a person's expression means: symbols, $registers and numbers, added or subtracted."""
        total = 0
        at = 0
        for match in _TERM.finditer(text):
            if match.start() != at or (at and not match[1]):
                break
            value = await self._value(match[2])
            total += -value if match[1] == "-" else value
            at = match.end()
        if not text.strip() or at != len(text.rstrip()):
            raise CommandError(f"{text!r} is no address; expected e.g. start_kernel, do_exit+0x10, $rsp or 0xffff...")
        return total & 0xFFFF_FFFF_FFFF_FFFF

    async def _value(self, word: str) -> int:
        if word.startswith("$"):
            return register_value(self.target.state(), word[1:].lower())
        if _BARE_ADDRESS.fullmatch(word):
            return int(word, 16)  # as we print addresses
        try:
            return int(word, 0)
        except ValueError:
            pass
        symbols = await self.symbols()
        address = symbols.address(word)
        if address is None:
            near = difflib.get_close_matches(word, symbols.complete(word[:4], limit=2000), n=1)
            hint = f"did you mean {near[0]}?" if near else f"`sym {word[:4]}` lists similar names"
            raise CommandError(f"the kernel has no symbol {word!r}; {hint}")
        return address

    async def backtrace(self) -> Backtrace:
        """The call chain from the CPU's registers; raises SymbolError when the kernel's tables cannot be read."""
        symbols = await self.symbols()
        if self._orc is None:
            self._orc = asyncio.create_task(asyncio.to_thread(self._read_orc))
        orc = await asyncio.shield(self._orc)
        state = self.target.state()
        from enclavedbg.kernel.unwind import backtrace

        return backtrace(self.target.read_virtual, state, symbols, orc)

    def _read_orc(self) -> OrcTable | None:
        from enclavedbg.kernel.orc import OrcTable

        try:
            return OrcTable.from_vmlinux(self.enclave.kernel_elf)
        except SymbolError as error:
            log.info("backtraces follow frame pointers: %s", error)
            return None

    # --- stops

    async def step(self) -> GuestStopped:
        """Execute one instruction of a stopped machine; the stop behind it."""
        with self.stops() as stopped:
            self.target.step()
            return await self._reached(stopped)

    async def interrupt(self) -> GuestStopped | None:
        """Stop the machine; None when it stands already."""
        # Heard before it is looked at: it may stop by itself in between.
        with self.stops() as stopped:
            if not self.target.running:
                return None
            self.target.interrupt()
            return await self._reached(stopped)

    async def _reached(self, stopped: asyncio.Future[GuestStopped]) -> GuestStopped:
        """Wait for a stop that is on its way; raises CommandError after five seconds without one."""
        try:
            async with asyncio.timeout(STOP_SECONDS):  # wait_for would lose a Ctrl-C that comes with the stop
                return await asyncio.shield(stopped)
        except TimeoutError:
            raise CommandError(f"the machine did not stop within {STOP_SECONDS:.0f} s; try `stop` again") from None
        except asyncio.CancelledError:
            # The stop comes all the same, and the next command must not meet it.
            await asyncio.wait([stopped], timeout=GIVE_UP_SECONDS)
            raise

    @contextmanager
    def stops(self) -> Iterator[asyncio.Future[GuestStopped]]:
        """A future of the next stop; CommandError in it when the enclave ends instead."""
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[GuestStopped] = loop.create_future()

        def tell(event: Event) -> None:
            if stopped.done():
                return
            if isinstance(event, GuestStopped):
                stopped.set_result(event)
            else:
                stopped.set_exception(CommandError(ENDED))

        def listen(record: Record) -> None:
            if isinstance(record.event, GuestStopped) or record.event.kind == "verdict":
                loop.call_soon_threadsafe(tell, record.event)

        unsubscribe = self.enclave.events.subscribe(listen)
        try:
            yield stopped
        finally:
            unsubscribe()
            stopped.cancel()

    async def while_stopped(self, change: Callable[[], _T]) -> _T:
        """Do a change that needs a stopped machine; one that runs is stopped for the moment it takes.

        When something else stopped it just then, such as a breakpoint, it stays stopped.
        """
        self.require_alive()
        # Heard before it is looked at: it may stop by itself in between.
        with self.stops() as stopped:
            if not self.target.running:
                return change()
            if self.debugger():
                raise CommandError("gdb is attached, and would be disturbed; do it there, or `stop` first")
            self.hushed = True
            try:
                self.target.interrupt()
                await self._reached(stopped)
                return change()
            finally:
                stop = stopped.result() if stopped.done() and stopped.exception() is None else None
                if stop is not None and stop.reason == INTERRUPTED:
                    self._resume_quietly()
                else:
                    self.hushed = False
                    if stop is not None and self.tell is not None:
                        self.tell(lines(f"stop: {stop.summary()}", "value"))

    def _resume_quietly(self) -> None:
        """Resume, and be hushed until that is over: it happens on the vCPU's thread."""

        def listen(record: Record) -> None:
            if record.event.kind in ("resume", "verdict"):
                unsubscribe()
                self.hushed = False

        unsubscribe = self.enclave.events.subscribe(listen)
        try:
            self.target.resume()
        except EnclaveDbgError:
            # The run has ended, or somebody else has resumed it, before anyone listened.
            unsubscribe()
            self.hushed = False

    def require_alive(self) -> None:
        """Raise CommandError when the enclave has ended."""
        if self.enclave.verdict is not None:
            raise CommandError(ENDED)

    def require_control(self) -> None:
        """Raise CommandError when the machine is not ours to resume: it has ended, or gdb has it."""
        self.require_alive()
        if self.debugger():
            raise CommandError("gdb is attached, and would not know; continue or step there, or detach it first")

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on with something after its command has returned, until the session is closed."""
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def add_breakpoint(self, address: int, text: str) -> Breakpoint:
        """Set a breakpoint and give it a number."""
        self.target.add_breakpoint(address, owner=OWNER)
        point = Breakpoint(self._next_number, address, text)
        self._next_number += 1
        self.breakpoints[point.number] = point
        return point

    def add_catchpoint(self, point: Catchpoint) -> int:
        """Set a catchpoint; its number is one of the same series as the breakpoints'."""
        number = self._next_number
        self._next_number += 1
        self.enclave.catchpoints.add(number, point)
        return number

    def remove_breakpoint(self, number: int) -> Breakpoint:
        """Take a breakpoint away; raises CommandError when there is none of that number."""
        point = self.breakpoints.get(number)
        if point is None:
            raise CommandError(f"there is no breakpoint {number}; `break` lists them")
        self.target.remove_breakpoint(point.address, owner=OWNER)
        del self.breakpoints[number]
        return point

    def close(self) -> None:
        """Stop reading symbols; the machine keeps no breakpoint of ours."""
        for task in (self._symbols, self._orc, self._btf, *self._late):
            if task is not None:
                task.cancel()
        for number, _ in self.enclave.catchpoints.listing():
            self.enclave.catchpoints.remove(number)
        self.target.clear_owner(OWNER)


REGISTER_NAMES = (
    "rip",
    "rsp",
    "rbp",
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    *(f"r{n}" for n in range(8, 16)),
    "cr3",
)
"""What `$` may be followed by, besides."""


def register_value(state: CpuState, name: str) -> int:
    """A register by name: general ones, rip, pc, sp, eflags, control registers, segment bases."""
    name = {"pc": "rip", "sp": "rsp", "fp": "rbp"}.get(name, name)
    if name in state.regs:
        return state.regs[name]
    if name in ("eflags", "rflags"):
        return state.rflags
    if name in ("rip", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        return int(getattr(state, name))
    if name in ("fs_base", "gs_base"):
        return state.segments[name[:2]].base
    raise CommandError(f"there is no register ${name}; expected e.g. $rip, $rax, $cr3, $gs_base")
