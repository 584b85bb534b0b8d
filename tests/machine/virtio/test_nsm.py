"""The secure module at the level of its virtqueue: driven through the device's registers, as Linux drives it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import MachineError
from enclavedbg.machine.events import GuestWarning
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.virtio.mmio import VirtioMmio
from enclavedbg.machine.virtio.nsm import VirtioNsm
from enclavedbg.nsm.events import NsmExchange, NsmRequest
from enclavedbg.nsm.faults import parse_fault
from enclavedbg.nsm.pcr import ZERO
from enclavedbg.nsm.wire import (
    Attestation,
    DescribeNSM,
    DescribePCR,
    ExtendPCR,
    GetRandom,
    LockPCR,
    LockPCRs,
    Request,
    encode_request,
)
from tests.machine.virtio.driver import INDIRECT, NEXT, WRITE, GuestDriver, GuestQueue, RecordingLine
from tests.nsm.support import MODULE_ID, PCR0, believed, make_module, shared_authority

RAM = 1 << 20
RESPONSE_SIZE = 0x3000


class Schedule:
    """Work that the device put off; `run` does it, as the vCPU thread would."""

    def __init__(self) -> None:
        self.stopping = False
        self.works: list[tuple[int, Callable[[], None]]] = []

    def post(self, work: Callable[[], None]) -> None:
        self.works.append((0, work))

    def post_in(self, delay_ns: int, work: Callable[[], None]) -> Callable[[], None]:
        entry = (delay_ns, work)
        self.works.append(entry)

        def cancel() -> None:
            if entry in self.works:
                self.works.remove(entry)

        return cancel

    def run(self) -> list[int]:
        """Do all, and return the delays."""
        works, self.works = self.works, []
        for _, work in works:
            work()
        return [delay for delay, _ in works]


class Guest:
    """A guest with Linux's driver bound to the device, its ring as small as can be unless `size` says otherwise."""

    def __init__(self, memory: GuestMemory | None = None, *, size: int = 2) -> None:
        self.memory = memory or GuestMemory(RAM)
        self.schedule = Schedule()
        self.size = size
        self.events: list[object] = []
        self.stops_at: type | None = None
        """A kind of event that stops the machine."""
        self.module = make_module(emit=self.hear)
        self.line = RecordingLine()
        self.device = VirtioNsm(self.module, schedule=self.schedule)
        self.mmio = VirtioMmio(self.device, self.memory, irq=self.line, publish=self.events.append)
        self.driver = GuestDriver(self.memory, self.mmio, base=0x1_0000)
        self.probe()

    def hear(self, event: object) -> None:
        self.events.append(event)
        if self.stops_at is not None and isinstance(event, self.stops_at):
            self.schedule.stopping = True

    def probe(self) -> None:
        (self.queue,) = self.driver.probe(1, sizes=[self.size])

    def begin(self, request: Request, *, capacity: int = RESPONSE_SIZE) -> None:
        """Put a command in the ring and kick."""
        self.queue.add([encode_request(request)])
        self.queue.add([], [capacity])
        self.driver.kick(0)

    def finished(self) -> object:
        """The answer to the command begun, None while there is none."""
        used = self.queue.take_all()
        if not used:
            return None
        assert self.driver.interrupt() == 1
        return cbor2.loads(self.queue.written(used[1]))

    def exchange(self, request: bytes, *, capacity: int = RESPONSE_SIZE) -> bytes:
        """One command as drivers/misc/nsm.c does it: two chains, one kick, one interrupt, two used elements."""
        self.queue.next_buffer = 0
        edges = self.line.edges
        out = self.queue.add([request])
        into = self.queue.add([], [capacity])
        self.driver.kick(0)
        assert self.line.edges == edges + 1
        assert self.driver.interrupt() == 1
        assert not self.line.level
        first, second = self.queue.take_all()
        assert (first.head, first.length) == (out, 0)
        assert second.head == into
        return self.queue.written(second)

    def ask(self, request: Request) -> object:
        return cbor2.loads(self.exchange(encode_request(request)))

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, GuestWarning)]

    @property
    def broken(self) -> bool:
        return bool(self.driver.read(0x70) & 64)


