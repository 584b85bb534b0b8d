"""ACPI's fixed hardware: PM1a event and control registers and the PM timer (ACPI 6.5, 4.8.3)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from enclavedbg.machine.bus import IrqLine

log = logging.getLogger(__name__)

TIMER_FREQUENCY = 3_579_545
"""Hz."""

PORT_COUNT = 12
"""Event block at 0 (status 2 bytes, enable 2), control at 4 (2 bytes), timer at 8 (4 bytes)."""

STATUS_BITS = 0x8731
"""TMR, BM, GBL, PWRBTN, SLPBTN, RTC and WAK status."""
ENABLE_BITS = 0x0721
POWER_BUTTON = 0x0100

SCI_EN = 0x0001
SLP_TYP_SHIFT = 10
SLP_EN = 0x2000
S5 = 5
"""SLP_TYP for soft-off: what the DSDT's _S5 package says."""


@dataclass(slots=True)
class AcpiPmState:
    """The status and enable registers, and the control register without its fixed bit."""

    status: int = 0
    enable: int = 0
    control: int = 0


class AcpiPm:
    """PM1a and the timer. ACPI mode is always on: SCI_EN reads 1 and there is no SMI command port.

    The timer's carry event (TMR_STS) is not raised: a 24-bit timer without it is what Linux uses.
    """

    def __init__(self, guest_ns: Callable[[], int], sci: IrqLine, power_off: Callable[[], None]) -> None:
        self._guest_ns = guest_ns
        self._sci = sci
        self._power_off = power_off
        self._state = AcpiPmState()

    def timer(self) -> int:
        """The 24-bit PM timer."""
        return self._guest_ns() * TIMER_FREQUENCY // 1_000_000_000 & 0xFF_FFFF

    def press_power_button(self) -> None:
        """What the front panel's button does: the guest is asked to shut down."""
        self._state.status |= POWER_BUTTON
        self._update()

    def port_read(self, offset: int, size: int) -> int:
        state = self._state
        if offset >= 8:
            return self.timer() >> 8 * (offset - 8)
        block = state.status | state.enable << 16 | (state.control | SCI_EN) << 32
        return block >> 8 * offset

    def port_write(self, offset: int, size: int, value: int) -> None:
        # Each register is reached by byte, word or double word; what was not written stays.
        state = self._state
        mask = (1 << 8 * size) - 1 << 8 * offset
        value <<= 8 * offset
        state.status &= ~(value & mask & STATUS_BITS)  # write 1 to clear
        if mask & 0xFFFF_0000:
            state.enable = (state.enable & ~(mask >> 16) | value >> 16) & ENABLE_BITS
        if mask & 0xFFFF_0000_0000:
            self._control((state.control & ~(mask >> 32) | value >> 32) & 0xFFFF)
        self._update()

    def _control(self, value: int) -> None:
        self._state.control = value & 0x1C02  # SLP_TYP and BM_RLD stay; GBL_RLS and SLP_EN read 0
        if not value & SLP_EN:
            return
        sleep_type = value >> SLP_TYP_SHIFT & 7
        if sleep_type == S5:
            self._power_off()
        else:
            log.warning("the guest asked for ACPI sleep type %d; only %d (power off) exists here", sleep_type, S5)

    def _update(self) -> None:
        self._sci.set(bool(self._state.status & self._state.enable))

    def reset(self) -> None:
        """Back to power-on."""
        self.load(AcpiPmState())

    def save(self) -> AcpiPmState:
        """A copy of the state."""
        return replace(self._state)

    def load(self, state: AcpiPmState) -> None:
        """Replace the state."""
        self._state = replace(state)
        self._update()
