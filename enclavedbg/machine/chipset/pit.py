"""The 8254 interval timer, and port 0x61 through which its third channel is gated (Intel 8254 data sheet)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from enclavedbg.machine.bus import IrqLine

FREQUENCY = 1_193_182
"""Input clock of all three channels, in Hz."""

_SECOND = 1_000_000_000
_ONE_SHOT = (0, 1, 4, 5)
_TRIGGERED = (1, 5)
_REFRESH_NS = 15_085
"""Half the period of the DRAM refresh bit in port 0x61, which old code uses as a clock."""


@dataclass(slots=True)
class PitChannel:
    """One counter. It keeps no running count: counts are computed from the guest's time when asked.

    Times are guest nanoseconds; ticks are periods of the 1.19 MHz clock.
    """

    mode: int = 3
    access: int = 3
    """1 low byte, 2 high byte, 3 low then high."""
    bcd: bool = False
    reload: int = 0x10000
    counting: bool = False
    """Whether a count was loaded since the mode was set, and its trigger came."""
    loaded: bool = False
    start_ns: int = 0
    gate: bool = True
    frozen: int = 0
    """Ticks counted until a low gate stopped the counter."""
    write_low: int | None = None
    read_high: bool = False
    latched: int | None = None
    latched_status: int | None = None

    def ticks(self, now: int) -> int:
        """Ticks since the count was loaded, or triggered."""
        if not self.counting or (not self.gate and self.mode not in _TRIGGERED):
            return self.frozen
        return self.frozen + (now - self.start_ns) * FREQUENCY // _SECOND

    def count(self, now: int) -> int:
        """The 16-bit value that the guest reads (in BCD when it asked for that)."""
        modulus = 10_000 if self.bcd else 0x10000
        ticks = self.ticks(now)
        if self.mode in _ONE_SHOT:
            value = (self.reload - ticks) % modulus
        elif self.mode == 2:
            value = (self.reload - ticks % self.reload) % modulus
        else:
            value = (self.reload - 2 * ticks % self.reload) % modulus & ~1
        return int(str(value), 16) if self.bcd else value

    def output(self, now: int) -> bool:
        """Level of the OUT pin."""
        if not self.counting:
            return self.mode != 0
        ticks = self.ticks(now)
        if self.mode in (0, 1):
            return ticks >= self.reload
        if self.mode in (4, 5):
            return ticks != self.reload
        if not self.gate:
            return True
        if self.mode == 2:
            return ticks % self.reload != self.reload - 1
        return ticks % self.reload < (self.reload + 1) // 2

    def next_edge(self, now: int) -> int | None:
        """When OUT rises next, strictly after `now`; None when it does not."""
        if not self.counting or not self.gate:
            return None
        ticks = self.ticks(now)
        if self.mode in _ONE_SHOT:
            if ticks >= self.reload:
                return None
            at = self.reload
        else:
            at = (ticks // self.reload + 1) * self.reload
        return self.start_ns - (-(at - self.frozen) * _SECOND // FREQUENCY)

    def set_mode(self, control: int) -> None:
        """A control word: the counter stops until a count is written."""
        mode = control >> 1 & 7
        self.mode = mode & 3 if mode > 5 else mode
        self.access = control >> 4 & 3
        self.bcd = bool(control & 1)
        self.counting = self.loaded = False
        self.frozen = 0
        self.write_low = self.latched = self.latched_status = None
        self.read_high = False

    def write(self, value: int, now: int) -> bool:
        """A byte of the count; returns True when the count is complete and was loaded."""
        if self.access == 1:
            count = value
        elif self.access == 2:
            count = value << 8
        elif self.write_low is None:
            self.write_low = value
            if self.mode == 0:
                self.counting = False  # the data sheet: the first byte disables counting
            return False
        else:
            count = self.write_low | value << 8
            self.write_low = None
        if self.bcd:
            count = sum((count >> shift & 15) * 10 ** (shift // 4) for shift in (0, 4, 8, 12))
        self.reload = count or (10_000 if self.bcd else 0x10000)
        if self.mode in (2, 3) and self.reload == 1:
            self.reload = 2  # illegal in these modes; must not become a flood of edges
        self.loaded = True
        self.frozen = 0
        self.start_ns = now
        self.counting = self.mode not in _TRIGGERED
        return True

    def latch(self, now: int) -> None:
        if self.latched is None:
            self.latched = self.count(now)

    def latch_status(self, now: int) -> None:
        if self.latched_status is None:
            self.latched_status = (
                self.output(now) << 7 | (not self.loaded) << 6 | self.access << 4 | self.mode << 1 | self.bcd
            )

    def read(self, now: int) -> int:
        """The next byte: latched status first, then the latched count, else the running one."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        value = self.count(now) if self.latched is None else self.latched
        if self.access == 3:
            self.read_high = not self.read_high
            if self.read_high:
                return value & 0xFF
            self.latched = None
            return value >> 8
        self.latched = None
        return value >> 8 if self.access == 2 else value & 0xFF

    def set_gate(self, level: bool, now: int) -> None:
        """Change the GATE input."""
        if level == self.gate:
            return
        if self.mode in _TRIGGERED:
            self.gate = level
            if level and self.loaded:
                self.counting, self.frozen, self.start_ns = True, 0, now
            return
        self.frozen = self.ticks(now)
        self.gate = level
        if level:
            self.start_ns = now
            if self.mode in (2, 3):
                self.frozen = 0


