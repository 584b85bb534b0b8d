"""The firmware on real guest memory: from an image's bytes to a machine about to enter the kernel."""

from __future__ import annotations

import contextlib
import gzip
import struct
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.eif import measure, read_eif, write_eif
from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.errors import EifError, MachineError
from enclavedbg.machine.events import BootStage, Event
from enclavedbg.machine.firmware import Firmware, image_memory_needed, load_image
from enclavedbg.machine.layout import BOOT_PARAMS, EIF_LOAD_ADDRESS, KERNEL_CMDLINE, RSDP
from enclavedbg.machine.memory import GuestMemory
from tests.machine.boot.kernels import KERNEL_BASE, bzimage, elf

MIB = 1 << 20
MARKED = elf([(KERNEL_BASE, b"\xf4" + b"virtio-mmio-cmdline\0", 1 * MIB)])
PLAIN = elf([(KERNEL_BASE, b"\xf4" * 100, 1 * MIB)])
WORDS = b"virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
RAMDISKS = [b"first", write_newc([CpioEntry("init", 0o100755, b"x" * 5000)])]


def unheard(event: Event) -> None:
    """A publisher without listeners."""


def image_file(payload: bytes = MARKED, **options: Any) -> bytes:
    parts = {"kernel": bzimage(gzip.compress(payload)), "cmdline": b"console=ttyS0", "ramdisks": RAMDISKS}
    return write_eif(**(parts | options))


def power_on(file: bytes, *, memory: GuestMemory | None = None, **options: Any) -> tuple[GuestMemory, Any, list[Event]]:
    memory = memory or GuestMemory(64 * MIB)
    load_image(read_eif(file), memory)
    events: list[Event] = []
    booted = Firmware(memory, events.append, **options).boot()
    return memory, booted, events


def test_a_kernel_that_takes_devices_on_its_command_line() -> None:
    file = image_file()
    memory, booted, events = power_on(file)
    assert booted.measurements == measure(read_eif(file))
    assert (booted.kernel_elf, booted.entry, booted.state.rip) == (MARKED, KERNEL_BASE, KERNEL_BASE)
    assert booted.kernel_version.startswith("6.12.0-test")
    assert memory.read(KERNEL_BASE, 20) == MARKED[-21:-1]
    assert booted.cmdline == b"console=ttyS0 " + WORDS
    assert memory.read(KERNEL_CMDLINE, len(booted.cmdline) + 1) == booted.cmdline + b"\0"
    assert (booted.described_by, memory.read(RSDP, 8)) == ("cmdline", bytes(8))
    assert memory.read_u64(BOOT_PARAMS + 0x70) == 0
    assert [e.stage for e in events if isinstance(e, BootStage)] == [
        "eif-read", "measured", "kernel-unpacked", "kernel-placed",
    ]  # fmt: skip
    assert len(events) == 4


def test_a_kernel_that_needs_acpi() -> None:
    memory, booted, _ = power_on(image_file(PLAIN))
    assert (booted.described_by, booted.cmdline) == ("acpi", b"console=ttyS0")
    assert memory.read(RSDP, 8) == b"RSD PTR "
    assert memory.read_u64(BOOT_PARAMS + 0x70) == RSDP
    assert memory.read(memory.read_u64(RSDP + 24), 4) == b"XSDT"


@pytest.mark.parametrize(("kernel", "method"), [(MARKED, "acpi"), (PLAIN, "cmdline")])
def test_the_choice_can_be_overridden(kernel: bytes, method: str) -> None:
    memory, booted, _ = power_on(image_file(kernel), describe_devices=method)
    assert booted.described_by == method
    assert (WORDS in booted.cmdline) == (method == "cmdline") == (memory.read(RSDP, 1) == b"\0")
    with pytest.raises(MachineError, match="expected auto, cmdline or acpi"):
        power_on(image_file(), describe_devices="fortune")


def test_an_empty_command_line_has_no_leading_space() -> None:
    assert power_on(image_file(cmdline=b""))[1].cmdline == WORDS


def test_ramdisks_lie_on_top_of_ram_one_behind_the_other_padded() -> None:
    memory, booted, _ = power_on(image_file())
    size = 8 + len(RAMDISKS[1])
    assert booted.initrd.size == size
    assert booted.initrd.gpa % 4096 == 0 and 64 * MIB - 4096 < booted.initrd.end <= 64 * MIB
    assert memory.read(booted.initrd.gpa, size) == b"first\0\0\0" + RAMDISKS[1]
    assert struct.unpack("<II", memory.read(BOOT_PARAMS + 0x218, 8)) == (booted.initrd.gpa, size)


def test_ramdisks_stay_below_what_the_kernel_allows() -> None:
    kernel = bzimage(gzip.compress(MARKED), initrd_addr_max=0x1FF_FFFF)
    assert power_on(image_file(kernel=kernel))[1].initrd.end <= 0x200_0000


def test_no_ramdisk() -> None:
    memory, booted, events = power_on(image_file(ramdisks=[]))
    assert booted.initrd is None
    assert memory.read(BOOT_PARAMS + 0x218, 8) == bytes(8)
    assert "no ramdisk" in events[-1].summary()


