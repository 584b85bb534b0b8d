"""A keyboard controller that is not there, but still resets the machine; and the other two reset ports.

Linux waits for a keyboard controller that answers half (0.5 s of a boot). What port 0x64 reads decides:

- 0x00 looks like an idle controller: the driver sends a command and waits 0.5 s for the answer.
- 0xff makes the driver give up (its flush never ends: drivers/input/serio/i8042.c, i8042_flush), but the
  reboot code then believes that the controller is busy and waits 131 ms (arch/x86/kernel/reboot.c, kb_wait).
- 0x01, "output full" that never empties and "input empty", does both at once: the flush gives up after 16
  reads (1 ms, "No controller found") and the reboot code never waits. This is what we answer.
"""

from __future__ import annotations

from collections.abc import Callable

STATUS = 0x01
"""Output buffer full, input buffer empty: see above."""

_PULSE_RESET = 0xFE


class I8042:
    """Ports 0x60 and 0x64; attach as two single ports with `data_port` and `command_port`. It has no state."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self.data_port = _DataPort()
        self.command_port = _CommandPort(reset)


class _DataPort:
    def port_read(self, offset: int, size: int) -> int:
        return 0

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Nobody reads it."""


class _CommandPort:
    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def port_read(self, offset: int, size: int) -> int:
        return STATUS

    def port_write(self, offset: int, size: int, value: int) -> None:
        # 0xf0-0xff pulse the output lines whose bit is 0; line 0 is the processor's reset.
        if value & 0xF1 == _PULSE_RESET & 0xF1:
            self._reset()


class FastResetPort:
    """Port 0x92: bit 0 resets the machine when it rises, bit 1 is the A20 gate (always open here)."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def port_read(self, offset: int, size: int) -> int:
        return 0x02

    def port_write(self, offset: int, size: int, value: int) -> None:
        if value & 1:
            self._reset()


class ResetControlPort:
    """Port 0xcf9: writing bit 2 resets the machine (`reboot=p`; also the ACPI reset register of many boards)."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset

    def port_read(self, offset: int, size: int) -> int:
        return 0

    def port_write(self, offset: int, size: int, value: int) -> None:
        if value & 0x04:
            self._reset()


class QuietPort:
    """A port that is known and means nothing here: reads all ones, ignores writes."""

    def port_read(self, offset: int, size: int) -> int:
        return 0xFFFF_FFFF

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Nobody listens."""