def test_probe() -> None:
    guest = Guest()
    assert guest.driver.read(0x08) == 33
    assert guest.driver.features == 1 << 32
    assert guest.driver.read(0x34) == 16
    assert guest.driver.read(0x100) == 0
    assert guest.events == []


def test_every_request() -> None:
    guest = Guest()
    described = guest.ask(DescribeNSM())
    assert isinstance(described, dict)
    assert described["DescribeNSM"]["module_id"] == MODULE_ID
    assert described["DescribeNSM"]["locked_pcrs"] == list(range(16))
    answer = guest.ask(GetRandom())
    assert isinstance(answer, dict)
    assert len(answer["GetRandom"]["random"]) == 256
    assert guest.ask(DescribePCR(0)) == {"DescribePCR": {"lock": True, "data": PCR0}}
    assert guest.ask(DescribePCR(16)) == {"DescribePCR": {"lock": False, "data": ZERO}}
    extended = guest.ask(ExtendPCR(16, b"\x01\x02\x03"))
    assert isinstance(extended, dict)
    assert extended["ExtendPCR"]["data"].hex().startswith("cb178fcd3f328244c05c6248723fd068")
    assert guest.ask(LockPCR(16)) == "LockPCR"
    assert guest.ask(LockPCRs(32)) == "LockPCRs"
    attested = guest.ask(Attestation(user_data=b"u" * 1024, nonce=b"n" * 1024, public_key=b"k" * 1024))
    assert isinstance(attested, dict)
    document = attested["Attestation"]["document"]
    verified = believed(document, root=shared_authority().root(), expect_pcrs={0: PCR0}, nonce=b"n" * 1024)
    assert len(verified.pcrs) == 32
    names = [event.name for event in guest.events if isinstance(event, NsmExchange)]
    assert names == [
        "DescribeNSM",
        "GetRandom",
        "DescribePCR",
        "DescribePCR",
        "ExtendPCR",
        "LockPCR",
        "LockPCRs",
        "Attestation",
    ]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (DescribePCR(32), "InvalidIndex"),
        (ExtendPCR(40, b"x"), "InvalidIndex"),
        (LockPCR(65535), "InvalidIndex"),
        (LockPCRs(33), "InvalidIndex"),
        (ExtendPCR(15, b"x"), "ReadOnlyIndex"),
        (LockPCR(0), "ReadOnlyIndex"),
        (Attestation(nonce=bytes(1025)), "InputTooLarge"),
    ],
)
def test_every_error(request_: Request, error: str) -> None:
    assert Guest().ask(request_) == {"Error": error}


def test_requests_that_do_not_decode() -> None:
    guest = Guest()
    for request in (b"\xff", b"\x00", cbor2.dumps("Nonsense"), cbor2.dumps({"LockPCR": {}}), bytes(4096)):
        assert cbor2.loads(guest.exchange(request)) == {"Error": "InvalidOperation"}
    assert not guest.broken


def test_request_limit() -> None:
    guest = Guest()
    overhead = len(encode_request(ExtendPCR(16, bytes(4000)))) - 4000
    assert "ExtendPCR" in cbor2.loads(guest.exchange(encode_request(ExtendPCR(16, bytes(4096 - overhead)))))
    for size in (4097, 5000, 200_000):
        assert cbor2.loads(guest.exchange(bytes(size))) == {"Error": "InputTooLarge"}
    assert not guest.broken


def test_form_that_linux_compares() -> None:
    answer = Guest().exchange(bytes.fromhex("6947657452616e646f6d"))
    assert len(answer) == 278
    assert answer[:22].hex() == "a16947657452616e646f6da16672616e646f6d590100"


def test_answer_buffers_of_other_sizes() -> None:
    guest = Guest()
    get_random = encode_request(GetRandom())
    assert len(guest.exchange(get_random, capacity=278)) == 278
    assert cbor2.loads(guest.exchange(get_random, capacity=277)) == {"Error": "BufferTooSmall"}
    assert guest.exchange(get_random, capacity=21) == b""
    assert guest.exchange(get_random, capacity=0) == b""
    assert len(guest.exchange(get_random, capacity=0x8000)) == 278
    assert not guest.broken