def test_an_image_that_kernel_and_ramdisk_overwrite() -> None:
    """The image lies across the place of the kernel and of its own ramdisk."""
    large = bytes(range(256)) * (48 * MIB // 256)
    file = image_file(ramdisks=[large])
    memory, booted, _ = power_on(file, memory=GuestMemory(160 * MIB))
    assert memory.read(booted.initrd.gpa, len(large)) == large
    assert memory.read(KERNEL_BASE, 20) == MARKED[-21:-1]
    with pytest.raises(EifError):
        Firmware(memory, unheard).boot()  # nobody loaded it again


def test_a_guest_reset_boots_again_over_what_the_guest_left() -> None:
    file = image_file()
    memory, first, _ = power_on(file)
    memory.write(0, b"\xff" * MIB)
    memory.write(KERNEL_BASE, b"\xff" * 2 * MIB)
    _, second, _ = power_on(file, memory=memory)
    assert second == first
    assert memory.read(RSDP, 8) == bytes(8)
    assert memory.read(KERNEL_BASE + 21, MIB - 21) == bytes(MIB - 21)


def test_ram_above_4_gib_is_in_the_map() -> None:
    memory, booted, _ = power_on(image_file(), memory=GuestMemory(4096 * MIB))
    entries = memory.read(BOOT_PARAMS + 0x1E8, 1)[0]
    assert entries == 4
    last = struct.unpack("<QQI", memory.read(BOOT_PARAMS + 0x2D0 + 60, 20))
    assert last == (4 << 30, 1 << 30, 1)
    assert booted.initrd.end <= 0x8000_0000


def test_durations_come_from_the_given_clock() -> None:
    ticks = count(step=1_500_000)
    events = power_on(image_file(), monotonic_ns=lambda: next(ticks))[2]
    assert all(event.summary().endswith("(1.5 ms)") for event in events)


def test_too_little_memory_says_how_much() -> None:
    image = read_eif(image_file())
    needed = image_memory_needed(image)
    assert needed % MIB == 0 and 16 * MIB < needed < 64 * MIB
    memory = GuestMemory(needed - MIB)
    load_image(image, memory)
    with pytest.raises(
        MachineError, match=rf"needs at least {needed >> 20} MiB, --memory gives {(needed >> 20) - 1} MiB"
    ):
        Firmware(memory, unheard).boot()
    enough = GuestMemory(needed)
    load_image(image, enough)
    Firmware(enough, unheard).boot()
    with pytest.raises(MachineError, match=rf"needs at least {needed >> 20} MiB, --memory gives 8 MiB"):
        load_image(image, GuestMemory(8 * MIB))


def test_firmware_without_an_image() -> None:
    with pytest.raises(EifError, match="not an EIF"):
        Firmware(GuestMemory(16 * MIB), unheard).boot()
    for size in (4 * MIB, 8 * MIB + 4096):
        memory = GuestMemory(size)
        if size > 8 * MIB:
            memory.write(EIF_LOAD_ADDRESS, image_file(ramdisks=[bytes(8192)])[:4096])
        with pytest.raises(MachineError, match="no enclave image fits"):
            Firmware(memory, unheard).boot()
    with pytest.raises(MachineError, match="no enclave image fits"):
        Firmware(GuestMemory(16 * MIB), unheard).boot(image_size=1 << 60)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"architecture": "aarch64"}, EifError, "for aarch64, this machine is x86_64"),
        ({"kernel": b"KERNEL"}, EifError, "no bzImage"),
        ({"kernel": bzimage(gzip.compress(elf(entry=0)))}, EifError, "entry point"),
        ({"cmdline": b"x" * 2000}, EifError, "2070 bytes with the devices in it, this kernel takes 2047"),
        ({"kernel": bzimage(gzip.compress(elf([(0x8000, b"x", 1)], entry=0x8000)))}, MachineError, "not free RAM"),
        ({"kernel": bzimage(gzip.compress(PLAIN), initrd_addr_max=0x10F_FFFF)}, MachineError, "do not fit between"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    memory = GuestMemory(64 * MIB)
    file = image_file(**options)
    memory.write(EIF_LOAD_ADDRESS, file)
    memory.write(0, b"as it was")
    with pytest.raises(error, match=message) as caught:
        Firmware(memory, unheard).boot()
    assert "\n" not in str(caught.value)
    assert memory.read(0, MIB) == b"as it was".ljust(MIB, b"\0"), "nothing is placed before all is checked"


SMALL = image_file(ramdisks=[b"r"])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_guest_that_changed_the_image_before_its_reset(data: st.DataObject) -> None:
    memory = GuestMemory(48 * MIB)
    file = bytearray(SMALL)
    at = data.draw(st.integers(0, len(file) - 1))
    file[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    memory.write(EIF_LOAD_ADDRESS, file)
    with contextlib.suppress(EifError, MachineError):
        assert Firmware(memory, unheard).boot().measurements == measure(read_eif(SMALL))