@dataclass(frozen=True, slots=True)
class PitState:
    """The three channels, the speaker bit and the guest time of an IRQ 0 edge still to come, as data."""

    channels: tuple[PitChannel, ...]
    speaker: bool
    next_ns: int | None


class _GatePort:
    """Port 0x61: bit 0 gates channel 2, bit 1 the speaker, bit 4 toggles, bit 5 is channel 2's output."""

    def __init__(self, pit: Pit8254) -> None:
        self._pit = pit

    def port_read(self, offset: int, size: int) -> int:
        pit = self._pit
        now = pit.guest_ns()
        channel = pit.channels[2]
        return channel.gate | pit.speaker << 1 | (now // _REFRESH_NS & 1) << 4 | channel.output(now) << 5

    def port_write(self, offset: int, size: int, value: int) -> None:
        pit = self._pit
        pit.speaker = bool(value & 2)
        pit.channels[2].set_gate(bool(value & 1), pit.guest_ns())


class Pit8254:
    """The timer behind ports 0x40-0x43. Channel 0's rising output is IRQ 0; `gate_port` belongs at 0x61.

    The vCPU loop asks `next_event_ns()` how long it may run and calls `tick()`. Periods that passed while
    nobody looked give one interrupt, not a burst: Linux counts time by its clocksource, not by ticks.
    `on_change`, when set, is called whenever the guest moved the next edge, with the vCPU in the guest.
    """

    def __init__(self, guest_ns: Callable[[], int], irq: IrqLine) -> None:
        self.guest_ns = guest_ns
        self.channels = (PitChannel(), PitChannel(), PitChannel(gate=False))
        self.speaker = False
        self.gate_port = _GatePort(self)
        self._irq = irq
        self._next: int | None = None
        self.on_change: Callable[[], None] | None = None

    def next_event_ns(self) -> int | None:
        """Guest time of the next IRQ 0 edge, or None when no such edge is coming."""
        return self._next

    def tick(self) -> None:
        """Raise IRQ 0 when its time has come."""
        if self._next is None:
            return
        now = self.guest_ns()
        if now >= self._next:
            self._irq.set(False)
            self._irq.set(True)
            self._next = self.channels[0].next_edge(now)

    def port_read(self, offset: int, size: int) -> int:
        if offset == 3:
            return 0xFF  # the control register cannot be read
        return self.channels[offset].read(self.guest_ns())

    def port_write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == 3:
            self._control(value)
            return
        now = self.guest_ns()
        channel = self.channels[offset]
        channel.write(value, now)
        if offset == 0:
            self._restart(channel, now)

    def _control(self, value: int) -> None:
        select = value >> 6
        now = self.guest_ns()
        if select == 3:  # read-back: bits 1-3 choose channels; low bits 5 and 4 ask for count and status
            for number, channel in enumerate(self.channels):
                if value & 2 << number:
                    if not value & 0x20:
                        channel.latch(now)
                    if not value & 0x10:
                        channel.latch_status(now)
        elif value & 0x30 == 0:
            self.channels[select].latch(now)
        else:
            self.channels[select].set_mode(value)
            if select == 0:
                self._restart(self.channels[0], now)

    def _restart(self, channel: PitChannel, now: int) -> None:
        # The line is low until the next edge, whatever OUT does meanwhile: only edges count, and a mode
        # change must not look like one.
        self._irq.set(False)
        self._next = channel.next_edge(now)
        if self.on_change is not None:
            self.on_change()

    def reset(self) -> None:
        """Back to power-on: nothing counts."""
        self.load(PitState((PitChannel(), PitChannel(), PitChannel(gate=False)), speaker=False, next_ns=None))
        self._irq.set(False)

    def save(self) -> PitState:
        """A copy of the state."""
        return PitState(tuple(replace(c) for c in self.channels), self.speaker, self._next)

    def load(self, state: PitState) -> None:
        """Replace the state."""
        first, second, third = (replace(c) for c in state.channels)
        self.channels = (first, second, third)
        self.speaker = state.speaker
        self._next = state.next_ns
