"""Runs one enclave from power-on to its end: the machine, gdb's server, and the shell or the console's text."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from enclavedbg.machine.events import ConsoleLine, GuestWarning, Record
from enclavedbg.options import Address, Options, OutputError, UsageError

if TYPE_CHECKING:
    from enclavedbg.gdbstub.monitor import MonitorCommand
    from enclavedbg.gdbstub.server import GdbServer
    from enclavedbg.machine.enclave import Enclave, EnclaveConfig
    from enclavedbg.shell.prompt import Shell
    from enclavedbg.shell.session import Session

log = logging.getLogger(__name__)

_T = TypeVar("_T")

UNREAD_LIMIT = 64 << 20
"""Characters of console kept for a standard output that nobody reads."""

LAST_WORDS_SECONDS = 0.5
"""How long an interrupted run waits for a terminal that takes no text."""

GREETING = "Commands: help (Tab completes). Leave: quit."

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
BROKEN_PIPE = 141


class Departed(Exception):
    """The run is to end now, whatever the guest does: a signal came, or nobody reads our output."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Printer:
    """Writes lines on a thread of its own: neither the vCPU nor the event loop ever waits for a slow terminal."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, on_broken: Callable[[], object]) -> None:
        self._loop = loop
        self._on_broken = on_broken
        self._queue: queue.SimpleQueue[tuple[TextIO, str] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unread = 0
        self._lost = 0
        self.failure: OutputError | None = None
        """Why nothing can be written, where the reader did not just go away."""
        self._done: asyncio.Future[None] = loop.create_future()
        threading.Thread(target=self._write, name="enclavedbg-printer", daemon=True).start()

    def line(self, text: str) -> None:
        """A line for standard output, from any thread."""
        self._put(sys.stdout, text)

    def warning(self, text: str) -> None:
        """A line for standard error, in order with the others."""
        self._put(sys.stderr, f"enclavedbg: {text}")

    def observe(self, record: Record) -> None:
        """An event stream subscriber: the console, and what went wrong."""
        if isinstance(record.event, ConsoleLine):
            self.line(record.event.text)
        elif isinstance(record.event, GuestWarning):
            self.warning(record.event.summary())

    async def close(self) -> None:
        """Wait until everything is written."""
        self._queue.put(None)
        await self._done

    def _put(self, stream: TextIO, text: str) -> None:
        with self._lock:
            if self._unread + len(text) > UNREAD_LIMIT:
                self._lost += 1
                return
            if self._lost:
                text = f"[{self._lost} lines are missing here: nobody read them]\n{text}"
                self._lost = 0
            self._unread += len(text)
        self._queue.put((stream, text))

    def _write(self) -> None:
        broken = False
        while (item := self._queue.get()) is not None:
            stream, text = item
            with self._lock:
                self._unread -= len(text)
            if broken:
                continue
            try:
                stream.write(_encodable(text, stream) + "\n")
                if self._queue.empty():
                    stream.flush()
            except (OSError, ValueError) as error:
                broken = True
                if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                    self.failure = OutputError.of(error)
                self._tell(self._on_broken)
        self._tell(self._finish)

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _tell(self, what: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            log.debug("the event loop is closed")


def _encodable(text: str, stream: TextIO) -> str:
    """The guest may write what a terminal that is not on UTF-8 cannot show: that is escaped."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class Departure:
    """What may end a run early: signals, and a standard output that is gone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wanted: asyncio.Future[int] = loop.create_future()
        self.give_up: Callable[[], bool] = lambda: False
        """Takes Ctrl-C for something smaller than the run; False when there is nothing."""
        for name, status in SIGNALS.items():
            number = getattr(signal, name, None)
            if number is not None:
                try:
                    loop.add_signal_handler(number, self._signalled, status)
                except (NotImplementedError, RuntimeError, ValueError):
                    log.debug("%s cannot be handled here", name)

    def _signalled(self, status: int) -> None:
        if status != SIGNALS["SIGINT"] or not self.give_up():
            self.depart(status)

    def depart(self, status: int) -> None:
        """End the run with this exit status."""
        if not self._wanted.done():
            self._wanted.set_result(status)

    async def or_(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`; raises Departed, and cancels it, when the run is to end first."""
        task = asyncio.get_running_loop().create_task(work)
        either: set[asyncio.Future[Any]] = {task, self._wanted}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Departed(self._wanted.result())
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def powered(config: EnclaveConfig, observe: Callable[[Record], None] | None = None) -> AsyncIterator[Enclave]:
    """An enclave with its image in it, not yet started; closed at the end."""
    from enclavedbg.machine.enclave import Enclave

    enclave = Enclave(config, loop=asyncio.get_running_loop(), observe=observe)
    try:
        yield enclave
    finally:
        await enclave.close()


@asynccontextmanager
async def serving_gdb(enclave: Enclave, address: Address, session: Session) -> AsyncIterator[GdbServer]:
    """gdb's server at an address; closed at the end. Raises MachineError when the address cannot be had."""
    from enclavedbg.gdbstub.server import GdbServer
    from enclavedbg.kernel import symbolfile
    from enclavedbg.machine.verdict import Outcome

    server = GdbServer(
        enclave.debug,
        enclave.events,
        symbol_file=lambda: symbolfile.build(enclave.kernel_elf),
        kernel=enclave.kernel_elf,
        commands=monitor_commands(session),
        end_guest=lambda: enclave.end(Outcome.INTERRUPTED, "the enclave ended: gdb killed it"),
    )
    await server.start(address.host, address.port)
    session.debugger = lambda: server.attached
    try:
        yield server
    finally:
        await server.close()