def test_request_whose_answer_buffer_comes_later_waits() -> None:
    guest = Guest()
    guest.queue.add([encode_request(GetRandom())])
    guest.driver.kick(0)
    assert guest.queue.take() is None
    assert not guest.line.level
    guest.queue.add([], [RESPONSE_SIZE])
    guest.driver.kick(0)
    assert [used.length for used in guest.queue.take_all()] == [0, 278]


def test_command_that_is_there_at_driver_ok_is_answered() -> None:
    guest = Guest()
    assert guest.driver.negotiate()
    queue = guest.driver.set_up_queue(0)
    queue.add([encode_request(GetRandom())])
    queue.add([], [RESPONSE_SIZE])
    guest.driver.add_status(4)
    assert [used.length for used in queue.take_all()] == [0, 278]


def test_registers_outlast_a_reset_of_the_device() -> None:
    guest = Guest()
    guest.ask(ExtendPCR(16, b"x"))
    before = guest.ask(DescribePCR(16))
    guest.probe()
    assert guest.ask(DescribePCR(16)) == before


def test_state_survives_save_and_load() -> None:
    memory = GuestMemory(RAM)
    other, guest = Guest(memory), Guest(memory)
    guest.ask(ExtendPCR(16, b"x"))
    before = guest.ask(DescribePCR(16))
    other.mmio.load(guest.mmio.save())
    other.queue = guest.queue
    assert other.ask(DescribePCR(16)) == before
    with pytest.raises(MachineError, match="state of another device"):
        other.device.load("rubbish")


def put(queue: GuestQueue, *descriptors: tuple[int, int, int, int]) -> None:
    """Two heads, 0 and 1, over these descriptors."""
    for index, descriptor in enumerate(descriptors):
        queue.descriptor(index, *descriptor)
    queue.offer(0)
    queue.offer(1)


B = 0x2_0000


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ((B, 10, WRITE, 0), (B, 99, WRITE, 0), "expected readable ones only"),
        ((B, 0, 0, 0), (B, 99, WRITE, 0), "expected readable ones only"),
        ((B, 10, 0, 0), (B, 99, 0, 0), "expected writable ones only"),
        ((B, 10, NEXT, 1), (B, 99, WRITE, 0), "expected readable ones only"),
        ((B, 10, NEXT, 0), (B, 99, WRITE, 0), "more descriptors than the table's 2"),
        ((B, 10, NEXT, 1), (B, 99, NEXT, 0), "more descriptors than the table's 2"),
        ((B, 10, NEXT, 2), (B, 99, WRITE, 0), "descriptor 2 named"),
        ((RAM, 10, 0, 0), (B, 99, WRITE, 0), "do not lie in RAM"),
        ((B, 10, 0, 0), (RAM - 1, RESPONSE_SIZE, WRITE, 0), "do not lie in RAM"),
        ((B, 10, 0, 0), (0xD000_0000, RESPONSE_SIZE, WRITE, 0), "do not lie in RAM"),
        ((2**64 - 1, 2**32 - 1, 0, 0), (B, 99, WRITE, 0), "do not lie in RAM"),
        ((B, 16, INDIRECT, 0), (B, 99, WRITE, 0), "indirect"),
        ((B, 10, 0, 0), (B, 99, WRITE | NEXT, 0), "device-readable after a device-writable"),
    ],
)
def test_hostile_descriptors_break_the_device(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int], reason: str
) -> None:
    guest = Guest()
    put(guest.queue, first, second)
    guest.driver.kick(0)
    assert guest.broken
    assert guest.queue.take() is None
    assert guest.driver.interrupt() == 2
    (warning,) = guest.warnings
    assert reason in warning
    guest.driver.kick(0)
    assert len(guest.events) == 1
    guest.probe()
    assert guest.ask(LockPCR(20)) == "LockPCR"


def test_available_index_too_far_ahead() -> None:
    guest = Guest()
    guest.memory.write_u16(guest.queue.avail + 2, 3)
    guest.driver.kick(0)
    assert guest.broken
    assert "3 ahead of the device, expected at most 2" in guest.warnings[0]


def test_head_outside_the_table() -> None:
    guest = Guest()
    guest.queue.offer(2)
    guest.queue.offer(0)
    guest.driver.kick(0)
    assert guest.broken
    assert "descriptor 2 named" in guest.warnings[0]


