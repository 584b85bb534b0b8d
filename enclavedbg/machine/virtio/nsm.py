"""The virtio device through which an enclave reaches its secure module (drivers/misc/nsm.c)."""

from __future__ import annotations

from typing import ClassVar

from enclavedbg.errors import MachineError
from enclavedbg.machine.virtio.device import VIRTIO_F_VERSION_1, Transport
from enclavedbg.machine.virtio.queue import Chain, QueueError, SplitQueue
from enclavedbg.nsm.module import ModuleState, SecureModule
from enclavedbg.nsm.wire import REQUEST_LIMIT, RESPONSE_LIMIT


class VirtioNsm:
    """One queue; a command is two chains: the request (device-readable), then a buffer for the answer.

    Both come back in that order before one interrupt is raised, the request with length 0 and the answer with its
    exact length: Linux wakes on the first interrupt and expects two used elements. Answers are given at once,
    on the vCPU thread.
    """

    device_id: ClassVar[int] = 33  # VIRTIO_ID_NITRO_SEC_MOD
    name: ClassVar[str] = "virtio-nsm"
    features: ClassVar[int] = VIRTIO_F_VERSION_1
    queue_sizes: ClassVar[tuple[int, ...]] = (2,)

    def __init__(self, module: SecureModule) -> None:
        self.module = module
        self._transport: Transport | None = None
        self._queue: SplitQueue | None = None

    def attach(self, transport: Transport) -> None:
        self._transport = transport

    def config(self) -> bytes:
        return b""

    def activate(self, queues: tuple[SplitQueue, ...]) -> None:
        (self._queue,) = queues
        self.notify(0)

    def notify(self, queue: int) -> None:
        """Answer every command that is there whole; a request whose answer buffer is still to come waits."""
        ring = self._queue
        if ring is None or self._transport is None:
            return
        answered = False
        # The bound is that of one round of the ring: more can only come from another CPU, which will kick.
        for _ in range(ring.available() // 2):
            request, answer = ring.pop(), ring.pop()
            if request is None or answer is None:
                break
            self._exchange(ring, request, answer)
            answered = True
        if answered:
            self._transport.signal_used(ring)

    def _exchange(self, ring: SplitQueue, request: Chain, answer: Chain) -> None:
        if request.writable or not request.readable:
            raise QueueError(
                f"the request's chain has {request.readable_size} readable and {request.writable_size} writable "
                "bytes, expected readable ones only"
            )
        # An empty buffer is legal: the out-of-tree driver passes on whatever size user space gave.
        if answer.readable:
            raise QueueError(
                f"the answer's chain has {answer.readable_size} readable bytes, expected writable ones only"
            )
        # One byte more than is legal tells the module that the request is too large.
        asked = request.read(REQUEST_LIMIT + 1)
        data = self.module.handle(asked, min(answer.writable_size, RESPONSE_LIMIT))
        written = answer.write(data)
        ring.push(request, 0)
        ring.push(answer, written)

    def reset(self) -> None:
        """The driver starts again; registers are the module's and stay as they are."""
        self._queue = None

    def save(self) -> ModuleState:
        return self.module.save()

    def load(self, state: object) -> None:
        if not isinstance(state, ModuleState):
            raise MachineError(f"{self.name} cannot take the state of another device ({type(state).__name__})")
        self.module.load(state)
