"""Loads the ELF file that is the kernel proper, as a boot loader must: by physical address.

Source: System V ABI, chapter 5; Linux arch/x86/boot/compressed/misc.c. The per-CPU segment of older kernels has
virtual address 0, so only p_paddr tells where a segment belongs.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from enclavedbg.errors import EifError, MachineError
from enclavedbg.machine.layout import HIGH_MEMORY
from enclavedbg.machine.memory import GuestMemory

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
ELFCLASS64 = 2
ELFDATA2LSB = 1
EM_X86_64 = 62
PT_LOAD = 1
SEGMENT_LIMIT = 64
REBUILD = "build the kernel again"


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """One PT_LOAD: where it goes (`gpa`), its bytes in the file, and its size in memory, zero-filled beyond them."""

    gpa: int
    file_offset: int
    file_size: int
    memory_size: int

    @property
    def end(self) -> int:
        """First guest physical address behind it."""
        return self.gpa + self.memory_size


@dataclass(frozen=True, slots=True)
class KernelElf:
    """A checked kernel: `entry` is the physical entry point; segments are sorted and do not overlap."""

    data: bytes
    entry: int
    segments: tuple[LoadSegment, ...]

    @property
    def start(self) -> int:
        """Lowest guest physical address."""
        return self.segments[0].gpa

    @property
    def end(self) -> int:
        """First guest physical address behind the kernel, zero-filled parts included."""
        return self.segments[-1].end


def parse_kernel_elf(data: bytes) -> KernelElf:
    """Check an x86-64 kernel's ELF header and its PT_LOAD segments; raises EifError."""
    if len(data) < _EHDR.size:
        raise EifError(f"the kernel's ELF file has {len(data)} bytes, its header alone {_EHDR.size}; {REBUILD}")
    ident, _, machine, _, entry, phoff, _, _, _, phentsize, phnum, _, _, _ = _EHDR.unpack_from(data)
    if ident[:4] != b"\x7fELF" or ident[4] != ELFCLASS64 or ident[5] != ELFDATA2LSB or machine != EM_X86_64:
        raise EifError(f"the kernel is not a 64-bit x86 ELF file (class {ident[4]}, machine {machine}); {REBUILD}")
    if phentsize != _PHDR.size or not 0 < phnum <= SEGMENT_LIMIT or phoff + phnum * phentsize > len(data):
        raise EifError(
            f"the kernel's ELF file has {phnum} program headers of {phentsize} bytes at {phoff:#x}, expected up to "
            f"{SEGMENT_LIMIT} of {_PHDR.size} inside the file; {REBUILD}"
        )
    segments = []
    for index in range(phnum):
        kind, _, offset, _, gpa, file_size, memory_size, _ = _PHDR.unpack_from(data, phoff + index * phentsize)
        if kind != PT_LOAD or memory_size == 0:
            continue
        if file_size > memory_size or offset + file_size > len(data):
            raise EifError(
                f"the kernel's segment {index} has {file_size} bytes at {offset:#x} of its file and {memory_size} in "
                f"memory, the file ends at {len(data):#x}; {REBUILD}"
            )
        segments.append(LoadSegment(gpa, offset, file_size, memory_size))
    segments.sort(key=lambda segment: segment.gpa)
    for before, after in itertools.pairwise(segments):
        if after.gpa < before.end:
            raise EifError(f"the kernel's segments at {before.gpa:#x} and {after.gpa:#x} overlap; {REBUILD}")
    if not any(segment.gpa <= entry < segment.gpa + segment.file_size for segment in segments):
        raise EifError(f"the kernel's entry point {entry:#x} is in none of its segments; {REBUILD}")
    return KernelElf(data, entry, tuple(segments))


def check_fit(kernel: KernelElf, memory: GuestMemory) -> None:
    """Raise MachineError when a segment lies outside RAM or over the boot structures below 1 MiB."""
    for segment in kernel.segments:
        if segment.gpa < HIGH_MEMORY or not memory.contains(segment.gpa, segment.memory_size):
            raise MachineError(
                f"the kernel wants {segment.memory_size} bytes at {segment.gpa:#x}, which is not free RAM; "
                "give it more with --memory"
            )


def load_kernel(kernel: KernelElf, memory: GuestMemory) -> None:
    """Copy the segments into guest memory and zero what their files leave out; raises MachineError as `check_fit`."""
    check_fit(kernel, memory)
    view = memoryview(kernel.data)
    for segment in kernel.segments:
        memory.write(segment.gpa, view[segment.file_offset : segment.file_offset + segment.file_size])
        memory.fill_zero(segment.gpa + segment.file_size, segment.memory_size - segment.file_size)
