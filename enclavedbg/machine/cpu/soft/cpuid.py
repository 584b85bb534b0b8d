"""What the software CPU says of itself: the CPUID leaves (SDM volume 2, CPUID; volume 3, 20.7.3).

Only what QEMU 5.0's translator can do is offered: x86-64-v2 with BMI, MOVBE and AES, no AVX, no XSAVE. There is
no APIC (Linux then stays with the 8259), and no register that only an unhookable `rdmsr` could serve.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

BRAND = b"enclavedbg software CPU"
VENDOR = b"GenuineIntel"
PHYSICAL_BITS = 40
LINEAR_BITS = 48


def _bits(*positions: int) -> int:
    return sum(1 << p for p in positions)


# Leaf 1 EDX: FPU DE PSE TSC MSR PAE CX8 SEP PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
_FEATURES_EDX = _bits(0, 2, 3, 4, 5, 6, 8, 13, 15, 16, 17, 19, 23, 24, 25, 26)
# Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES, hypervisor present
_FEATURES_ECX = _bits(0, 1, 9, 13, 19, 20, 22, 23, 25, 31)
# Leaf 7 EBX: FSGSBASE TSC_ADJUST BMI1 BMI2 ADX
_FEATURES_7_EBX = _bits(0, 1, 3, 8, 19)
# Leaf 8000_0001: LAHF in long mode, LZCNT; SYSCALL NX RDTSCP LM
_FEATURES_81_ECX = _bits(0, 5)
_FEATURES_81_EDX = _bits(11, 20, 27, 29)

_BROADWELL = 0x306D4


def make_cpuid(tsc_hz: Callable[[], int]) -> Callable[[int, int], Leaf]:
    """A function from leaf and subleaf to registers; `tsc_hz` is asked when the guest asks for leaf 15h."""
    brand = BRAND.ljust(48, b"\0")

    def cpuid(leaf: int, subleaf: int) -> Leaf:
        if leaf == 0:
            b, d, c = struct.unpack("<3I", VENDOR)
            return 0x16, b, c, d
        if leaf == 1:
            return _BROADWELL, 0x0001_0800, _FEATURES_ECX, _FEATURES_EDX
        if leaf == 7:
            return (0, _FEATURES_7_EBX, 0, 0) if subleaf == 0 else (0, 0, 0, 0)
        if leaf == 0x15:
            # TSC = crystal * EBX / EAX; with vendor Intel Linux then skips its calibration loops.
            return 1, 100, tsc_hz() // 100, 0
        if leaf == 0x16:
            mhz = tsc_hz() // 1_000_000
            return mhz, mhz, 100, 0
        if leaf == 0x8000_0000:
            return 0x8000_0008, 0, 0, 0
        if leaf == 0x8000_0001:
            return 0, 0, _FEATURES_81_ECX, _FEATURES_81_EDX
        if 0x8000_0002 <= leaf <= 0x8000_0004:
            a, b, c, d = struct.unpack_from("<4I", brand, (leaf - 0x8000_0002) * 16)
            return a, b, c, d
        if leaf == 0x8000_0007:
            # Invariant TSC: with TSC_ADJUST, Linux then trusts it and starts no watchdog against it.
            return 0, 0, 0, 1 << 8
        if leaf == 0x8000_0008:
            return PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0
        return 0, 0, 0, 0

    return cpuid