def test_a_delayed_answer_comes_when_it_is_due() -> None:
    guest = Guest()
    guest.module.faults.add(parse_fault("LockPCR#1 delay 2s"))
    guest.begin(LockPCR(20))
    for _ in range(3):
        guest.driver.kick(0)
        assert guest.finished() is None
    assert guest.module.bank.describe(20)[0] is False, "nothing is done before it is answered"
    assert guest.schedule.run() == [2_000_000_000]
    assert guest.finished() == "LockPCR"
    assert guest.ask(LockPCR(21)) == "LockPCR"
    assert [e.kind for e in guest.events].count("nsm.request") == 2  # type: ignore[attr-defined]


def test_taking_a_delay_away_lets_go_of_what_it_holds() -> None:
    guest = Guest(size=16)
    held, other = map(guest.module.faults.add, map(parse_fault, ("LockPCR#1 delay 2h", "LockPCR drop if index == 9")))
    later = guest.module.faults.add(parse_fault("LockPCR#2 delay 3h"))
    guest.begin(LockPCR(20))
    guest.module.faults.remove(other)
    (_, old_timer), (_, unrelated) = guest.schedule.works
    unrelated()
    assert guest.finished() is None, "another fault's going changes nothing"
    guest.schedule.works.clear()
    guest.module.faults.remove(held)
    assert guest.schedule.run() == [0]
    assert guest.finished() == "LockPCR"
    guest.begin(LockPCR(21))
    old_timer()
    assert guest.finished() is None, "the first request's time is not the second's"
    guest.module.faults.remove(later)
    guest.schedule.run()
    assert guest.finished() == "LockPCR"


def test_requests_behind_a_delayed_one_wait_for_it() -> None:
    guest = Guest(size=16)
    guest.module.faults.add(parse_fault("LockPCR#1 delay 2s"))
    guest.begin(LockPCR(20))
    guest.begin(LockPCR(20))
    assert guest.queue.take_all() == []
    guest.schedule.run()
    used = guest.queue.take_all()
    assert [cbor2.loads(guest.queue.written(u)) for u in used[1::2]] == ["LockPCR", {"Error": "ReadOnlyIndex"}]


def test_a_dropped_request_is_never_answered_and_those_after_it_are() -> None:
    guest = Guest(size=16)
    guest.module.faults.add(parse_fault("LockPCR#1 drop"))
    guest.begin(LockPCR(20))
    assert guest.finished() is None
    assert not guest.line.level
    assert guest.schedule.works == []
    assert guest.ask(LockPCR(20)) == "LockPCR"


def test_a_cut_answer_has_the_length_that_is_left() -> None:
    guest = Guest()
    guest.module.faults.add(parse_fault("GetRandom cut 30"))
    assert len(guest.exchange(encode_request(GetRandom()))) == 30


def test_a_stop_before_the_answer_leaves_the_request_in_the_ring() -> None:
    guest = Guest()
    guest.schedule.stopping = True
    guest.begin(LockPCR(20))
    assert guest.finished() is None
    guest.schedule.stopping = False
    assert guest.schedule.run() == [0]
    assert guest.finished() == "LockPCR"


def test_a_catchpoint_that_hears_of_the_request_holds_its_answer() -> None:
    guest = Guest(size=16)
    guest.stops_at = NsmRequest
    guest.begin(LockPCR(20))
    assert guest.finished() is None
    assert [type(event) for event in guest.events] == [NsmRequest], "heard of, not answered, and nothing is locked"
    # Another kick while the machine stands still changes nothing.
    guest.driver.kick(0)
    assert guest.finished() is None
    guest.schedule.stopping = False
    assert guest.schedule.run() == [0]
    assert guest.finished() == "LockPCR"
    assert sum(isinstance(event, NsmRequest) for event in guest.events) == 1


def test_a_delay_that_is_over_when_the_machine_stops_lasts_until_it_goes_on() -> None:
    guest = Guest()
    guest.module.faults.add(parse_fault("LockPCR delay 1s"))
    guest.begin(LockPCR(20))
    guest.schedule.stopping = True
    assert guest.schedule.run() == [1_000_000_000]
    assert guest.finished() is None
    guest.schedule.stopping = False
    assert guest.schedule.run() == [0]
    assert guest.finished() == "LockPCR"


