"""Routes the guest's port and memory-mapped accesses to devices."""

from __future__ import annotations

import bisect
import logging
from dataclasses import dataclass
from typing import Protocol

from enclavedbg.errors import MachineError

log = logging.getLogger(__name__)


class PortDevice(Protocol):
    """A device in I/O space; `offset` counts from its first port, `size` is 1, 2 or 4 bytes."""

    def port_read(self, offset: int, size: int) -> int: ...

    def port_write(self, offset: int, size: int, value: int) -> None: ...


class MmioDevice(Protocol):
    """A device in memory space; `offset` counts from its window, `size` is 1, 2, 4 or 8 bytes."""

    def mmio_read(self, offset: int, size: int) -> int: ...

    def mmio_write(self, offset: int, size: int, value: int) -> None: ...


class IrqLine(Protocol):
    """One input of the interrupt controller. Setting it to the level that it has does nothing."""

    def set(self, level: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class MmioWindow:
    base: int
    size: int
    device: MmioDevice


class Bus:
    """The machine's address decoder. Unclaimed reads give all ones, unclaimed writes vanish; each is logged once."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[PortDevice, int]] = {}
        self._windows: list[MmioWindow] = []
        self._unclaimed: set[tuple[str, int]] = set()

    def attach_ports(self, first: int, count: int, device: PortDevice) -> None:
        """Give `count` ports from `first` to a device; raises MachineError when one is taken."""
        for port in range(first, first + count):
            if port in self._ports:
                raise MachineError(f"port {port:#x} has two devices")
            self._ports[port] = (device, port - first)

    def attach_mmio(self, base: int, size: int, device: MmioDevice) -> None:
        """Give a memory window to a device; raises MachineError when it overlaps another."""
        for window in self._windows:
            if base < window.base + window.size and window.base < base + size:
                raise MachineError(f"windows at {window.base:#x} and {base:#x} overlap")
        bisect.insort(self._windows, MmioWindow(base, size, device), key=lambda w: w.base)

    def port_read(self, port: int, size: int) -> int:
        entry = self._ports.get(port)
        if entry is None:
            self._note("read of port", port)
            return (1 << (8 * size)) - 1
        return entry[0].port_read(entry[1], size) & ((1 << (8 * size)) - 1)

    def port_write(self, port: int, size: int, value: int) -> None:
        entry = self._ports.get(port)
        if entry is None:
            self._note("write to port", port)
            return
        entry[0].port_write(entry[1], size, value & ((1 << (8 * size)) - 1))

    def mmio_read(self, gpa: int, size: int) -> int:
        window = self._window(gpa)
        if window is None:
            self._note("read of physical", gpa)
            return (1 << (8 * size)) - 1
        return window.device.mmio_read(gpa - window.base, size) & ((1 << (8 * size)) - 1)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        window = self._window(gpa)
        if window is None:
            self._note("write to physical", gpa)
            return
        window.device.mmio_write(gpa - window.base, size, value & ((1 << (8 * size)) - 1))

    def _window(self, gpa: int) -> MmioWindow | None:
        i = bisect.bisect_right(self._windows, gpa, key=lambda w: w.base) - 1
        if i >= 0 and gpa < self._windows[i].base + self._windows[i].size:
            return self._windows[i]
        return None

    def _note(self, what: str, address: int) -> None:
        if (what, address) not in self._unclaimed and len(self._unclaimed) < 4096:
            self._unclaimed.add((what, address))
            log.debug("%s %#x: no device", what, address)
