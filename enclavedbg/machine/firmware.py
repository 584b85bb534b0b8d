"""The firmware: from the enclave image in guest memory to a kernel about to run.

As on Nitro, the image lies in the guest's memory when the machine starts; the firmware checks and measures it
there, then puts kernel, ramdisk and boot structures where Linux wants them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from enclavedbg.eif import EifImage, Measurements, file_size, measure, read_eif
from enclavedbg.eif.bzimage import BzImage, UnpackedKernel, parse_bzimage, unpack_kernel
from enclavedbg.eif.format import HEADER_SIZE
from enclavedbg.eif.ramdisk import unpacked_size
from enclavedbg.errors import EifError, GuestFault, MachineError
from enclavedbg.machine.boot.acpi import VirtioWindow, build_tables
from enclavedbg.machine.boot.bootparams import Placement, boot_params, memory_map
from enclavedbg.machine.boot.cpustate import entry_state
from enclavedbg.machine.boot.elf import KernelElf, check_fit, load_kernel, parse_kernel_elf
from enclavedbg.machine.boot.placement import memory_needed, place_initrd, too_little_memory
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.machine.events import BootStage, Event
from enclavedbg.machine.layout import (
    BOOT_PARAMS,
    EIF_LOAD_ADDRESS,
    HIGH_MEMORY,
    KERNEL_CMDLINE,
    LOW_RAM_END,
    LOW_RAM_LIMIT,
    NSM_IRQ,
    NSM_WINDOW,
    VIRTIO_WINDOW_SIZE,
    VSOCK_IRQ,
    VSOCK_WINDOW,
)
from enclavedbg.machine.memory import GuestMemory

log = logging.getLogger(__name__)

DescribeDevices = Literal["auto", "cmdline", "acpi"]
"""How the kernel learns of its devices; `auto` looks whether it can be told on its command line."""

CMDLINE_DEVICES_MARK = b"virtio-mmio-cmdline"
"""A name in every kernel built with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES, and in no other."""

DEVICES = (
    VirtioWindow("VSCK", VSOCK_WINDOW, VIRTIO_WINDOW_SIZE, VSOCK_IRQ),
    VirtioWindow("NSM", NSM_WINDOW, VIRTIO_WINDOW_SIZE, NSM_IRQ),
)


@dataclass(frozen=True, slots=True)
class BootedKernel:
    """What the firmware leaves behind: the CPU about to enter the kernel, and what it found and did.

    `kernel_elf` is the unpacked kernel (vmlinux without symbols), `entry` a physical address, `initrd` None without
    ramdisks, `cmdline` what the kernel was given (the image's own is what is measured).
    """

    state: CpuState
    measurements: Measurements
    kernel_elf: bytes
    kernel_version: str
    entry: int
    kernel: Placement
    initrd: Placement | None
    cmdline: bytes
    described_by: Literal["cmdline", "acpi"]


def image_memory_needed(image: EifImage) -> int:
    """Bytes of RAM, in whole MiB, that a machine for this image needs at least; raises EifError for a bad kernel.

    Judged by the kernel's header and an estimate of what the ramdisks unpack to, without unpacking anything.
    """
    header = parse_bzimage(_kernel_for_this_machine(image)).header
    needed = _memory_needed(image, kernel_end=header.pref_address + header.init_size)
    return max(needed, -(-(EIF_LOAD_ADDRESS + image.size) // (1 << 20)) << 20)


def load_image(image: EifImage, memory: GuestMemory) -> None:
    """Put the image where the hypervisor would; raises MachineError when the memory is too small for it."""
    needed = image_memory_needed(image)
    if memory.size < EIF_LOAD_ADDRESS + image.size:
        raise too_little_memory(needed, memory.size)
    if not memory.contains(EIF_LOAD_ADDRESS, image.size):
        raise MachineError(
            f"the image has {image.size >> 20} MiB, at most {(LOW_RAM_LIMIT - EIF_LOAD_ADDRESS) >> 20} MiB fit below "
            "the device windows; make its ramdisks smaller"
        )
    memory.write(EIF_LOAD_ADDRESS, image.data)


class Firmware:
    """Boots the image that lies at layout.EIF_LOAD_ADDRESS of `memory`.

    Every step is published as a BootStage with what it took, by `monotonic_ns` of the host.
    """

    def __init__(
        self,
        memory: GuestMemory,
        publish: Callable[[Event], object],
        *,
        describe_devices: DescribeDevices = "auto",
        devices: Sequence[VirtioWindow] = DEVICES,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if describe_devices not in ("auto", "cmdline", "acpi"):
            raise MachineError(f"devices described by {describe_devices!r}: expected auto, cmdline or acpi")
        self._memory = memory
        self._publish = publish
        self._describe = describe_devices
        self._devices = tuple(devices)
        self._monotonic_ns = monotonic_ns
        self._since = 0

    def boot(self, *, image_size: int | None = None) -> BootedKernel:
        """Check, measure, unpack and place; `image_size` in bytes, by default what the image's header says.

        Raises EifError for a bad image or kernel and MachineError for too little memory; guest memory above the
        image may then have changed, the CPU has not.
        """
        self._since = self._monotonic_ns()
        image = read_eif(self._image_bytes(image_size))
        self._stage("eif-read", f"{_size(image.size)}, version {image.header.version}, {len(image.sections)} sections")
        measurements = measure(image)
        self._stage("measured", f"PCR0 {measurements.pcr0.hex()[:16]}...")
        bzimage = parse_bzimage(_kernel_for_this_machine(image))
        unpacked = unpack_kernel(bzimage)
        elf = parse_kernel_elf(unpacked.elf)
        self._stage("kernel-unpacked", _kernel_detail(image, bzimage, unpacked))
        initrd = self._find_room(image, elf, initrd_max=bzimage.header.initrd_addr_max)
        method = self._method(unpacked.elf)
        cmdline = self._cmdline(image, bzimage, method)

        # All checks are done. From here on the image's own place in memory may be overwritten: it was copied out.
        self._memory.fill_zero(0, HIGH_MEMORY)
        load_kernel(elf, self._memory)
        if initrd is not None:
            _write_ramdisks(image, self._memory, initrd)
        self._memory.write(KERNEL_CMDLINE, cmdline + b"\0")
        rsdp = self._write_acpi() if method == "acpi" else 0
        page = boot_params(
            bzimage.header, memory=memory_map(self._memory.regions), cmdline=KERNEL_CMDLINE, initrd=initrd, rsdp=rsdp
        )
        self._memory.write(BOOT_PARAMS, page)
        state = entry_state(self._memory, elf.entry)
        self._stage("kernel-placed", _placed_detail(elf, initrd, method))
        return BootedKernel(
            state=state,
            measurements=measurements,
            kernel_elf=unpacked.elf,
            kernel_version=bzimage.header.kernel_version,
            entry=elf.entry,
            kernel=Placement(elf.start, elf.end - elf.start),
            initrd=initrd,
            cmdline=cmdline,
            described_by=method,
        )

    def _image_bytes(self, image_size: int | None) -> bytes:
        try:
            if image_size is None:
                image_size = file_size(self._memory.read(EIF_LOAD_ADDRESS, HEADER_SIZE))
            return self._memory.read(EIF_LOAD_ADDRESS, image_size)
        except GuestFault as error:
            raise MachineError(
                f"no enclave image fits at {EIF_LOAD_ADDRESS:#x} of {self._memory.size >> 20} MiB; give more --memory"
            ) from error

    def _find_room(self, image: EifImage, elf: KernelElf, *, initrd_max: int) -> Placement | None:
        """Where the ramdisks go; raises MachineError when kernel and ramdisks do not fit."""
        needed = _memory_needed(image, kernel_end=elf.end)
        if self._memory.size < needed:
            raise too_little_memory(needed, self._memory.size)
        check_fit(elf, self._memory)
        size = sum(_padded(len(ramdisk)) for ramdisk in image.ramdisks)
        if size == 0:
            return None
        low_ram = self._memory.regions[0].size
        placement = place_initrd(size, ram_end=low_ram, address_max=initrd_max, kernel_end=elf.end)
        if placement is None:
            highest = min(low_ram, initrd_max + 1)
            raise MachineError(
                f"ramdisks of {_size(size)} do not fit between the kernel's end at {elf.end:#x} and {highest:#x}, the "
                "last place where this kernel accepts them; make them smaller"
            )
        return placement

    def _method(self, kernel_elf: bytes) -> Literal["cmdline", "acpi"]:
        if self._describe == "auto":
            return "cmdline" if CMDLINE_DEVICES_MARK in kernel_elf else "acpi"
        return self._describe

    def _cmdline(self, image: EifImage, bzimage: BzImage, method: Literal["cmdline", "acpi"]) -> bytes:
        words = [image.cmdline] if image.cmdline else []
        if method == "cmdline":
            words += [
                f"virtio_mmio.device={window.size >> 10}K@{window.base:#x}:{window.irq}".encode()
                for window in self._devices
            ]
        cmdline = b" ".join(words)
        room = min(bzimage.header.cmdline_size, LOW_RAM_END - KERNEL_CMDLINE - 1)
        if len(cmdline) > room:
            raise EifError(
                f"the command line has {len(cmdline)} bytes with the devices in it, this kernel takes {room}; "
                "build the image with a shorter one"
            )
        return cmdline

    def _write_acpi(self) -> int:
        tables = build_tables(self._devices)
        for address, blob in tables.blobs.items():
            self._memory.write(address, blob)
        return tables.rsdp

    def _stage(self, stage: str, detail: str) -> None:
        now = self._monotonic_ns()
        self._publish(BootStage(stage, f"{detail} ({(now - self._since) / 1e6:.1f} ms)"))
        self._since = self._monotonic_ns()


def _kernel_for_this_machine(image: EifImage) -> memoryview:
    if image.architecture != "x86_64":
        raise EifError(
            f"the image is for {image.architecture}, this machine is x86_64; build it for x86_64, or run it on Graviton"
        )
    return image.kernel


def _memory_needed(image: EifImage, *, kernel_end: int) -> int:
    return memory_needed(
        kernel_end=kernel_end,
        initrd_size=sum(_padded(len(ramdisk)) for ramdisk in image.ramdisks),
        unpacked_size=sum(unpacked_size(ramdisk) for ramdisk in image.ramdisks),
    )


def _write_ramdisks(image: EifImage, memory: GuestMemory, initrd: Placement) -> None:
    """One behind the other, each padded with zeros to four bytes: Linux wants archives aligned so."""
    position = initrd.gpa
    for ramdisk in image.ramdisks:
        memory.write(position, ramdisk)
        memory.write(position + len(ramdisk), bytes(_padded(len(ramdisk)) - len(ramdisk)))
        position += _padded(len(ramdisk))


def _padded(size: int) -> int:
    return -(-size // 4) * 4


def _kernel_detail(image: EifImage, bzimage: BzImage, unpacked: UnpackedKernel) -> str:
    version = bzimage.header.kernel_version.partition(" ")[0] or "unknown version"
    return f"Linux {version}, {_size(len(image.kernel))}, {unpacked.compression} to {_size(len(unpacked.elf))}"


def _placed_detail(elf: KernelElf, initrd: Placement | None, method: str) -> str:
    ramdisk = "no ramdisk" if initrd is None else f"ramdisk {initrd.gpa:#x}-{initrd.end - 1:#x}"
    how = "the command line" if method == "cmdline" else "ACPI"
    return f"kernel {elf.start:#x}-{elf.end - 1:#x}, {ramdisk}, devices by {how}, entry {elf.entry:#x}"


def _size(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / 1024:.1f} KiB"
