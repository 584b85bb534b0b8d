"""The demo: the image that comes with the package, in a live shell or, without a terminal, in a checked tour."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enclavedbg import __version__
from enclavedbg.errors import EnclaveDbgError, MachineError
from enclavedbg.machine.events import BootStage, ConsoleLine, Record
from enclavedbg.options import LOOPBACK, Address, Options, OutputError
from enclavedbg.runner import Departed, Departure, config_of, powered, run_loop, serving_gdb, wants_shell

if TYPE_CHECKING:
    from enclavedbg.gdbstub.server import GdbServer
    from enclavedbg.machine.enclave import Enclave

ECHO_PORT = 5000
ATTESTATION_PORT = 5001
CONTROL_PORT = 5002
GDB_PORT = 1234
READY_LINE = "demo: ready"
STAGES = ("eif-read", "measured", "kernel-entered", "heartbeat")
"""Boot stages that the tour insists on, in their order."""

GREETING = """\
The demo enclave is up. Four things to try:
  attest hello             an attestation document, decoded and verified
  vsock send 5001 hex:ffffffffffffffffffffffff    the guest gets one: nsm explain
  vsock send 5000 hello    talk to the program in the enclave
  break __x64_sys_poll     then send again: it stops there; bt, step, c, delete
All commands: help. A bad end: vsock send 5002 panic. Leave: quit."""

BOOT_SECONDS = 60.0
STEP_SECONDS = 30.0


class StepFailed(EnclaveDbgError):
    """A step of the tour did not hold; the message says what was expected and what was found."""

    exit_status = 1


def image_path() -> Path:
    """The demo image inside the package."""
    path = Path(str(resources.files("enclavedbg") / "data" / "demo.eif"))
    if not path.exists():
        raise MachineError(f"the demo image {path} is missing; install enclavedbg again")
    return path


def run_demo(options: Options) -> int:
    """Run the demo: a shell on a terminal, otherwise the tour; the exit status."""
    options = replace(options, eif=image_path())
    if not wants_shell(options):
        return run_loop(_tour(options))
    from enclavedbg.runner import run_with_shell

    gdb = options.gdb or Address(LOOPBACK, _free_port(GDB_PORT))
    return run_with_shell(replace(options, gdb=gdb), greeting=GREETING)


def _free_port(wanted: int) -> int:
    """The wanted port of loopback, or 0 (any free one) when another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted


# --- the tour


@dataclass(slots=True)
class Tour:
    """The enclave of the tour, and when its command began (`time.monotonic`)."""

    enclave: Enclave
    gdb: GdbServer
    began: float
    step: int = 0
    failed: int = 0

    async def run(self, title: str, work: Callable[[Tour], Coroutine[Any, Any, str]]) -> bool:
        """Run one step, say what it found, and whether it held."""
        self.step += 1
        say(f"\n{self.step}. {title}")
        try:
            found = await asyncio.wait_for(work(self), BOOT_SECONDS if self.step == 1 else STEP_SECONDS)
        except TimeoutError:
            found, held = "no answer in time", False
        except EnclaveDbgError as error:
            found, held = str(error), False
        else:
            held = True
        self.failed += not held
        say(f"   {'held' if held else 'FAILED'}: {found}  [{time.monotonic() - self.began:.2f} s]")
        return held

    async def until(self, wanted: Callable[[Record], bool]) -> Record:
        """The first event, past or to come, that is wanted; raises StepFailed when the enclave ends before."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Record] = loop.create_future()

        def settle(record: Record) -> None:
            if not found.done():
                found.set_result(record)

        def listen(record: Record) -> None:
            if wanted(record) or record.event.kind == "verdict":
                loop.call_soon_threadsafe(settle, record)

        unsubscribe = self.enclave.events.subscribe(listen, replay=True)
        try:
            record = await found
        finally:
            unsubscribe()
        if not wanted(record):
            raise StepFailed(f"the enclave ended before: {record.event.summary()}")
        return record


def say(text: str) -> None:
    """A line of the tour, at once even into a pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError.of(error) from None


def expect(held: bool, failure: str) -> None:
    """Raise StepFailed unless something holds."""
    if not held:
        raise StepFailed(failure)


async def _tour(options: Options) -> int:
    from enclavedbg.shell.session import Session

    began = time.monotonic()
    config = replace(config_of(options), debug_mode=False, faults=(), ephemeral_authority=True)
    departure = Departure(asyncio.get_running_loop())
    say(f"enclavedbg {__version__}: a tour of the demo enclave, every step checked")
    try:
        async with powered(config) as enclave:
            session = Session(enclave)
            async with serving_gdb(enclave, options.gdb or Address(LOOPBACK, 0), session) as server:
                tour = Tour(enclave, server, began)
                await departure.or_(_steps(tour))
    except Departed as departed:
        return departed.status
    if tour.failed:
        say(f"\n{tour.failed} of {tour.step} steps did not hold; the console's last lines:")
        say("\n".join(enclave.console.text().splitlines()[-15:]))
        return 1
    say(f"\nAll {tour.step} steps held, in {time.monotonic() - began:.2f} s. With a terminal: a live shell, and gdb.")
    return 0


