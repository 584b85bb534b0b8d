"""The 16550A serial port behind the enclave's console (National PC16550D data sheet)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from enclavedbg.machine.bus import IrqLine

RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RX = 0x01
IER_THRE = 0x02
IER_LINE = 0x04

IIR_NONE = 0x01
IIR_THRE = 0x02
IIR_RX = 0x04
IIR_LINE = 0x06
IIR_RX_TIMEOUT = 0x0C
IIR_FIFOS = 0xC0

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02

LCR_DLAB = 0x80

MCR_OUT2 = 0x08
MCR_LOOP = 0x10

LSR_DATA = 0x01
LSR_OVERRUN = 0x02
LSR_IDLE = 0x60
"""THRE and TEMT: what is written is gone at once."""

MSR_CONNECTED = 0xB0
"""DCD, DSR and CTS: somebody listens."""

_TRIGGER = (1, 4, 8, 14)
FIFO_SIZE = 16
INPUT_LIMIT = 4096


@dataclass(slots=True)
class UartState:
    """The registers that the guest sees, and its received bytes."""

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = 12
    thre_pending: bool = False
    overrun: bool = False
    received: tuple[int, ...] = ()


class Uart16550:
    """COM1: every transmitted byte goes to `sink` at once; `receive` brings the host's input.

    Transmitting never waits, so the transmitter is always empty. The interrupt passes the MCR's OUT2 gate, as
    on a PC.
    """

    def __init__(self, irq: IrqLine, sink: Callable[[int], None]) -> None:
        self._irq = irq
        self._sink = sink
        self._state = UartState()
        self._received: deque[int] = deque()

    def receive(self, data: Iterable[int]) -> int:
        """Queue bytes for the guest and return how many fitted (the host side holds at most 4096)."""
        accepted = 0
        for byte in data:
            if len(self._received) >= INPUT_LIMIT:
                break
            self._received.append(byte & 0xFF)
            accepted += 1
        self._update()
        return accepted

    def port_write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        state = self._state
        if offset == RBR_THR:
            if state.lcr & LCR_DLAB:
                state.divisor = state.divisor & 0xFF00 | value
            else:
                self._transmit(value)
            return
        if offset == IER:
            if state.lcr & LCR_DLAB:
                state.divisor = state.divisor & 0xFF | value << 8
                return
            # Enabling THRE with an empty transmitter raises it; Linux tests for that.
            if value & IER_THRE and not state.ier & IER_THRE:
                state.thre_pending = True
            state.ier = value & 0x0F
        elif offset == IIR_FCR:
            if value & FCR_CLEAR_RX or (value ^ state.fcr) & FCR_ENABLE:
                self._received.clear()
                state.overrun = False
            state.fcr = value & 0xC9 if value & FCR_ENABLE else 0
        elif offset == LCR:
            state.lcr = value
        elif offset == MCR:
            state.mcr = value & 0x1F
        elif offset == SCR:
            state.scr = value
        self._update()

    def port_read(self, offset: int, size: int) -> int:
        state = self._state
        if offset == LSR:
            value = LSR_IDLE | (LSR_DATA if self._received else 0) | (LSR_OVERRUN if state.overrun else 0)
            if state.overrun:
                state.overrun = False
                self._update()
            return value
        if offset == RBR_THR:
            return state.divisor & 0xFF if state.lcr & LCR_DLAB else self._take()
        if offset == IER:
            return state.divisor >> 8 if state.lcr & LCR_DLAB else state.ier
        if offset == IIR_FCR:
            return self._identify()
        if offset == LCR:
            return state.lcr
        if offset == MCR:
            return state.mcr
        if offset == MSR:
            return self._modem_status()
        return state.scr

    def _transmit(self, value: int) -> None:
        state = self._state
        if state.mcr & MCR_LOOP:
            if len(self._received) >= (FIFO_SIZE if state.fcr & FCR_ENABLE else 1):
                state.overrun = True
            else:
                self._received.append(value)
        else:
            self._sink(value)
        if state.ier & IER_THRE and not state.thre_pending:
            state.thre_pending = True
        self._update()

    def _take(self) -> int:
        if not self._received:
            return 0
        value = self._received.popleft()
        self._update()
        return value

    def _source(self) -> int:
        """The interrupt with the highest priority, as IIR names it."""
        state = self._state
        if state.overrun and state.ier & IER_LINE:
            return IIR_LINE
        if self._received and state.ier & IER_RX:
            full = len(self._received) >= (_TRIGGER[state.fcr >> 6] if state.fcr & FCR_ENABLE else 1)
            return IIR_RX if full else IIR_RX_TIMEOUT
        if state.thre_pending and state.ier & IER_THRE:
            return IIR_THRE
        return IIR_NONE

    def _identify(self) -> int:
        source = self._source()
        if source == IIR_THRE:
            self._state.thre_pending = False
            self._update()
        return source | (IIR_FIFOS if self._state.fcr & FCR_ENABLE else 0)

    def _modem_status(self) -> int:
        mcr = self._state.mcr
        if not mcr & MCR_LOOP:
            return MSR_CONNECTED
        # Loopback wires RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        return (mcr & 0x02) << 3 | (mcr & 0x01) << 5 | (mcr & 0x04) << 4 | (mcr & 0x08) << 4

    def _update(self) -> None:
        gated = self._state.mcr & (MCR_OUT2 | MCR_LOOP) != MCR_OUT2
        self._irq.set(not gated and self._source() != IIR_NONE)

    def reset(self) -> None:
        """Back to power-on; input that the guest has not read is gone."""
        self.load(UartState())

    def save(self) -> UartState:
        """A copy of the state."""
        return replace(self._state, received=tuple(self._received))

    def load(self, state: UartState) -> None:
        """Replace the state."""
        self._state = replace(state, received=())
        self._received = deque(state.received)
        self._update()
