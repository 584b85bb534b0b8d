"""The MC146818 real-time clock at ports 0x70 and 0x71 (Motorola MC146818A data sheet), without its alarm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
STATUS_A, STATUS_B, STATUS_C, STATUS_D = 0x0A, 0x0B, 0x0C, 0x0D
CENTURY = 0x32

A_UPDATE = 0x80
B_SET = 0x80
B_BINARY = 0x04
B_24_HOURS = 0x02
D_VALID = 0x80

_TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
_UPDATE_US = 244
"""The real part announces its once-a-second update this long before it."""


@dataclass(frozen=True, slots=True)
class RtcState:
    """Index, the 128 bytes of CMOS memory (control registers included), and the guest's change of the time."""

    index: int = 0
    cmos: bytes = bytes(STATUS_A) + b"\x26\x02" + bytes(128 - STATUS_A - 2)
    offset: timedelta = timedelta(0)


class Rtc:
    """The clock. `wall` gives the guest's wall clock; a guest that sets the time changes only its own offset.

    No alarm, periodic or update interrupt is ever raised: an enclave's kernel uses none.
    """

    def __init__(self, wall: Callable[[], datetime]) -> None:
        self._wall = wall
        self.reset()

    def port_read(self, offset: int, size: int) -> int:
        if offset == 0:
            return 0xFF  # the index cannot be read back
        index = self._index
        cmos = self._cmos
        if index in _TIME_REGISTERS:
            if cmos[STATUS_B] & B_SET:
                return cmos[index]
            return self._encode(index, self._now())
        if index == STATUS_A:
            updating = not cmos[STATUS_B] & B_SET and self._now().microsecond >= 1_000_000 - _UPDATE_US
            return cmos[STATUS_A] | (A_UPDATE if updating else 0)
        if index == STATUS_D:
            return D_VALID
        return cmos[index]

    def port_write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks the NMI, of which there is none
            return
        index = self._index
        cmos = self._cmos
        if index in _TIME_REGISTERS:
            if not cmos[STATUS_B] & B_SET:
                self._freeze()
                cmos[index] = value
                self._apply()
            else:
                cmos[index] = value
        elif index == STATUS_A:
            cmos[index] = value & 0x7F
        elif index == STATUS_B:
            was = cmos[index]
            if value & B_SET and not was & B_SET:
                self._freeze()
            cmos[index] = value
            if was & B_SET and not value & B_SET:
                self._apply()
        elif index not in (STATUS_C, STATUS_D):
            cmos[index] = value

    def _now(self) -> datetime:
        return self._wall() + self._offset

    def _freeze(self) -> None:
        now = self._now()
        for index in _TIME_REGISTERS:
            self._cmos[index] = self._encode(index, now)

    def _encode(self, index: int, now: datetime) -> int:
        """A time register's value in the format that register B asks for."""
        control = self._cmos[STATUS_B]
        if index == HOURS and not control & B_24_HOURS:
            return self._digits(now.hour % 12 or 12) | (0x80 if now.hour >= 12 else 0)
        number = {
            SECONDS: now.second,
            MINUTES: now.minute,
            HOURS: now.hour,
            WEEKDAY: now.isoweekday() % 7 + 1,
            DAY: now.day,
            MONTH: now.month,
            YEAR: now.year % 100,
            CENTURY: now.year // 100,
        }[index]
        return self._digits(number)

    def _digits(self, number: int) -> int:
        return number if self._cmos[STATUS_B] & B_BINARY else number // 10 << 4 | number % 10

    def _number(self, value: int) -> int:
        return value if self._cmos[STATUS_B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _apply(self) -> None:
        """Take the registers as the new time; a date that does not exist leaves the clock as it was."""
        cmos = self._cmos
        hour = cmos[HOURS]
        if cmos[STATUS_B] & B_24_HOURS:
            hour = self._number(hour)
        else:
            hour = self._number(hour & 0x7F) % 12 + (12 if hour & 0x80 else 0)
        try:
            now = datetime(
                self._number(cmos[CENTURY]) * 100 + self._number(cmos[YEAR]),
                self._number(cmos[MONTH]),
                self._number(cmos[DAY]),
                hour,
                self._number(cmos[MINUTES]),
                self._number(cmos[SECONDS]),
                tzinfo=UTC,
            )
            offset = now - self._wall()
            # Years near 1 or 9999 would overflow later, when time moves on.
            if 1970 <= now.year < 9000:
                self._offset = offset
        except ValueError:
            return

    def reset(self) -> None:
        """Back to power-on: the host's time again."""
        self.load(RtcState())

    def save(self) -> RtcState:
        """A copy of the state."""
        return RtcState(self._index, bytes(self._cmos), self._offset)

    def load(self, state: RtcState) -> None:
        """Replace the state."""
        self._index = state.index
        self._cmos = bytearray(state.cmos)
        self._offset = state.offset
