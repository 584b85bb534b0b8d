"""The kernel's log, read from guest memory: what `dmesg` would print, also when no console was ever written to.

Source: kernel/printk/printk_ringbuffer.c and .h of Linux 5.10 to 6.12. Offsets come from BTF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from enclavedbg.errors import GuestFault, SymbolError
from enclavedbg.kernel.btf import Btf
from enclavedbg.kernel.symbols import KernelSymbols

Read = Callable[[int, int], bytes]

MAX_DESCRIPTOR_BITS = 18
MAX_DATA_BITS = 24
"""Bounds on what the guest says of its ring: 2^18 records, 16 MiB of text."""
STATE_SHIFT = 62
ID_MASK = (1 << STATE_SHIFT) - 1
COMMITTED, FINALIZED = 1, 2
DATALESS = 1
"""Bit of a text position that says that there is no text."""
WORD = 8


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One message. `time_ns` is the kernel's clock in ns since boot; `level` 0 (emergency) to 7 (debug)."""

    sequence: int
    time_ns: int
    level: int
    facility: int
    text: str


@dataclass(frozen=True, slots=True)
class _Fields:
    """Offsets and sizes of this kernel's ring, in bytes."""

    descriptor_size: int
    state: int
    begin: int
    next: int
    info_size: int
    sequence: int
    time: int
    length: int
    facility: int
    level: tuple[int, int]

    @classmethod
    def of(cls, btf: Btf) -> _Fields:
        """As the kernel's types have them; raises SymbolError when a field does not lie in its struct."""
        level = btf.member("printk_info", "level")
        fields = cls(
            btf.struct("prb_desc").size,
            btf.offset("prb_desc", "state_var"),
            btf.offset("prb_desc", "text_blk_lpos.begin"),
            btf.offset("prb_desc", "text_blk_lpos.next"),
            btf.struct("printk_info").size,
            btf.offset("printk_info", "seq"),
            btf.offset("printk_info", "ts_nsec"),
            btf.offset("printk_info", "text_len"),
            btf.offset("printk_info", "facility"),
            (level.bit_offset, level.bit_size),
        )
        descriptor_end = max(fields.state, fields.begin, fields.next) + WORD
        info_end = max(
            fields.sequence + WORD, fields.time + WORD, fields.length + 2, fields.facility + 1,
            -(-sum(fields.level) // 8),
        )  # fmt: skip
        for name, size, end in (
            ("prb_desc", fields.descriptor_size, descriptor_end),
            ("printk_info", fields.info_size, info_end),
        ):
            if end > size:
                raise SymbolError(f"this kernel's struct {name} has {size} bytes, and a member that ends at {end}")
        return fields


def read_log(read: Read, symbols: KernelSymbols, btf: Btf) -> list[LogRecord]:
    """The messages that the ring still holds, oldest first.

    `read` takes (virtual address, length). Raises SymbolError for a kernel without this ring or with a damaged one,
    GuestFault when it is not mapped. Records that are being written, or were overwritten, are left out.
    """
    pointer = symbols.address("prb")
    if pointer is None:
        raise SymbolError("this kernel has no printk ring buffer (prb): it is older than 5.10 or has no printk")
    ring = _number(_exactly(read, pointer, WORD))

    def field(path: str, size: int = WORD) -> int:
        return _number(_exactly(read, ring + btf.offset("printk_ringbuffer", path), size))

    count_bits, size_bits = field("desc_ring.count_bits", 4), field("text_data_ring.size_bits", 4)
    if not (0 < count_bits <= MAX_DESCRIPTOR_BITS and 0 < size_bits <= MAX_DATA_BITS):
        raise SymbolError(f"the kernel's log at {ring:#x} claims 2^{count_bits} records and 2^{size_bits} bytes")
    fields = _Fields.of(btf)
    count = 1 << count_bits
    first, last = field("desc_ring.tail_id") & ID_MASK, field("desc_ring.head_id") & ID_MASK
    descriptors = _exactly(read, field("desc_ring.descs"), count * fields.descriptor_size)
    infos = _exactly(read, field("desc_ring.infos"), count * fields.info_size)
    text = _exactly(read, field("text_data_ring.data"), 1 << size_bits)
    number = min((last - first & ID_MASK) + 1, count)
    return list(_records(fields, descriptors, infos, text, ids=(first + i & ID_MASK for i in range(number))))


def _records(
    fields: _Fields, descriptors: bytes, infos: bytes, text: bytes, *, ids: Iterator[int]
) -> Iterator[LogRecord]:
    count = len(descriptors) // fields.descriptor_size
    for record_id in ids:
        index = record_id & count - 1
        descriptor = descriptors[index * fields.descriptor_size :][: fields.descriptor_size]
        state = _number(descriptor[fields.state :][:WORD])
        if state >> STATE_SHIFT not in (COMMITTED, FINALIZED) or state & ID_MASK != record_id:
            continue
        info = infos[index * fields.info_size :][: fields.info_size]
        begin, end = (_number(descriptor[at:][:WORD]) for at in (fields.begin, fields.next))
        place, bits = fields.level
        message = _text(text, begin, end)[: _number(info[fields.length :][:2])]
        yield LogRecord(
            _number(info[fields.sequence :][:WORD]),
            _number(info[fields.time :][:WORD]),
            _number(info) >> place & (1 << bits) - 1,
            info[fields.facility],
            message.decode("utf-8", "replace"),
        )


def _text(ring: bytes, begin: int, end: int) -> bytes:
    """A block's text, behind the id that begins it; one that would wrap lies at the start of the ring instead."""
    size = len(ring)
    if begin & end & DATALESS:
        return b""
    if begin // size == end // size and begin < end:
        return ring[begin % size + WORD : end % size]
    return ring[WORD : end % size] if begin // size + 1 == end // size else b""


def _exactly(read: Read, address: int, length: int) -> bytes:
    data = read(address, length)
    if len(data) != length:
        raise GuestFault(f"{address + len(data):#x}, in the kernel's log, is not mapped", address=address + len(data))
    return data


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
