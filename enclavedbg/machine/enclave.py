"""One enclave: composes memory, CPU engine, bus, devices and firmware, and carries it from power-on to verdict."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from enclavedbg.eif import EifImage, Measurements, read_eif
from enclavedbg.errors import EifError, MachineError, NsmError
from enclavedbg.machine.bus import Bus
from enclavedbg.machine.catchpoints import Catchpoints
from enclavedbg.machine.chipset.board import Board
from enclavedbg.machine.clock import SEEDED_START, Clock, SteppedTime, entropy_source
from enclavedbg.machine.console import Console
from enclavedbg.machine.cpu.engine import CpuEngine
from enclavedbg.machine.cpu.soft.engine import SoftEngine
from enclavedbg.machine.debug import DebugTarget
from enclavedbg.machine.events import BootStage, Event, EventStream, GuestWarning, Record
from enclavedbg.machine.firmware import BootedKernel, Firmware, image_memory_needed, load_image
from enclavedbg.machine.layout import NSM_IRQ, NSM_WINDOW, VIRTIO_WINDOW_SIZE, VSOCK_IRQ, VSOCK_WINDOW
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.vcpu import RunState, VirtualCpu
from enclavedbg.machine.verdict import Outcome, Verdict, Witness
from enclavedbg.machine.virtio.device import VirtioDevice
from enclavedbg.machine.virtio.mmio import VirtioMmio
from enclavedbg.machine.virtio.nsm import VirtioNsm
from enclavedbg.machine.virtio.vsock import VirtioVsock
from enclavedbg.nsm.authority import Authority, default_folder
from enclavedbg.nsm.document import MapEncoding
from enclavedbg.nsm.faults import Fault
from enclavedbg.nsm.module import SecureModule, make_instance_id, make_module_id
from enclavedbg.nsm.pcr import identity_registers
from enclavedbg.vsock.events import VsockHeartbeat
from enclavedbg.vsock.switch import VsockSwitch
from enclavedbg.vsock.unix import UnixEndpoints

log = logging.getLogger(__name__)

DEFAULT_MEMORY = 512 << 20
"""Bytes of RAM, unless the image needs more or the user says otherwise."""

DEFAULT_CID = 16
"""The first CID that the Nitro hypervisor gives."""

CpuChoice = Literal["auto", "soft", "kvm"]


@dataclass(frozen=True, slots=True)
class EnclaveConfig:
    """What a run is made of.

    `memory` is in bytes, None for the default; `vsock_dir` gets the Unix sockets of the hybrid convention;
    `state_dir` keeps the authority, None for the user's own; `ephemeral_authority` makes one for this run alone.
    `role_arn` and `instance_id` are the parent's, for PCR3 and PCR4; without an id one is made up. With `seed`, what
    the module answers and how it dates and signs documents repeats in every run, under a root that follows from the
    seed. `faults` are those in force from the start. `native=False` keeps to the CPU's Python path.
    """

    eif: Path | bytes
    memory: int | None = None
    cpu: CpuChoice = "auto"
    cid: int = DEFAULT_CID
    debug_mode: bool = False
    vsock_dir: Path | None = None
    console_file: Path | None = None
    state_dir: Path | None = None
    ephemeral_authority: bool = False
    role_arn: str | None = None
    instance_id: str | None = None
    seed: int | None = None
    map_encoding: MapEncoding = MapEncoding.INDEFINITE
    faults: tuple[Fault, ...] = ()
    describe_devices: Literal["auto", "cmdline", "acpi"] = "auto"
    native: bool = True


class Enclave:
    """A machine with an image in it, standing before the kernel's first instruction once it is made.

    Made on the event loop's thread; that takes some tenths of a second and raises EifError or MachineError when
    image and machine do not fit. Then `start`; everything that happens is on `events`, `debug` looks inside, and
    `close` gives everything back.
    """

    def __init__(
        self,
        config: EnclaveConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        observe: Callable[[Record], None] | None = None,
    ) -> None:
        if config.cpu == "kvm":
            raise MachineError("--cpu kvm: this release runs on the software CPU only; use --cpu soft or leave it out")
        self.config = config
        self._loop = loop
        self._ended = asyncio.Event()
        self._endpoints: UnixEndpoints | None = None
        self._closed = False
        self._preparing = threading.Thread(target=self._prepare, name="enclavedbg-prepare", daemon=True)
        self.clock = Clock(start=None if config.seed is None else SEEDED_START)
        self.events = EventStream(self.clock.guest_ns)
        self._witness = Witness()
        self.events.subscribe(self._witness)
        self.events.subscribe(self._on_event)
        if observe is not None:
            self.events.subscribe(observe)
        self.image: EifImage = read_eif(config.eif)
        with contextlib.ExitStack() as made:
            self.memory = GuestMemory(_memory_size(self.image, config.memory))
            made.callback(self.memory.close)
            load_image(self.image, self.memory)
            self.booted: BootedKernel = Firmware(
                self.memory, self.publish, describe_devices=config.describe_devices
            ).boot(image_size=self.image.size)
            self.console = Console(self.publish, file=config.console_file)
            made.callback(self.console.close)
            self._compose(made)
            self._made = made.pop_all()

    def _compose(self, made: contextlib.ExitStack) -> None:
        """The machine around memory, firmware and console; what has to be given back goes on `made`."""
        self.bus = Bus()
        self.board = Board(
            self.bus,
            self.clock,
            self.console,
            reset=lambda: self.vcpu.guest_reset(),
            power_off=lambda: self.vcpu.guest_power_off(),
        )
        self.engine: CpuEngine = SoftEngine(
            self.memory, self.bus, interrupts=self.board.pic, use_native=self.config.native
        )
        made.callback(self.engine.close)
        self.engine.load_state(self.booted.state)
        self.vcpu = VirtualCpu(self.engine, self.board, self.clock, events=self.events, witness=self._witness)
        made.callback(self.vcpu.close)
        self.debug = DebugTarget(self.vcpu, self.memory)
        self.nsm = self._make_module(self.booted.measurements)
        self.vsock = VsockSwitch(self.config.cid, self._loop, publish=self.publish, now_ns=self.clock.guest_ns)
        self._attach(VirtioVsock(self.vsock, post=self.vcpu.post), VSOCK_WINDOW, VSOCK_IRQ)
        self._attach(VirtioNsm(self.nsm, schedule=self.vcpu), NSM_WINDOW, NSM_IRQ)
        self.catchpoints = Catchpoints(stop=self.vcpu.catch, on_change=self.engine.set_exact_stops)
        self.events.subscribe(self.catchpoints)

    def _make_module(self, measurements: Measurements) -> SecureModule:
        config = self.config
        identity = entropy_source(config.seed, "identity")
        instance_id = config.instance_id or make_instance_id(identity)
        stepped = SteppedTime(SEEDED_START)
        module = SecureModule(
            authority=seeded_authority(config.seed, now=stepped.peek) if config.seed is not None else self._authority(),
            measurements=measurements.as_mapping()
            | identity_registers(instance_id=instance_id, role_arn=config.role_arn),
            module_id=make_module_id(identity, instance_id=instance_id),
            now=self.clock.host_now if config.seed is None else stepped,
            random_bytes=entropy_source(config.seed, "answers"),
            debug_mode=config.debug_mode,
            emit=self.publish,
            map_encoding=config.map_encoding,
        )
        for fault in config.faults:
            module.faults.add(fault)
        return module

    def _authority(self, *, ephemeral: bool = False) -> Authority:
        folder = None
        if not self.config.ephemeral_authority and not ephemeral:
            folder = self.config.state_dir or default_folder(os.environ)
        return Authority(folder, now=self.clock.host_now, random_bytes=entropy_source())

    def _attach(self, device: VirtioDevice, window: int, irq: int) -> None:
        transport = VirtioMmio(device, self.memory, irq=self.board.pic.line(irq), publish=self.publish)
        self.bus.attach_mmio(window, VIRTIO_WINDOW_SIZE, transport)

    # ---- what happens ----

    def publish(self, event: Event) -> None:
        """Put an event on the stream; any thread."""
        self.events.publish(event)

    def _on_event(self, record: Record) -> None:
        match record.event:
            case VsockHeartbeat(ok=True):
                self.publish(BootStage("heartbeat", "the guest's init reported to the parent"))
            case Verdict():
                self._loop.call_soon_threadsafe(self._ended.set)

    # ---- run ----

    @property
    def measurements(self) -> Measurements:
        """PCR0, 1, 2 and 8 of the image, as the firmware found them."""
        return self.booted.measurements

    @property
    def kernel_elf(self) -> bytes:
        """The unpacked kernel."""
        return self.booted.kernel_elf

    @property
    def running(self) -> bool:
        return self.vcpu.state is RunState.RUNNING

    @property
    def verdict(self) -> Verdict | None:
        """How the run ended, None while it goes on."""
        return self.vcpu.verdict

    def start(self, *, halted: bool = False) -> None:
        """Start the machine, or with `halted` only its threads: it then waits for `debug.resume`.

        Raises VsockError when the socket directory cannot be used.
        """
        if self.config.vsock_dir is not None:
            self._endpoints = UnixEndpoints(self.config.vsock_dir, self.vsock)
            self._endpoints.open()
        self._preparing.start()
        self.vcpu.start()
        self.publish(BootStage("kernel-entered", f"rip {self.booted.entry:#x}{', halted' if halted else ''}"))
        if not halted:
            self.vcpu.resume()

    def _prepare(self) -> None:
        """What loads cryptography, done beside the boot: the authority's keys, and the image's own signature."""
        try:
            self.nsm.prepare()
        except NsmError as error:
            if self.config.seed is not None:
                self.publish(GuestWarning("nsm", f"{error}. Until then no documents are signed"))
            else:
                until = "Until then documents are signed under a root of this run only"
                self.nsm.authority = self._authority(ephemeral=True)
                self.publish(GuestWarning("nsm", f"{error}. {until}"))
                self.nsm.prepare()
        if self.image.signature is not None:
            from enclavedbg.eif.signature import read_signature, verify_signature

            try:
                verify_signature(read_signature(self.image.signature), self.measurements.pcr0, at=self.clock.host_now())
            except EifError as error:
                self.publish(GuestWarning("eif", f"{error} (nitro-cli run-enclave would not start this image)"))

    async def wait_ended(self) -> Verdict:
        """Wait for the verdict."""
        await self._ended.wait()
        assert self.vcpu.verdict is not None
        return self.vcpu.verdict

    def end(self, outcome: Outcome, line: str) -> None:
        """End the run from outside; the verdict follows as an event."""
        self.vcpu.end(Verdict(outcome, line))

    def time_out(self, seconds: float) -> None:
        """End the run because the user's time limit of `seconds` passed; says where the guest was."""
        self.vcpu.end_with(lambda rip: self._witness.timed_out(seconds, rip))

    async def close(self) -> None:
        """Stop the machine and give back threads, sockets, files and memory. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with self._made:
            if self._preparing.is_alive():
                await asyncio.to_thread(self._preparing.join)
            await asyncio.to_thread(self.vcpu.close)
            await self.vsock.close()


def seeded_authority(seed: int, *, now: Callable[[], datetime] = lambda: SEEDED_START) -> Authority:
    """The authority of runs with this seed: who knows the number has its keys, so it is good for tests alone."""
    return Authority(None, now=now, random_bytes=entropy_source(seed, "authority"), repeatable=True)


def _memory_size(image: EifImage, asked: int | None) -> int:
    """Bytes of RAM: what was asked for, or a default in which the image can run."""
    if asked is not None:
        return asked
    # nitro-cli asks for four times the image at least.
    quadruple = -(-4 * image.size // (1 << 20)) << 20
    return max(DEFAULT_MEMORY, image_memory_needed(image), quadruple)
