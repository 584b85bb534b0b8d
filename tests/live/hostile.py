"""A whole machine with a guest that means harm: bare code on the real chipset, virtio devices, bus and CPU engine."""

from __future__ import annotations

import asyncio
import random
import struct
from types import TracebackType

from enclavedbg.machine.bus import Bus
from enclavedbg.machine.chipset.board import Board
from enclavedbg.machine.clock import Clock
from enclavedbg.machine.console import Console
from enclavedbg.machine.cpu.soft.engine import SoftEngine
from enclavedbg.machine.debug import DebugTarget
from enclavedbg.machine.events import Event, EventStream, GuestWarning
from enclavedbg.machine.layout import NSM_IRQ, NSM_WINDOW, VIRTIO_WINDOW_SIZE, VSOCK_IRQ, VSOCK_WINDOW
from enclavedbg.machine.memory import GuestMemory
from enclavedbg.machine.vcpu import RunState, VirtualCpu
from enclavedbg.machine.verdict import Verdict, Witness
from enclavedbg.machine.virtio.mmio import VirtioMmio
from enclavedbg.machine.virtio.nsm import VirtioNsm
from enclavedbg.machine.virtio.vsock import VirtioVsock
from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.module import SecureModule
from enclavedbg.vsock.switch import VsockSwitch
from tests.machine.cpu.bare import (
    CODE,
    DATA,
    GDT,
    HANDLERS,
    HLT,
    IDT,
    SIZE,
    STACK,
    TABLES,
    TSS,
    USER_CODE,
    BareGuest,
)

DONE = b"\xfa" + HLT  # cli; hlt: the end of a guest that got through
LIST = 0x100000
"""Where the values lie that a guest's loop writes somewhere."""
RINGS = 0x200000
LIMIT = 30.0
"""Seconds after which a machine that does not stop when told to has failed the test."""


