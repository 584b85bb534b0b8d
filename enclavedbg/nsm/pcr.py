"""The platform configuration registers: 32 of SHA-384, each with a lock that lasts until the enclave ends."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from enclavedbg.errors import NsmError
from enclavedbg.nsm.wire import ErrorCode, NsmRequestError

PCR_COUNT = 32
PCR_SIZE = 48
ZERO = bytes(PCR_SIZE)

BOOT_LOCKED = 16
"""The platform locks registers 0 to 15 before the enclave starts."""

DEBUG_ZEROED = (0, 1, 2, 8)
"""Registers that stay zero in a debug-mode enclave; 3 and 4 hold their real values there (real documents)."""


IMAGE_REGISTERS = (0, 1, 2)
"""Registers that every image has a value in."""


def is_debug_mode(registers: Mapping[int, bytes | None]) -> bool:
    """Whether registers are those of a debug-mode enclave: PCR0, 1 or 2 is there and zero, which it is of no image."""
    values = (registers.get(index) for index in IMAGE_REGISTERS)
    return any(value is not None and not any(value) for value in values)


def extended(value: bytes, data: bytes) -> bytes:
    """The value after extending a register of `value` with `data`: SHA384(value || data)."""
    return hashlib.sha384(value + data).digest()


def identity_registers(*, instance_id: str, role_arn: str | None = None) -> dict[int, bytes]:
    """PCR4 of the parent's instance id, and PCR3 of its IAM role's ARN if it has one: the strings as they are.

    An image's registers extend a digest instead (AWS user guide, "Cryptographic attestation").
    """
    registers = {4: extended(ZERO, instance_id.encode())}
    if role_arn is not None:
        registers[3] = extended(ZERO, role_arn.encode())
    return registers


@dataclass(frozen=True, slots=True)
class PcrState:
    """All registers' values, and which are locked."""

    values: tuple[bytes, ...]
    locked: tuple[bool, ...]


class PcrBank:
    """The registers as a running enclave finds them.

    `initial` gives values by index (bytes of 48, already extended); the rest start as zeros, and 0 to 15 are
    locked. Raises NsmError for an index or a value that no register can hold. Requests that cannot be fulfilled
    raise NsmRequestError with the guest's error.
    """

    def __init__(self, initial: Mapping[int, bytes]) -> None:
        self._values = [ZERO] * PCR_COUNT
        self._locked = [index < BOOT_LOCKED for index in range(PCR_COUNT)]
        for index, value in initial.items():
            if not 0 <= index < PCR_COUNT or len(value) != PCR_SIZE:
                raise NsmError(f"PCR{index} of {len(value)} bytes: expected PCR0 to PCR31 with {PCR_SIZE} bytes")
            self._values[index] = bytes(value)

    def describe(self, index: int) -> tuple[bool, bytes]:
        """Lock and value of a register; locked ones may be read."""
        self._check(index)
        return self._locked[index], self._values[index]

    def extend(self, index: int, data: bytes) -> bytes:
        """Extend an unlocked register and return its new value."""
        self._check_writable(index)
        self._values[index] = extended(self._values[index], data)
        return self._values[index]

    def lock(self, index: int) -> None:
        """Lock one register; locking it twice is an error."""
        self._check_writable(index)
        self._locked[index] = True

    def lock_range(self, count: int) -> list[int]:
        """Lock registers 0 to `count` - 1, locked or not, and return those that were not."""
        if count > PCR_COUNT:
            raise NsmRequestError(ErrorCode.InvalidIndex, f"range {count}, expected at most {PCR_COUNT}")
        fresh = [index for index in range(count) if not self._locked[index]]
        self._locked[:count] = [True] * count
        return fresh

    def locked(self) -> dict[int, bytes]:
        """Values of the locked registers by ascending index: what a document attests."""
        return {index: value for index, value in enumerate(self._values) if self._locked[index]}

    def values(self) -> tuple[bytes, ...]:
        """All 32 values."""
        return tuple(self._values)

    def save(self) -> PcrState:
        return PcrState(tuple(self._values), tuple(self._locked))

    def load(self, state: PcrState) -> None:
        self._values = list(state.values)
        self._locked = list(state.locked)

    @staticmethod
    def _check(index: int) -> None:
        if not 0 <= index < PCR_COUNT:
            raise NsmRequestError(ErrorCode.InvalidIndex, f"PCR{index}, expected PCR0 to PCR{PCR_COUNT - 1}")

    def _check_writable(self, index: int) -> None:
        self._check(index)
        if self._locked[index]:
            raise NsmRequestError(ErrorCode.ReadOnlyIndex, f"PCR{index} is locked")
