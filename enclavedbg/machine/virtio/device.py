"""What a virtio device brings to the virtio-mmio transport, and what it finds there."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from enclavedbg.machine.virtio.queue import SplitQueue

VIRTIO_F_VERSION_1 = 1 << 32


class Transport(Protocol):
    """The device's way to its driver. Calls come on the vCPU thread, or while the guest is stopped."""

    @property
    def active(self) -> bool:
        """Whether the driver is up (DRIVER_OK) and the device neither broken nor given up."""
        ...

    @property
    def generation(self) -> int:
        """Counts device resets: work begun under another number must not touch the rings."""
        ...

    def signal_used(self, *queues: SplitQueue) -> None:
        """Interrupt the driver for used buffers, unless it wants none on all the queues named."""
        ...

    def service(self, work: Callable[[], None]) -> None:
        """Run device work that no register access started; does nothing while not active.

        A QueueError or GuestFault out of it breaks the device.
        """
        ...

    def break_device(self, reason: str) -> None:
        """Stop the device until the driver resets it, tell the driver, and publish a warning."""
        ...

    def warn(self, text: str) -> None:
        """Publish a breach that the device contained by itself."""
        ...


class VirtioDevice(Protocol):
    """A device model behind `VirtioMmio`. All calls come on the vCPU thread, or while the guest is stopped."""

    device_id: ClassVar[int]
    """Virtio device id: 19 vsock, 33 secure module."""

    name: ClassVar[str]
    """For events and messages, e.g. `virtio-nsm`."""

    features: ClassVar[int]
    """Offered feature bits; must contain VIRTIO_F_VERSION_1."""

    queue_sizes: ClassVar[tuple[int, ...]]
    """Largest size of each queue, a power of two."""

    def attach(self, transport: Transport) -> None:
        """Called once, by the transport's constructor."""
        ...

    def config(self) -> bytes:
        """The device's configuration space."""
        ...

    def activate(self, queues: tuple[SplitQueue, ...]) -> None:
        """The driver set DRIVER_OK; look at every queue once. A queue that is not ready yields no chain."""
        ...

    def notify(self, queue: int) -> None:
        """The driver kicked a live queue. May raise QueueError: the transport then marks the device broken."""
        ...

    def reset(self) -> None:
        """Forget queues and work in flight; results for the old rings must never reach new ones."""
        ...

    def save(self) -> object:
        """The device's own state as a frozen dataclass, or None when it has none."""
        ...

    def load(self, state: object) -> None:
        """Take a state that `save` gave."""
        ...