class HostileMachine(BareGuest):
    """Use as a context manager, in a running event loop's thread; `run` it once."""

    def __init__(self, *, native: bool, loop: asyncio.AbstractEventLoop | None = None, seed: int = 0) -> None:
        loop = loop or asyncio.get_running_loop()
        self.clock = Clock()
        self.events = EventStream(self.clock.guest_ns)
        witness = Witness()
        self.events.subscribe(witness)
        self.memory = GuestMemory(SIZE)
        self.bus = Bus()
        self.console = Console(self.publish, file=None)
        self.board = Board(
            self.bus,
            self.clock,
            self.console,
            reset=lambda: self.vcpu.guest_reset(),
            power_off=lambda: self.vcpu.guest_power_off(),
        )
        self.engine = SoftEngine(self.memory, self.bus, interrupts=self.board.pic, use_native=native)
        self.vcpu = VirtualCpu(self.engine, self.board, self.clock, events=self.events, witness=witness)
        self.debug = DebugTarget(self.vcpu, self.memory)
        noise = random.Random(seed)
        module = SecureModule(
            authority=Authority(None, now=self.clock.host_now, random_bytes=noise.randbytes),
            measurements={0: bytes(48)},
            module_id="i-0123456789abcdef0-enc0123456789abcdef",
            now=self.clock.host_now,
            random_bytes=noise.randbytes,
            emit=self.publish,
        )
        self.switch = VsockSwitch(16, loop, publish=self.publish, now_ns=self.clock.guest_ns)
        for device, window, irq in (
            (VirtioVsock(self.switch, post=self.vcpu.post), VSOCK_WINDOW, VSOCK_IRQ),
            (VirtioNsm(module, schedule=self.vcpu), NSM_WINDOW, NSM_IRQ),
        ):
            transport = VirtioMmio(device, self.memory, irq=self.board.pic.line(irq), publish=self.publish)
            self.bus.attach_mmio(window, VIRTIO_WINDOW_SIZE, transport)
        self._tables()
        self._descriptors()
        for third_gib in range(1, 4):
            self.memory.write_u64(TABLES + 0x1000 + 8 * third_gib, third_gib << 30 | 0x87)
        self.state = self._state()

    def publish(self, event: Event) -> None:
        self.events.publish(event)

    def __enter__(self) -> HostileMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.vcpu.close()
        self.console.close()
        self.close()

    def run(self, *code: bytes, seconds: float = LIMIT) -> Verdict | None:
        """Run from CODE; the verdict, or None when the guest went on for `seconds` and then stopped when told to."""
        if code:
            self.code(*code)
        self.start()
        self.vcpu.start()
        self.vcpu.resume()
        if not self.vcpu.wait(False, seconds):
            self.vcpu.request_stop()
            assert self.vcpu.wait(False, LIMIT), "the machine does not stop"
        if self.vcpu.state is RunState.ENDED:
            assert self.vcpu.verdict is not None
            assert "\n" not in self.vcpu.verdict.line
            return self.vcpu.verdict
        return None

    def warnings(self) -> list[str]:
        return [r.event.text for r in self.events.history("warning") if isinstance(r.event, GuestWarning)]

    # ---- code that works off a list ----

    def poke(self, *writes: tuple[int, int]) -> bytes:
        """Code that stores four bytes at each address of a list, and reads them back."""
        self.memory.write(LIST, b"".join(struct.pack("<QQ", address, value) for address, value in writes))
        # mov rsi, LIST; mov rbx, n; again: mov rdi, [rsi]; mov eax, [rsi+8]; mov [rdi], eax; mov ecx, [rdi];
        # add rsi, 16; dec rbx; jnz again
        return (
            b"\x48\xc7\xc6" + struct.pack("<i", LIST) + b"\x48\xc7\xc3" + struct.pack("<i", len(writes))
        ) + bytes.fromhex("488b3e 8b4608 8907 8b0f 4883c610 48ffcb 75ed")

    def out(self, *writes: tuple[int, int]) -> bytes:
        """Code that writes each value to its port with one, two and four bytes, and reads it likewise."""
        self.memory.write(LIST, b"".join(struct.pack("<QQ", port, value) for port, value in writes))
        # again: mov edx, [rsi]; mov eax, [rsi+8]; out dx, al; out dx, ax; out dx, eax; in al, dx; in ax, dx; in eax, dx
        return (
            b"\x48\xc7\xc6" + struct.pack("<i", LIST) + b"\x48\xc7\xc3" + struct.pack("<i", len(writes))
        ) + bytes.fromhex("8b16 8b4608 ee 66ef ef ec 66ed ed 4883c610 48ffcb 75ea")

    # ---- a guest of random bytes ----

    def randomise(self, noise: random.Random) -> None:
        """Random code in both rings, handlers of many kinds, and now and then another mode or a broken table."""
        for vector in range(256):
            if noise.randrange(8):
                self.gate(vector, noise.choice(_HANDLERS), ist=noise.choice((0, 0, 0, 1, 7)))
                if not noise.randrange(4):
                    kind = noise.choice((0xEE, 0xEF, 0x8F, 0x85, 0x8C, 0x0E, 0xE5, 0x86))
                    self.memory.write(IDT + vector * 16 + 5, bytes([kind]))
        self.code(_program(noise))
        self.code(_program(noise), at=USER_CODE)
        if noise.randrange(2):
            self.to_user(USER_CODE, interrupts=bool(noise.randrange(2)))
            for i in range(SIZE >> 21):
                self.memory.write_u64(TABLES + 0x2000 + 8 * i, i << 21 | 0x87)
        else:
            self.state.rflags = noise.choice((2, 0x202, 0x302, 0x3002, 0x40202))
        for name in self.state.regs:
            if name != "rsp" or not noise.randrange(8):
                self.state.regs[name] = _value(noise)
        self.state.msrs.star, self.state.msrs.lstar = _value(noise), _value(noise)


