"""The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): registers in front of a device model.

Nothing that the guest writes makes an access raise: a breach is published as a warning and ignored, and one
that concerns a queue's content breaks the device until the driver resets it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.bus import IrqLine
from enclavedbg.machine.events import Event, GuestWarning
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.virtio.device import VIRTIO_F_VERSION_1, VirtioDevice
from enclavedbg.machine.virtio.queue import QueueError, QueueState, SplitQueue

log = logging.getLogger(__name__)

MAGIC = 0x7472_6976
VERSION = 2
VENDOR_ID = 0
ABSENT = 0xFFFF_FFFF
"""What the shared-memory registers read: Linux takes anything else for a region."""

WARNINGS_KEPT = 64
"""Distinct breaches published per device: a guest must not be able to flood the event stream."""


class Register(IntEnum):
    """Offsets in the window (include/uapi/linux/virtio_mmio.h)."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_SEL = 0x0AC
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class Status(IntFlag):
    """Device status (virtio 1.2, section 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Interrupt(IntFlag):
    """InterruptStatus and InterruptACK."""

    USED_RING = 1
    CONFIG = 2


# Bits that a driver may set, each with those that must be set before or together with it.
_PREREQUISITES = (
    (Status.DRIVER, Status.ACKNOWLEDGE),
    (Status.FEATURES_OK, Status.DRIVER),
    (Status.DRIVER_OK, Status.FEATURES_OK),
)
_DRIVER_BITS = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK | Status.FEATURES_OK | Status.FAILED
# Plain integers for what every kick tests: operations on flags cost a microsecond each.
_ACTIVE = int(Status.DRIVER_OK)
_ACTIVE_MASK = int(Status.DRIVER_OK | Status.NEEDS_RESET | Status.FAILED)

# The six address registers: field of SplitQueue and shift of the half.
_ADDRESS_REGISTERS: dict[int, tuple[str, int]] = {
    Register.QUEUE_DESC_LOW: ("descriptors", 0),
    Register.QUEUE_DESC_HIGH: ("descriptors", 32),
    Register.QUEUE_DRIVER_LOW: ("driver_area", 0),
    Register.QUEUE_DRIVER_HIGH: ("driver_area", 32),
    Register.QUEUE_DEVICE_LOW: ("device_area", 0),
    Register.QUEUE_DEVICE_HIGH: ("device_area", 32),
}


@dataclass(frozen=True, slots=True)
class VirtioMmioState:
    """State of the transport with that of its queues and of the device behind it."""

    status: int
    device_features_sel: int
    driver_features_sel: int
    driver_features: int
    queue_sel: int
    interrupt_status: int
    queues: tuple[QueueState, ...]
    device: object


class VirtioMmio:
    """The registers of one virtio device; an MmioDevice for the bus.

    The interrupt line is a level: high while InterruptStatus is not 0. Register accesses belong to the vCPU
    thread.
    """

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, *, irq: IrqLine, publish: Callable[[Event], object]
    ) -> None:
        if not device.features & VIRTIO_F_VERSION_1:
            raise MachineError(f"{device.name} does not offer VIRTIO_F_VERSION_1, which this transport needs")
        self.device = device
        self.queues = tuple(SplitQueue(memory, i, size) for i, size in enumerate(device.queue_sizes))
        self._irq = irq
        self._publish = publish
        self._warned: set[str] = set()
        self._generation = 0
        # All of these are put back to 0 by a reset.
        self._status = 0
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._driver_features = 0
        self._queue_sel = 0
        self._interrupt_status = 0
        device.attach(self)

    # --- what the device calls ---

    @property
    def active(self) -> bool:
        """Whether the driver is up (DRIVER_OK) and the device neither broken nor given up."""
        return self._status & _ACTIVE_MASK == _ACTIVE

    @property
    def generation(self) -> int:
        """Counts device resets: work begun under another number must not touch the rings."""
        return self._generation

    def signal_used(self, *queues: SplitQueue) -> None:
        """Interrupt the driver for used buffers, unless it wants none on all the queues named."""
        if not queues or any(queue.interrupt_wanted for queue in queues):
            self._interrupt(Interrupt.USED_RING)

    def service(self, work: Callable[[], None]) -> None:
        """Run device work; does nothing while not active. A QueueError or GuestFault out of it breaks the device."""
        if not self.active:
            return
        try:
            work()
        except (QueueError, GuestFault) as error:
            self.break_device(str(error))

    def break_device(self, reason: str) -> None:
        """Stop the device until the driver resets it, tell the driver, and publish a warning."""
        running = bool(self._status & Status.DRIVER_OK)
        self._status = int(self._status | Status.NEEDS_RESET)
        for queue in self.queues:
            queue.ready = False
        self.device.reset()
        self.warn(f"{reason}; the device stands still until the driver resets it")
        if running:
            self._interrupt(Interrupt.CONFIG)

    def warn(self, text: str) -> None:
        """Publish a breach of the guest's, once per text and at most WARNINGS_KEPT in all."""
        log.debug("%s: %s", self.device.name, text)
        if text in self._warned or len(self._warned) > WARNINGS_KEPT:
            return
        self._warned.add(text)
        if len(self._warned) > WARNINGS_KEPT:
            text = "further breaches are not reported"
        self._publish(GuestWarning(self.device.name, text))

    # --- registers ---

    def mmio_read(self, offset: int, size: int) -> int:
        """Read a register or the configuration space; 0 for what does not exist."""
        if offset >= Register.CONFIG:
            return self._read_config(offset - Register.CONFIG, size)
        if size != 4 or offset % 4:
            self.warn(f"read of {size} bytes at register {offset:#x}, expected an aligned read of 4")
            return 0
        match offset:
            case Register.INTERRUPT_STATUS:
                return self._interrupt_status
            case Register.STATUS:
                return self._status
            case Register.MAGIC_VALUE:
                return MAGIC
            case Register.VERSION:
                return VERSION
            case Register.DEVICE_ID:
                return self.device.device_id
            case Register.VENDOR_ID:
                return VENDOR_ID
            case Register.DEVICE_FEATURES:
                return self._feature_page(self.device.features, self._device_features_sel)
            case Register.QUEUE_NUM_MAX:
                queue = self._selected
                return queue.size_max if queue else 0
            case Register.QUEUE_READY:
                queue = self._selected
                return int(queue.ready) if queue else 0
            case Register.SHM_LEN_LOW | Register.SHM_LEN_HIGH | Register.SHM_BASE_LOW | Register.SHM_BASE_HIGH:
                return ABSENT
            case _:
                # ConfigGeneration too: neither device ever changes its configuration under the driver.
                return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write a register. Writes to the configuration space and to unknown registers do nothing."""
        if offset >= Register.CONFIG:
            self.warn(f"write to the configuration space at {offset - Register.CONFIG:#x}, which is read-only")
            return
        if size != 4 or offset % 4:
            self.warn(f"write of {size} bytes at register {offset:#x}, expected an aligned write of 4")
            return
        value &= 0xFFFF_FFFF
        match offset:
            case Register.QUEUE_NOTIFY:
                self._notify(value)
            case Register.INTERRUPT_ACK:
                self._interrupt_status &= ~value
                self._update_line()
            case Register.STATUS:
                self._write_status(value)
            case Register.DEVICE_FEATURES_SEL:
                self._device_features_sel = value
            case Register.DRIVER_FEATURES_SEL:
                self._driver_features_sel = value
            case Register.DRIVER_FEATURES:
                self._write_features(value)
            case Register.QUEUE_SEL:
                self._queue_sel = value
            case Register.QUEUE_NUM:
                queue = self._programmable("QueueNum")
                if queue:
                    queue.size = value
            case Register.QUEUE_READY:
                self._write_ready(value)
            case Register.SHM_SEL:
                pass
            case _ if offset in _ADDRESS_REGISTERS:
                field, shift = _ADDRESS_REGISTERS[offset]
                queue = self._programmable("a queue address")
                if queue:
                    kept = getattr(queue, field) & ~(0xFFFF_FFFF << shift)
                    setattr(queue, field, kept | value << shift)
            case _:
                self.warn(f"write to register {offset:#x}, which does not exist or is read-only")

    @property
    def _selected(self) -> SplitQueue | None:
        return self.queues[self._queue_sel] if self._queue_sel < len(self.queues) else None

    @staticmethod
    def _feature_page(features: int, page: int) -> int:
        return features >> 32 * page & 0xFFFF_FFFF if page < 2 else 0

    def _read_config(self, offset: int, size: int) -> int:
        if size not in (1, 2, 4):
            self.warn(f"read of {size} bytes in the configuration space, expected 1, 2 or 4")
            return 0
        return int.from_bytes(self.device.config()[offset : offset + size], "little")

    def _notify(self, index: int) -> None:
        """Kick a queue. Ignored for one that does not exist or is not live, as a kick may come early."""
        if index >= len(self.queues):
            self.warn(f"notification for queue {index}, expected one below {len(self.queues)}")
        elif self.queues[index].ready:
            self.service(lambda: self.device.notify(index))

    def _write_features(self, value: int) -> None:
        if self._status & (Status.DRIVER | Status.FEATURES_OK | Status.FAILED) != Status.DRIVER:
            self.warn(f"features written with status {self._status:#x}, expected DRIVER without FEATURES_OK")
            return
        page = self._driver_features_sel
        if page < 2:
            kept = self._driver_features & ~(0xFFFF_FFFF << 32 * page)
            self._driver_features = kept | value << 32 * page
        elif value:
            self.warn(f"features accepted in page {page}, expected 0 or 1")

    def _programmable(self, what: str) -> SplitQueue | None:
        """The selected queue if its registers may be written now, else None with a warning."""
        queue = self._selected
        if queue is None:
            self.warn(f"{what} written for queue {self._queue_sel}, expected one below {len(self.queues)}")
            return None
        blocked = Status.DRIVER_OK | Status.NEEDS_RESET | Status.FAILED
        if self._status & (blocked | Status.FEATURES_OK) != Status.FEATURES_OK or queue.ready:
            self.warn(
                f"{what} of queue {queue.index} written with status {self._status:#x} and the queue "
                f"{'ready' if queue.ready else 'not ready'}, expected FEATURES_OK without DRIVER_OK and not ready"
            )
            return None
        return queue

    def _write_ready(self, value: int) -> None:
        queue = self._selected
        if not value & 1:
            # Linux's secure-module driver takes its queue back without a reset when it is removed.
            if queue:
                queue.ready = False
            return
        queue = self._programmable("QueueReady")
        if queue is None:
            return
        try:
            queue.enable()
        except QueueError as error:
            self.break_device(str(error))

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        old = self._status
        new = old | (value & _DRIVER_BITS)
        if old & _DRIVER_BITS & ~value:
            self.warn(f"status {old:#x} overwritten with {value:#x}; a driver clears bits only by writing 0")
            return
        for bit, needed in _PREREQUISITES:
            if new & bit and not new & needed:
                self.warn(f"status {value:#x} sets {bit.name} before {needed.name}")
                new &= ~bit
        if new & Status.FEATURES_OK and not old & Status.FEATURES_OK and not self._features_legal():
            new &= ~(Status.FEATURES_OK | Status.DRIVER_OK)
        self._status = int(new)
        if new & Status.DRIVER_OK and not old & Status.DRIVER_OK:
            self.service(lambda: self.device.activate(self.queues))

    def _features_legal(self) -> bool:
        accepted = self._driver_features
        if accepted & ~self.device.features:
            self.warn(f"features {accepted:#x} accepted, of which only {self.device.features:#x} were offered")
            return False
        if not accepted & VIRTIO_F_VERSION_1:
            self.warn("VIRTIO_F_VERSION_1 was not accepted; only drivers for virtio 1 work here")
            return False
        return True

    # --- interrupt, reset, state ---

    def _interrupt(self, bit: Interrupt) -> None:
        self._interrupt_status = self._interrupt_status | int(bit)
        self._update_line()

    def _update_line(self) -> None:
        self._irq.set(self._interrupt_status != 0)

    def _clear_registers(self) -> None:
        self._status = 0
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._driver_features = 0
        self._queue_sel = 0
        self._interrupt_status = 0

    def reset(self) -> None:
        """Device reset: by the driver (Status = 0) or by the machine."""
        self._generation += 1
        self._clear_registers()
        for queue in self.queues:
            queue.reset()
        self.device.reset()
        self._update_line()

    def save(self) -> VirtioMmioState:
        return VirtioMmioState(
            self._status,
            self._device_features_sel,
            self._driver_features_sel,
            self._driver_features,
            self._queue_sel,
            self._interrupt_status,
            tuple(queue.save() for queue in self.queues),
            self.device.save(),
        )

    def load(self, state: VirtioMmioState) -> None:
        """Take a saved state; raises QueueError when a ring does not lie in this machine's memory."""
        self.reset()
        self._status = state.status
        self._device_features_sel = state.device_features_sel
        self._driver_features_sel = state.driver_features_sel
        self._driver_features = state.driver_features
        self._queue_sel = state.queue_sel
        self._interrupt_status = state.interrupt_status
        for queue, queue_state in zip(self.queues, state.queues, strict=True):
            queue.load(queue_state)
        self.device.load(state.device)
        if self.active:
            self.service(lambda: self.device.activate(self.queues))
        self._update_line()
