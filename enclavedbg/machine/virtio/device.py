"""What a virtio device brings to the virtio-mmio transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from enclavedbg.machine.virtio.queue import SplitQueue

VIRTIO_F_VERSION_1 = 1 << 32


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

    def config(self) -> bytes:
        """The device's configuration space."""
        ...

    def activate(self, queues: tuple[SplitQueue, ...]) -> None:
        """The driver set DRIVER_OK; look at every queue once."""
        ...

    def notify(self, queue: int) -> None:
        """The driver kicked a live queue. May raise QueueError: the transport then marks the device broken."""
        ...

    def reset(self) -> None:
        """Forget queues and work in flight; results for the old rings must never reach new ones."""
        ...