def monitor_commands(session: Session) -> list[MonitorCommand]:
    """The shell's commands for gdb's `monitor`: all but those that gdb has itself."""
    from enclavedbg.gdbstub.monitor import MonitorCommand
    from enclavedbg.shell.commands import COMMANDS
    from enclavedbg.shell.table import Handler
    from enclavedbg.shell.text import plain

    def runner(handler: Handler) -> Callable[[list[str]], Awaitable[str]]:
        async def run_command(words: list[str]) -> str:
            return plain(await handler(session, words))

        return run_command

    return [
        MonitorCommand(c.name, c.summary, runner(c.run), plain(COMMANDS.help(c.name))) for c in COMMANDS if c.monitor
    ]


def config_of(options: Options) -> EnclaveConfig:
    """The machine that the options describe."""
    from enclavedbg.machine.enclave import EnclaveConfig
    from enclavedbg.nsm.document import MapEncoding

    assert options.eif is not None
    return EnclaveConfig(
        options.eif,
        memory=options.memory,
        cpu=options.cpu,
        cid=options.cid,
        debug_mode=options.debug_mode,
        role_arn=options.role_arn,
        instance_id=options.instance_id,
        seed=options.seed,
        ephemeral_authority=options.ephemeral_authority,
        map_encoding=MapEncoding(options.map_encoding),
        faults=options.faults,
        vsock_dir=options.vsock,
        console_file=options.console,
    )


def wants_shell(options: Options) -> bool:
    """Whether the person can use a shell and did not refuse it."""
    return options.shell and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def run(options: Options) -> int:
    """Run an image as the options say; the exit status. Raises EnclaveDbgError for bad input."""
    return run_loop(_run(options, greeting=GREETING if wants_shell(options) else None))


def run_with_shell(options: Options, *, greeting: str) -> int:
    """Run an image in the shell, which begins with a greeting; the exit status."""
    return run_loop(_run(options, greeting=greeting))


def run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end on an event loop of its own; a signal ends it within a second."""
    set_up_logging()
    with asyncio.Runner() as runner:
        status = runner.run(work)
        if status > 128 and any(not t.daemon and t is not threading.main_thread() for t in threading.enumerate()):
            # A worker thread still reads symbols; everything else was given back, and the person wants out.
            sys.stdout.flush()
            os._exit(status)
    return status


def set_up_logging() -> None:
    """Warnings go to standard error as one line each; $ENCLAVEDBG_LOG names another level."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # The stream of now: the shell replaces it while its prompt is up.
            sys.stderr.write(self.format(record) + "\n")

    handler = Handler()
    handler.setFormatter(logging.Formatter("enclavedbg: %(message)s"))
    level = os.environ.get("ENCLAVEDBG_LOG", "warning").upper()
    logging.getLogger("enclavedbg").handlers[:] = [handler]
    logging.getLogger("enclavedbg").setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")


async def _run(options: Options, *, greeting: str | None) -> int:
    """One run; `greeting` opens a shell with it, None prints the console instead."""
    if options.wait and options.gdb is None and greeting is None:
        raise UsageError("--wait stops before the first instruction, and nobody could go on; add --gdb :1234")
    loop = asyncio.get_running_loop()
    departure = Departure(loop)
    printer = Printer(loop, on_broken=lambda: departure.depart(BROKEN_PIPE))
    try:
        async with powered(config_of(options), printer.observe if greeting is None else None) as enclave:
            status = await departure.or_(_inside(options, enclave, printer, departure, greeting=greeting))
            line = _last_line(enclave)
        printer.line(line)
        await departure.or_(printer.close())
    except Departed as departed:
        if printer.failure is not None:
            raise printer.failure from None
        if departed.status != BROKEN_PIPE:
            printer.warning("interrupted")
            with suppress(TimeoutError):
                await asyncio.wait_for(printer.close(), LAST_WORDS_SECONDS)
        return departed.status
    return status


def _last_line(enclave: Enclave) -> str:
    verdict = enclave.verdict
    return f"enclavedbg: {verdict.line if verdict else 'left before the enclave ended'}"


async def _inside(
    options: Options, enclave: Enclave, printer: Printer, departure: Departure, *, greeting: str | None
) -> int:
    """From power-on to the end, whichever way it comes."""
    from enclavedbg.shell.session import Session

    session = Session(enclave)
    shell = None
    try:
        if greeting is not None:
            from enclavedbg.shell.prompt import Shell

            shell = Shell(session, greeting=greeting)
            departure.give_up = shell.interrupt
        if options.gdb is None:
            return await _until_end(options, enclave, shell)
        async with serving_gdb(enclave, options.gdb, session) as server:
            bound = Address(*server.address)
            session.notes["gdb"] = str(bound)
            if options.gdb.public:
                printer.warning(
                    f"gdb may connect to {bound} from other machines, and do with this process what it likes"
                )
            printer.warning(f"gdb may attach: gdb -ex 'target remote {bound}'")
            return await _until_end(options, enclave, shell)
    finally:
        session.close()


async def _until_end(options: Options, enclave: Enclave, shell: Shell | None) -> int:
    enclave.start(halted=options.wait)
    timer = None
    if options.timeout is not None:
        timer = asyncio.get_running_loop().call_later(options.timeout, enclave.time_out, options.timeout)
    try:
        if shell is None:
            await enclave.wait_ended()
        else:
            await open_shell(shell)
    finally:
        if timer is not None:
            timer.cancel()
    return enclave.verdict.exit_status if enclave.verdict is not None else 0


async def open_shell(shell: Shell) -> None:
    """The shell, until the person leaves it; raises Departed on Ctrl-C."""
    from enclavedbg.shell.prompt import Interrupted

    try:
        await shell.run()
    except Interrupted:
        raise Departed(SIGNALS["SIGINT"]) from None
