"""The virtio device through which an enclave reaches its secure module (drivers/misc/nsm.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from enclavedbg.errors import MachineError
from enclavedbg.machine.virtio.device import VIRTIO_F_VERSION_1, Transport
from enclavedbg.machine.virtio.queue import Chain, QueueError, SplitQueue
from enclavedbg.nsm.module import Incoming, ModuleState, SecureModule
from enclavedbg.nsm.wire import REQUEST_LIMIT, RESPONSE_LIMIT


class Schedule(Protocol):
    """When the device may go on with what it put off; `VirtualCpu` has this shape. Work is done on the vCPU thread."""

    @property
    def stopping(self) -> bool:
        """Whether the guest is about to be stopped."""
        ...

    def post(self, work: Callable[[], None]) -> None:
        """Do `work` once the guest runs; any thread."""
        ...

    def post_in(self, delay_ns: int, work: Callable[[], None]) -> Callable[[], None]:
        """Do `work` once so much guest time has passed; returns what takes that back."""
        ...


class VirtioNsm:
    """One queue; a command is two chains: the request (device-readable), then a buffer for the answer.

    Both come back in that order before one interrupt is raised, the request with length 0 and the answer with its
    exact length: Linux wakes on the first interrupt and expects two used elements. Answers are given on the vCPU
    thread, at once unless a fault delays them or a catchpoint stops the machine; what is put off stays in the ring, so
    there is no state of it but that the first request there was heard of.
    """

    device_id: ClassVar[int] = 33  # VIRTIO_ID_NITRO_SEC_MOD
    name: ClassVar[str] = "virtio-nsm"
    features: ClassVar[int] = VIRTIO_F_VERSION_1
    # Linux fills two descriptors at a time, and leaves those for which no answer ever came.
    queue_sizes: ClassVar[tuple[int, ...]] = (16,)

    def __init__(self, module: SecureModule, *, schedule: Schedule) -> None:
        self.module = module
        self._schedule = schedule
        self._transport: Transport | None = None
        self._queue: SplitQueue | None = None
        self._first: Incoming | None = None
        self._waiting = False
        self._cancel: Callable[[], None] = lambda: None
        self._put_off = 0
        """Counts what was put off and given up: work for an earlier one finds that it is out of date."""
        module.faults.on_remove = lambda number: schedule.post(lambda: self._fault_removed(number))

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
        if ring is None or self._transport is None or self._waiting:
            return
        answered = False
        # The bound is that of one round of the ring: more can only come from another CPU, which will kick.
        for _ in range(ring.available() // 2):
            if self._schedule.stopping:
                # One request, one stop: until the guest goes on, the next is not even heard of, and one that was
                # delayed is not answered.
                self._wait(0)
                break
            request, answer = ring.pop(), ring.pop()
            if request is None or answer is None:
                break
            if not self._may_answer(request, answer):
                ring.unpop()
                ring.unpop()
                break
            answered |= self._answer(ring, request, answer)
        if answered:
            self._transport.signal_used(ring)

    def _may_answer(self, request: Chain, answer: Chain) -> bool:
        """Hear of the first request, once; False when its answer is put off, and `_go_on` will be called."""
        if self._first is not None:
            return True
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
        self._first = self.module.receive(request.read(REQUEST_LIMIT + 1))
        delay_ns = self._first.effects.delay_ns
        if not delay_ns and not self._schedule.stopping:
            return True
        self._wait(delay_ns)
        return False

    def _wait(self, delay_ns: int) -> None:
        """Go on in so much guest time, at the earliest when the guest runs."""
        self._waiting = True
        self._put_off += 1
        ticket = self._put_off
        if delay_ns:
            self._cancel = self._schedule.post_in(delay_ns, lambda: self._go_on(ticket))
        else:
            self._schedule.post(lambda: self._go_on(ticket))

    def _go_on(self, ticket: int) -> None:
        """Answer what was put off, unless that was done or given up since."""
        if self._waiting and ticket == self._put_off and self._transport is not None:
            self._waiting = False
            self._cancel()
            self._transport.service(lambda: self.notify(0))

    def _fault_removed(self, number: int) -> None:
        """Who takes a delay away does not want to wait for it."""
        if self._first is not None and number in self._first.effects.delayed_by:
            self._go_on(self._put_off)

    def _answer(self, ring: SplitQueue, request: Chain, answer: Chain) -> bool:
        """Answer the first request; False when a fault has it dropped, and its chains never come back."""
        assert self._first is not None
        first, self._first = self._first, None
        # The chains are read again after a delay, so the guest may have changed what is in them.
        if answer.readable:
            raise QueueError("the answer's chain became readable while the answer was put off")
        data = self.module.answer(first, min(answer.writable_size, RESPONSE_LIMIT))
        if data is None:
            return False
        written = answer.write(data)
        ring.push(request, 0)
        ring.push(answer, written)
        return True

    def reset(self) -> None:
        """The driver starts again; registers are the module's and stay as they are."""
        self._queue = None
        self._first = None
        self._waiting = False
        self._cancel()

    def save(self) -> ModuleState:
        return self.module.save()

    def load(self, state: object) -> None:
        if not isinstance(state, ModuleState):
            raise MachineError(f"{self.name} cannot take the state of another device ({type(state).__name__})")
        self.module.load(state)
