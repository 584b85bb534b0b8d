"""Guest RAM: one anonymous mapping that the CPU engine and the devices share without copies."""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass

from enclavedbg.errors import GuestFault, MachineError
from enclavedbg.machine.layout import HIGH_RAM_BASE, LOW_RAM_LIMIT, PAGE_SIZE


@dataclass(frozen=True, slots=True)
class RamRegion:
    """A run of RAM: guest physical address, size in bytes, and where it lies in the host mapping."""

    gpa: int
    size: int
    offset: int


class GuestMemory:
    """RAM of `size` bytes from 0, with the part over 3 GiB moved above 4 GiB as on every PC.

    Every access is checked; one outside RAM, or across its end, raises GuestFault. Addresses are guest
    physical (`gpa`), sizes in bytes, integers little-endian.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise MachineError(f"memory of {size} bytes: expected a positive multiple of {PAGE_SIZE}")
        try:
            self._map = mmap.mmap(-1, size)
        except (OSError, ValueError, OverflowError) as error:
            raise MachineError(
                f"cannot reserve {size >> 20} MiB for the guest: {error}; use a smaller --memory"
            ) from error
        self.size = size
        low = min(size, LOW_RAM_LIMIT)
        regions = [RamRegion(0, low, 0)]
        if size > low:
            regions.append(RamRegion(HIGH_RAM_BASE, size - low, low))
        self.regions = tuple(regions)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.host_address = ctypes.addressof(self._anchor)

    def close(self) -> None:
        """Give the mapping back; nothing may use the memory, or the engine over it, afterwards."""
        del self._anchor
        self._map.close()

    def contains(self, gpa: int, length: int) -> bool:
        """Whether [gpa, gpa + length) lies wholly in one region of RAM."""
        return any(r.gpa <= gpa and gpa + length <= r.gpa + r.size for r in self.regions) and length >= 0

    def room(self, gpa: int) -> int:
        """Bytes of RAM that follow `gpa` without a gap, 0 when it is not RAM."""
        return next((r.gpa + r.size - gpa for r in self.regions if 0 <= gpa - r.gpa < r.size), 0)

    def offset(self, gpa: int, length: int) -> int:
        """Offset of a checked range in the host mapping; raises GuestFault when it is not RAM."""
        if length >= 0:
            for region in self.regions:
                if region.gpa <= gpa and gpa + length <= region.gpa + region.size:
                    return gpa - region.gpa + region.offset
        raise GuestFault(f"{length} bytes at guest physical {gpa:#x} are not RAM", address=gpa)

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes from `gpa`."""
        at = self.offset(gpa, length)
        return self._map[at : at + length]

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data` at `gpa`. The engine must be told when code may have been there (`CpuEngine.forget_code`)."""
        at = self.offset(gpa, len(data))
        self._map[at : at + len(data)] = data

    def fill_zero(self, gpa: int, length: int) -> None:
        """Zero a range, in pieces, so that a large one costs no second copy of itself."""
        at = self.offset(gpa, length)
        piece = bytes(min(length, 1 << 20))
        for start in range(at, at + length, len(piece) or 1):
            n = min(len(piece), at + length - start)
            self._map[start : start + n] = piece[:n]

    def read_u16(self, gpa: int) -> int:
        value: int = struct.unpack_from("<H", self._map, self.offset(gpa, 2))[0]
        return value

    def read_u32(self, gpa: int) -> int:
        value: int = struct.unpack_from("<I", self._map, self.offset(gpa, 4))[0]
        return value

    def read_u64(self, gpa: int) -> int:
        value: int = struct.unpack_from("<Q", self._map, self.offset(gpa, 8))[0]
        return value

    def write_u16(self, gpa: int, value: int) -> None:
        struct.pack_into("<H", self._map, self.offset(gpa, 2), value)

    def write_u32(self, gpa: int, value: int) -> None:
        struct.pack_into("<I", self._map, self.offset(gpa, 4), value)

    def write_u64(self, gpa: int, value: int) -> None:
        struct.pack_into("<Q", self._map, self.offset(gpa, 8), value)