_MODEL_REGISTERS = (
    0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC001_0117,
    0x1B, 0x10, 0x3B, 0x277, 0x200, 0x20F, 0x250, 0x26F, 0x2FF, 0x17A, 0x400, 0x428, 0xD90, 0x1A0, 0x174,
)  # fmt: skip
_HANDLERS = tuple(
    bytes.fromhex(h)
    for h in (
        "48cf",
        "4883042401 48cf",
        "4883c408 48cf",
        "f4",
        "0f0b",
        "4883c408 4883042402 48cf",
        "fb 4883042401 48cf",
    )
)
_SYSTEM_CODE = """
    0f01d8 0f01d9 0f01da 0f01db 0f01dc 0f01dd 0f01de 0f01df 0faa 0f01c8 0f01c9 0f30 0f32 0f22c0 0f20d8 0f22d8
    0f22e0 0f23c0 0f23f8 0f21f8 0f05 0f07 480f07 0f34 0f35 cf 48cf cb 48cb cd03 cd80 cd08 cd0e cc f1 fb fa 9d
    9c 0f00d8 0f00d0 0f00c8 8ed0 8ed8 8ec0 8ee8 0f0118 0f0110 0f0113 0f01f8 0f01f0 0fa2 0f31 0f01f9 0f09
    c8ffff1f c9 ffe0 ff28 ff18 48ff28 f3a4 f348ab f3ae f36e f36c ec ef e4 6664ff eb e8 0fae00 480fae08 0fae20
    0f01d0 0f01d1 dbe3 d9 dd f0480fc70f 0f0b 0fff c3 c2 e2fe c4e2 c5f8 62 d7 440f22c0
"""
"""What a kernel does to its own processor, and what it should not: system instructions, far transfers, strings."""
_PIECES = tuple(bytes.fromhex(code) for code in _SYSTEM_CODE.split())


def _move(register: int, value: int) -> bytes:
    return bytes([0x48 | register >> 3, 0xB8 | register & 7]) + struct.pack("<Q", value)


def _value(noise: random.Random) -> int:
    places = (GDT, TSS, IDT, TABLES, TABLES + 0x1000, TABLES + 0x2000, CODE, HANDLERS, STACK, DATA)
    value = noise.choice(
        (
            noise.getrandbits(64),
            noise.choice(_MODEL_REGISTERS),
            noise.choice((0, 1, 2, 3, 8, 0x10, 0x18, 0x23, 0x2B, 0x30, 0x33, 0x38, 0xFFFF)),
            noise.choice(places) + noise.randrange(256),
            1 << noise.randrange(64),
            noise.choice((0x8001_0013, 0x11, 0x10, 0x8005_0033, 0x620, 0x20, 0x36_0620, 0xD01, 0x501, 0x1D01)),
            noise.choice((VSOCK_WINDOW, NSM_WINDOW, 0xFED0_0000, SIZE, SIZE - 8, 1 << 40, 1 << 47, 0xFFFF << 48)),
            noise.randrange(0x10000),
            -noise.randrange(256),
        )
    )
    return value & 0xFFFF_FFFF_FFFF_FFFF


def _program(noise: random.Random) -> bytes:
    code = b""
    while len(code) < noise.randrange(40, 600):
        match noise.randrange(8):
            case 0 | 1:
                code += _move(noise.randrange(16), _value(noise))
            case 2 | 3 | 4:
                code += noise.choice(_PIECES)
            case 5:
                code += noise.randbytes(noise.randrange(1, 12))
            case 6:  # mov [rdi], rax, wherever that is
                code += _move(7, _value(noise)) + _move(0, _value(noise)) + b"\x48\x89\x07"
            case _:  # wrmsr
                code += _move(1, noise.choice(_MODEL_REGISTERS)) + _move(0, _value(noise)) + b"\x31\xd2\x0f\x30"
    return code
