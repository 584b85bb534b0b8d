"""The two cascaded 8259A interrupt controllers of a PC (Intel 8259A data sheet; ELCR: Intel 82371 data sheet)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from enclavedbg.errors import MachineError

CASCADE = 2
"""The master's input that the slave's output is wired to."""

ELCR_WRITABLE = (0xF8, 0xDE)
"""IRQ 0, 1, 2, 8 and 13 are always edge-triggered on a PC."""


@dataclass(slots=True)
class PicChip:
    """One 8259A: its registers, and the rules between them. Inputs are numbered 0 to 7.

    In both trigger modes a rising line sets the request bit and a falling one takes it back, as on the real
    part (which then answers an acknowledge with the spurious input 7). They differ in `accept` alone.
    """

    cascade: int = 0
    """Mask of inputs that follow another controller, and so are taken by level."""
    elcr: int = 0
    base: int = 0
    irr: int = 0
    isr: int = 0
    imr: int = 0xFF
    lines: int = 0
    lowest: int = 7
    """Input with the lowest priority; the next one has the highest."""
    init_step: int = 0
    """The initialisation word expected next (2, 3, 4), or 0 in operation."""
    single: bool = False
    needs_icw4: bool = False
    level: bool = False
    auto_eoi: bool = False
    rotate_auto_eoi: bool = False
    special_mask: bool = False
    read_isr: bool = False
    poll: bool = False

    def request(self) -> int:
        """The input that the INT output stands for, or -1 when it is low."""
        wanted = self.irr & ~self.imr
        if not wanted or self.init_step:
            return -1
        busy = self.isr & ~self.imr if self.special_mask else self.isr
        first = (self.lowest + 1) & 7
        if first:
            wanted = (wanted >> first | wanted << (8 - first)) & 0xFF
            busy = (busy >> first | busy << (8 - first)) & 0xFF
        low = wanted & -wanted
        if busy and busy & -busy <= low:
            return -1
        return (low.bit_length() - 1 + first) & 7

    def set_line(self, bit: int, level: bool) -> None:
        """Change the input whose mask is `bit`."""
        if not level:
            self.lines &= ~bit
            self.irr &= ~bit
        elif not self.lines & bit:
            self.lines |= bit
            self.irr |= bit

    def set_elcr(self, value: int) -> None:
        """Choose edge (0) or level (1) for each input."""
        self.elcr = value
        self.irr |= self.lines & value

    def accept(self, number: int) -> None:
        """The processor acknowledged this input."""
        bit = 1 << number
        if not (self.level or (self.elcr | self.cascade) & bit):
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_auto_eoi:
            self.lowest = number

    def read_command(self) -> int:
        if self.poll:
            self.poll = False
            number = self.request()
            if number < 0:
                return 7
            self.accept(number)
            return 0x80 | number
        return self.isr if self.read_isr else self.irr

    def write_command(self, value: int) -> None:
        if value & 0x10:
            self._icw1(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value)

    def write_data(self, value: int) -> None:
        """The next initialisation word while one is expected, else the mask."""
        step = self.init_step
        if step == 0:
            self.imr = value
        elif step == 2:
            self.base = value & 0xF8
            self.init_step = (4 if self.needs_icw4 else 0) if self.single else 3
        elif step == 3:
            # How the pair is cascaded is wired on the board; the word only repeats it.
            self.init_step = 4 if self.needs_icw4 else 0
        else:
            self.auto_eoi = bool(value & 0x02)
            self.init_step = 0

    def _icw1(self, value: int) -> None:
        self.needs_icw4 = bool(value & 0x01)
        self.single = bool(value & 0x02)
        self.level = bool(value & 0x08)
        self.init_step = 2
        self.imr = self.isr = 0
        # Edge inputs need a new edge after initialisation, even if the line is still high.
        self.irr = self.lines if self.level else self.lines & (self.elcr | self.cascade)
        self.lowest = 7
        self.auto_eoi = self.rotate_auto_eoi = self.special_mask = self.read_isr = self.poll = False

    def _ocw3(self, value: int) -> None:
        if value & 0x40:
            self.special_mask = bool(value & 0x20)
        if value & 0x04:
            self.poll = True
        elif value & 0x02:
            self.read_isr = bool(value & 0x01)

    def _ocw2(self, value: int) -> None:
        command, number = value >> 5, value & 7
        if command in (1, 5):  # end of interrupt for whatever has the highest priority
            number = self._in_service()
            if number < 0:
                return
        if command in (1, 3, 5, 7):
            self.isr &= ~(1 << number)
        if command in (5, 6, 7):
            self.lowest = number
        elif command in (0, 4):
            self.rotate_auto_eoi = command == 4

    def _in_service(self) -> int:
        for number in range(self.lowest + 1, self.lowest + 9):
            if self.isr >> (number & 7) & 1:
                return number & 7
        return -1


@dataclass(frozen=True, slots=True)
class PicState:
    """Both controllers, as data."""

    master: PicChip
    slave: PicChip


class _Line:
    """One input of the pair."""

    __slots__ = ("_bit", "_pair", "_slave")

    def __init__(self, pair: Pic8259Pair, number: int) -> None:
        self._pair = pair
        self._slave = number >= 8
        self._bit = 1 << (number & 7)

    def set(self, level: bool) -> None:
        pair = self._pair
        chip = pair.slave if self._slave else pair.master
        if bool(chip.lines & self._bit) != level:
            chip.set_line(self._bit, level)
            pair.update()


class _ChipPorts:
    """Command (even) and data (odd) port of one controller."""

    def __init__(self, pair: Pic8259Pair, *, slave: bool) -> None:
        self._pair = pair
        self._slave = slave

    def port_read(self, offset: int, size: int) -> int:
        pair = self._pair
        chip = pair.slave if self._slave else pair.master
        if offset:
            return chip.imr
        value = chip.read_command()
        pair.update()
        return value

    def port_write(self, offset: int, size: int, value: int) -> None:
        pair = self._pair
        chip = pair.slave if self._slave else pair.master
        if offset:
            chip.write_data(value & 0xFF)
        else:
            chip.write_command(value & 0xFF)
        pair.update()


class _ElcrPorts:
    """Edge/level control registers: 0x4d0 for IRQ 0-7, 0x4d1 for IRQ 8-15."""

    def __init__(self, pair: Pic8259Pair) -> None:
        self._pair = pair

    def port_read(self, offset: int, size: int) -> int:
        return (self._pair.slave if offset else self._pair.master).elcr

    def port_write(self, offset: int, size: int, value: int) -> None:
        (self._pair.slave if offset else self._pair.master).set_elcr(value & ELCR_WRITABLE[offset])
        self._pair.update()


class Pic8259Pair:
    """The interrupt controller that the CPU engine asks: `pending()` is cheap, `acknowledge()` is the INTA cycle.

    `on_change`, when set, is called whenever the value of `pending()` has changed, so that an engine that has
    already chosen a vector can take it back. All calls belong to the vCPU thread.
    """

    def __init__(self) -> None:
        self.master = PicChip(cascade=1 << CASCADE)
        self.slave = PicChip()
        self.on_change: Callable[[], None] | None = None
        self.master_ports = _ChipPorts(self, slave=False)
        self.slave_ports = _ChipPorts(self, slave=True)
        self.elcr_ports = _ElcrPorts(self)
        self._pending: int | None = None
        self.acknowledged = 0
        """Interrupts taken since power-on: a guest in which this stands still while one waits is deaf."""

    def line(self, number: int) -> _Line:
        """The input for IRQ `number` (0-15, not 2); raises MachineError for another."""
        if not 0 <= number < 16 or number == CASCADE:
            raise MachineError(f"IRQ {number}: expected 0 to 15 and not the cascade, 2")
        return _Line(self, number)

    def pending(self) -> int | None:
        """Vector of the interrupt that the processor should take now, without acknowledging it."""
        return self._pending

    def acknowledge(self) -> int:
        """Put the pending interrupt in service and return its vector.

        When the request has gone in the meantime it returns the spurious vector: input 7 of the controller
        that was asked, with nothing in service there.
        """
        self.acknowledged += 1
        number = self.master.request()
        if number < 0:
            return self.master.base + 7
        self.master.accept(number)
        vector = self.master.base + number
        if number == CASCADE:
            # The slave still wants service here: update() keeps the cascade line equal to its output.
            number = self.slave.request()
            self.slave.accept(number)
            vector = self.slave.base + number
        self.update()
        return vector

    def update(self) -> None:
        """Recompute the outputs after any change of either controller."""
        master = self.master
        slave = self.slave.request()
        master.set_line(1 << CASCADE, slave >= 0)
        number = master.request()
        if number < 0:
            pending = None
        elif number == CASCADE:
            pending = self.slave.base + slave
        else:
            pending = master.base + number
        if pending != self._pending:
            self._pending = pending
            if self.on_change is not None:
                self.on_change()

    def reset(self) -> None:
        """Back to power-on; lines keep the level that their devices give them."""
        self.master = PicChip(cascade=1 << CASCADE, lines=self.master.lines)
        self.slave = PicChip(lines=self.slave.lines)
        self.update()

    def save(self) -> PicState:
        """A copy of the state."""
        return PicState(replace(self.master), replace(self.slave))

    def load(self, state: PicState) -> None:
        """Replace the state."""
        self.master, self.slave = replace(state.master), replace(state.slave)
        self.update()