async def _steps(tour: Tour) -> None:
    tour.enclave.start()
    if not await tour.run("The image boots to the heartbeat of its init", boots):
        return
    await tour.run("The guest's own program reads the measurements of the file", measurements)
    await tour.run("An attestation document, asked for by a program in the guest", attestation)
    await tour.run("An echo through vsock", echo)
    await tour.run("gdb stops the running kernel at a function, by name", debugger)
    await tour.run("The program ends, and the enclave with it", ending)


async def boots(tour: Tour) -> str:
    """Boot stages, in order and with their times."""
    await tour.until(lambda r: isinstance(r.event, BootStage) and r.event.stage == "heartbeat")
    records = [r for r in tour.enclave.events.history("boot") if isinstance(r.event, BootStage)]
    for record in records:
        say(f"     {record.guest_ns / 1e9:8.3f} s  {record.event.summary()}")
    seen = [r.event.stage for r in records if isinstance(r.event, BootStage) and r.event.stage in STAGES]
    expect(seen == list(STAGES), f"the stages were {', '.join(seen)}; expected {', '.join(STAGES)}")
    return f"heartbeat after {records[-1].guest_ns / 1e9:.2f} s of guest time"


async def measurements(tour: Tour) -> str:
    """PCR0, 1 and 2 as the program in the guest printed them, against the file's."""
    await tour.until(lambda r: isinstance(r.event, ConsoleLine) and r.event.text.startswith(READY_LINE))
    from enclavedbg.eif import measure, read_eif

    computed = measure(read_eif(image_path())).as_mapping()
    printed = [r.event.summary() for r in tour.enclave.events.history("console")]
    for index in (0, 1, 2):
        line = f"PCR{index}: {computed[index].hex()}"
        expect(line in printed, f"the guest printed no line '{line[:30]}...'")
        say(f"     {line}")
    return "three equal to those computed from the file"


async def attestation(tour: Tour) -> str:
    """A document with our user data, nonce and key, verified against the development root."""
    from enclavedbg.nsm.roots import Root
    from enclavedbg.nsm.verify import verify
    from enclavedbg.shell.nsm_commands import describe_document
    from enclavedbg.shell.text import plain

    user_data, nonce, key = b"enclavedbg demo", secrets.token_bytes(32), secrets.token_bytes(64)
    request = b"".join(struct.pack(">I", len(field)) + field for field in (user_data, nonce, key))
    async with await tour.enclave.vsock.connect(ATTESTATION_PORT, label="demo") as stream:
        await stream.write(request)
        status, length = struct.unpack(">BI", await stream.read_exactly(5))
        expect(length <= 1 << 16, f"the guest announced {length} bytes")
        answer = await stream.read_exactly(length)
    expect(status == 0, f"the guest answered: {answer[:200].decode('utf-8', 'replace')}")
    module = tour.enclave.nsm
    report = verify(
        answer,
        roots=[Root.of(module.authority.root(), "the development root")],
        expect_pcrs=tour.enclave.measurements.as_mapping(),
        nonce=nonce,
        user_data=user_data,
        public_key=key,
    )
    say("".join(f"     {line}\n" for line in plain(describe_document(answer, report)).splitlines())[:-1])
    expect(report.valid, "; ".join(f"{failure.check.value}: {failure.reason}" for failure in report.failures))
    return "signature, certificate chain, PCRs, nonce, user data and key"


async def echo(tour: Tour) -> str:
    """Random bytes there and back."""
    data = secrets.token_bytes(100_000)
    began = time.monotonic()
    await _echo(tour.enclave, data)
    return f"{len(data)} random bytes there and back in {(time.monotonic() - began) * 1000:.0f} ms"


async def _echo(enclave: Enclave, data: bytes) -> None:
    async with await enclave.vsock.connect(ECHO_PORT, label="demo") as stream:

        async def send() -> None:
            await stream.write(data)
            stream.finish()

        _, answer = await asyncio.gather(send(), stream.read_all())
    expect(answer == data, f"{len(data)} bytes were sent, and {len(answer)} other ones came back")


async def debugger(tour: Tour) -> str:
    """A real gdb, over its machine interface."""
    from enclavedbg.demo_gdb import visit

    host, port = tour.gdb.address
    return await visit(tour.enclave, f"{host}:{port}", poke=lambda: _echo(tour.enclave, b"wake up"), say=say)


async def ending(tour: Tour) -> str:
    """The control port's `exit 0`, and the verdict."""
    async with await tour.enclave.vsock.connect(CONTROL_PORT, label="demo") as stream:
        await stream.write(b"exit 0\n")
        answer = await stream.read_exactly(3)
    expect(answer == b"ok\n", f"the control port answered {answer!r}")
    verdict = await tour.enclave.wait_ended()
    expect(verdict.exit_status == 0, verdict.line)
    return verdict.line