def test_a_request_that_is_put_off_is_in_a_saved_state() -> None:
    memory = GuestMemory(RAM)
    other, guest = Guest(memory), Guest(memory)
    guest.schedule.stopping = True
    guest.begin(LockPCR(20))
    other.mmio.load(guest.mmio.save())
    other.queue = guest.queue
    assert other.queue.written(other.queue.take_all()[1]) == b"gLockPCR"


def test_a_guest_that_resets_again_and_again_leaves_nothing_behind() -> None:
    guest = Guest()
    guest.module.faults.add(parse_fault("LockPCR delay 24h"))
    for _ in range(50):
        guest.begin(LockPCR(20))
        guest.probe()
    assert guest.schedule.works == []


def test_while_a_stop_is_coming_the_next_request_is_not_heard_of() -> None:
    guest = Guest(size=16)
    guest.begin(LockPCR(20))
    guest.queue.take_all()
    guest.events.clear()
    guest.schedule.stopping = True
    guest.begin(LockPCR(21))
    guest.begin(LockPCR(22))
    assert guest.events == []
    guest.schedule.stopping = False
    guest.schedule.run()
    assert len(guest.queue.take_all()) == 4


@pytest.mark.parametrize("put_off", ["delay", "stop"])
def test_what_was_put_off_does_not_outlast_a_reset(put_off: str) -> None:
    guest = Guest()
    if put_off == "delay":
        guest.module.faults.add(parse_fault("LockPCR#1 delay 2s"))
    guest.schedule.stopping = put_off == "stop"
    guest.begin(LockPCR(20))
    guest.schedule.stopping = False
    guest.probe()
    guest.begin(LockPCR(21))
    assert guest.finished() == "LockPCR"
    guest.schedule.run()
    assert guest.finished() is None
    assert [guest.module.bank.describe(index)[0] for index in (20, 21)] == [False, True]


def test_a_guest_that_changes_a_request_while_it_waits() -> None:
    guest = Guest()
    guest.module.faults.add(parse_fault("any delay 1s"))
    guest.begin(LockPCR(20))
    guest.queue.descriptor(1, 0x2_0000, 16, 0, 0)  # the answer's buffer becomes readable
    guest.schedule.run()
    assert guest.broken
    guest.probe()
    guest.begin(LockPCR(20))
    guest.queue.descriptor(0, RAM, 16, 0, 0)
    guest.schedule.run()
    assert guest.broken
    guest.probe()
    guest.begin(LockPCR(20))
    guest.memory.write_u16(guest.queue.avail + 2, guest.queue.avail_idx - 1)  # the ring has less in it than before
    guest.schedule.run()
    assert guest.finished() is None


@given(st.binary(max_size=80))
@settings(deadline=None, max_examples=100)
def test_any_request_gets_a_legal_answer(request: bytes) -> None:
    if not request:
        return
    answer = Guest(SHARED).exchange(request)
    assert cbor2.dumps(cbor2.loads(answer)) == answer


NUMBERS = st.one_of(st.integers(0, RAM), st.integers(0, 2**64 - 1))
DESCRIPTORS = st.tuples(
    NUMBERS, st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)), st.integers(0, 7), st.integers(0, 3)
)


@given(
    st.lists(DESCRIPTORS, min_size=2, max_size=2),
    st.lists(st.integers(0, 3), min_size=2, max_size=2),
    st.one_of(st.integers(0, 3), st.integers(0, 0xFFFF)),
)
@settings(deadline=None, max_examples=150)
def test_any_descriptor_table_is_answered_or_breaks_the_device(
    table: list[tuple[int, int, int, int]], heads: list[int], index: int
) -> None:
    guest = Guest(SHARED)
    for at, descriptor in enumerate(table):
        guest.queue.descriptor(at, *descriptor)
    SHARED.write(guest.queue.avail, struct.pack("<HHHH", 0, index, *heads))
    guest.driver.kick(0)
    assert guest.broken == bool(guest.warnings)
    guest.probe()
    assert guest.ask(LockPCR(20)) in ("LockPCR", {"Error": "ReadOnlyIndex"})


SHARED = GuestMemory(RAM)
