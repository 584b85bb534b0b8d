"""All of the chipset, attached to a bus at its usual ports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from enclavedbg.machine.bus import Bus
from enclavedbg.machine.chipset.acpi_pm import PORT_COUNT, AcpiPm, AcpiPmState
from enclavedbg.machine.chipset.i8042 import I8042, FastResetPort, QuietPort, ResetControlPort
from enclavedbg.machine.chipset.pic import Pic8259Pair, PicState
from enclavedbg.machine.chipset.pit import Pit8254, PitState
from enclavedbg.machine.chipset.rtc import Rtc, RtcState
from enclavedbg.machine.chipset.uart import Uart16550, UartState
from enclavedbg.machine.clock import Clock
from enclavedbg.machine.layout import ACPI_PM_BASE, ACPI_SCI_IRQ, COM1_IRQ, COM1_PORT, PIT_IRQ

DELAY_PORTS = (0x80, 0xED)
"""Written for nothing but the time that it takes: `outb_p` on old kernels, `io_delay=0xed`."""


class ByteSink(Protocol):
    """Where the serial port's bytes go: the console."""

    def write(self, byte: int) -> None: ...


@dataclass(frozen=True, slots=True)
class BoardState:
    """Every chip, as data."""

    pic: PicState
    pit: PitState
    uart: UartState
    rtc: RtcState
    acpi_pm: AcpiPmState


class Board:
    """The chips of the machine. `reset` and `power_off` are called on the vCPU thread, inside the guest's access."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        console: ByteSink,
        *,
        reset: Callable[[], None],
        power_off: Callable[[], None],
    ) -> None:
        self.pic = Pic8259Pair()
        self.pit = Pit8254(clock.guest_ns, self.pic.line(PIT_IRQ))
        self.uart = Uart16550(self.pic.line(COM1_IRQ), console.write)
        self.rtc = Rtc(clock.wall)
        self.acpi_pm = AcpiPm(clock.guest_ns, self.pic.line(ACPI_SCI_IRQ), power_off)
        keyboard = I8042(reset)
        bus.attach_ports(0x20, 2, self.pic.master_ports)
        bus.attach_ports(0xA0, 2, self.pic.slave_ports)
        bus.attach_ports(0x4D0, 2, self.pic.elcr_ports)
        bus.attach_ports(0x40, 4, self.pit)
        bus.attach_ports(0x61, 1, self.pit.gate_port)
        bus.attach_ports(COM1_PORT, 8, self.uart)
        bus.attach_ports(0x60, 1, keyboard.data_port)
        bus.attach_ports(0x64, 1, keyboard.command_port)
        bus.attach_ports(0x92, 1, FastResetPort(reset))
        bus.attach_ports(0xCF9, 1, ResetControlPort(reset))
        bus.attach_ports(0x70, 2, self.rtc)
        bus.attach_ports(ACPI_PM_BASE, PORT_COUNT, self.acpi_pm)
        quiet = QuietPort()
        for port in DELAY_PORTS:
            bus.attach_ports(port, 1, quiet)

    def reset(self) -> None:
        """Put every chip in its power-on state."""
        for chip in (self.pit, self.uart, self.rtc, self.acpi_pm, self.pic):
            chip.reset()

    def save(self) -> BoardState:
        """A copy of every chip's state."""
        return BoardState(self.pic.save(), self.pit.save(), self.uart.save(), self.rtc.save(), self.acpi_pm.save())

    def load(self, state: BoardState) -> None:
        """Replace every chip's state."""
        self.pit.load(state.pit)
        self.uart.load(state.uart)
        self.rtc.load(state.rtc)
        self.acpi_pm.load(state.acpi_pm)
        self.pic.load(state.pic)
