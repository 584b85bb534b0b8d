"""One Unicorn instance with its inner structures opened: handles, typed views of its fields, memory, hooks.

Everything here is mechanism; what the machine makes of it is in engine.py and delivery.py.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

from enclavedbg.errors import MachineError
from enclavedbg.machine.cpu.soft import layout as at
from enclavedbg.machine.cpu.soft import library as uc

VECTOR_PAGE = 1 << 40
"""Guest physical address, beyond what CPUID offers, of the page through which interrupt vectors are handed over."""

CODE_BUFFER_SIZE = 64 << 20
"""Bytes for translated code. A boot fills about 20 MiB; when it is full everything is translated anew."""


class SegmentCache(ctypes.Structure):
    """QEMU's hidden part of a segment register; `flags` is the descriptor's upper word, attributes from bit 8."""

    _fields_ = [("selector", c_uint32), ("base", c_uint64), ("limit", c_uint32), ("flags", c_uint32)]


class UnicornCore:
    """An opened instance: `uc`, `cpu` and `env` are the addresses of uc_struct, CPUState and CPUX86State."""

    def __init__(self, library: uc.Library) -> None:
        self.lib = library
        handle = c_void_p()
        library.call("uc_open", uc.ARCH_X86, uc.MODE_64, ctypes.byref(handle))
        if not handle.value:
            raise MachineError("uc_open gave no instance")
        self.uc: int = handle.value
        self._hooks: list[Any] = []
        self._anchors: list[Any] = []
        self.control(uc.CTL_CPU_MODEL, uc.CPU_MODEL_BROADWELL)
        self.control(uc.CTL_TCG_BUFFER_SIZE, CODE_BUFFER_SIZE)
        # No `until` address: it would be looked up in the guest's page tables at every start.
        self.control(uc.CTL_USE_EXITS, 1)
        vector_page = self._map_vector_page()  # the first mapping also makes the CPU object
        self.cpu = c_uint64.from_address(self.uc + at.UC_CPU).value
        if not self.cpu:
            raise MachineError("unicorn has no CPU object where 2.1.4 keeps it; the structure offsets do not fit")
        self.env = c_uint64.from_address(self.cpu + at.CPU_ENV).value
        self._open_fields()
        self.vector = c_uint32.from_address(vector_page + at.VMCB_INT_VECTOR)
        c_uint64.from_address(self.env + at.ENV_VM_VMCB).value = VECTOR_PAGE
        # Stops are taken between blocks only: a stop after every memory access would run the instruction twice.
        c_uint8.from_address(self.uc + at.UC_NO_EXIT_REQUEST).value = 1

    def _open_fields(self) -> None:
        env, cpu = self.env, self.cpu
        self.regs = (c_uint64 * 16).from_address(env + at.ENV_REGS)
        self.eip = c_uint64.from_address(env + at.ENV_EIP)
        self.eflags = c_uint64.from_address(env + at.ENV_EFLAGS)
        self.hflags = c_uint32.from_address(env + at.ENV_HFLAGS)
        self.segments = (SegmentCache * 6).from_address(env + at.ENV_SEGS)
        self.ldt = SegmentCache.from_address(env + at.ENV_LDT)
        self.tr = SegmentCache.from_address(env + at.ENV_TR)
        self.gdt = SegmentCache.from_address(env + at.ENV_GDT)
        self.idt = SegmentCache.from_address(env + at.ENV_IDT)
        self.cr = (c_uint64 * 5).from_address(env + at.ENV_CR)
        self.dr = (c_uint64 * 8).from_address(env + at.ENV_DR)
        self.error_code = c_int32.from_address(env + at.ENV_ERROR_CODE)
        self.exception_is_int = c_int32.from_address(env + at.ENV_EXCEPTION_IS_INT)
        self.old_exception = c_int32.from_address(env + at.ENV_OLD_EXCEPTION)
        self.tsc_offset = c_uint64.from_address(env + at.ENV_TSC_OFFSET)
        self.exception_index = c_int32.from_address(cpu + at.CPU_EXCEPTION_INDEX)
        self.exit_request = c_uint8.from_address(cpu + at.CPU_EXIT_REQUEST)
        self.halted = c_uint32.from_address(cpu + at.CPU_HALTED)
        self.interrupt_request = c_uint32.from_address(cpu + at.CPU_INTERRUPT_REQUEST)
        self.singlestep = c_int32.from_address(cpu + at.CPU_SINGLESTEP)
        self.cflags_next_tb = c_int32.from_address(cpu + at.CPU_CFLAGS_NEXT_TB)
        self.stop_request = c_uint8.from_address(self.uc + at.UC_STOP_REQUEST)
        self.invalid_error = c_uint32.from_address(self.uc + at.UC_INVALID_ERROR)
        decrementer = c_uint64.from_address(cpu + at.CPU_ICOUNT_DECR).value
        self.icount_high = c_uint16.from_address(decrementer + 2)

    def _map_vector_page(self) -> int:
        """QEMU delivers a virtual interrupt (VIRQ) with the vector found in an SVM control block: this page.

        Returns its host address.
        """
        self._vector_map = mmap.mmap(-1, mmap.PAGESIZE)
        anchor = ctypes.c_char.from_buffer(self._vector_map)
        self._anchors.append(anchor)
        address = ctypes.addressof(anchor)
        self.lib.call("uc_mem_map_ptr", self.uc, VECTOR_PAGE, mmap.PAGESIZE, uc.PROT_ALL, address)
        return address

    def field(self, kind: type[Any], offset: int) -> Any:
        """A live view of a CPUX86State field."""
        return kind.from_address(self.env + offset)

    def control(self, number: int, *values: int) -> None:
        """uc_ctl with the write direction; each value is an int argument."""
        # UC_CTL(type, nr, rw): bits 0-25 the number, 26-29 how many arguments, 30-31 the direction (1 = write).
        function = self.lib.dll.uc_ctl
        code = function(c_void_p(self.uc), c_uint32(number | len(values) << 26 | 1 << 30), *map(c_int64, values))
        if code:
            raise MachineError(f"uc_ctl {number}: {self.lib.error_text(code)}")

    def map_ram(self, gpa: int, size: int, host: int) -> None:
        """Let the CPU and the devices share a run of RAM."""
        self.lib.call("uc_mem_map_ptr", self.uc, gpa, size, uc.PROT_ALL, host)

    def map_mmio(
        self, gpa: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Send accesses to a range to `read(address, size)` and `write(address, size, value)`."""
        read_hook = uc.MmioReadHook(lambda _uc, offset, n, _user: read(gpa + offset, n))
        write_hook = uc.MmioWriteHook(lambda _uc, offset, n, value, _user: write(gpa + offset, n, value))
        self._anchors += [read_hook, write_hook]
        self.lib.call("uc_mmio_map", self.uc, gpa, size, read_hook, None, write_hook, None)
        # A processor executes what a device answers; mapped as it is, Unicorn would end the run.
        self.lib.call("uc_mem_protect", self.uc, gpa, size, uc.PROT_ALL)

    def add_hook(
        self, kind: int, callback: Any, *extra: int, user: int | None = None, begin: int = 1, end: int = 0
    ) -> int:
        """uc_hook_add; `callback` is kept alive, the handle is returned. begin > end means everywhere."""
        handle = ctypes.c_size_t()
        self._hooks.append(callback)
        code = self.lib.dll.uc_hook_add(
            c_void_p(self.uc),
            ctypes.byref(handle),
            ctypes.c_int(kind),
            ctypes.cast(callback, c_void_p),
            c_void_p(user),
            c_uint64(begin),
            c_uint64(end),
            *(ctypes.c_int(e) for e in extra),
        )
        if code:
            raise MachineError(f"uc_hook_add: {self.lib.error_text(code)}")
        return handle.value

    def start(self) -> int:
        """Run from the current instruction until something stops; returns Unicorn's error code."""
        result: int = self.lib.uc_emu_start(self.uc, self.eip.value, 0xFFFF_FFFF_FFFF_FFFF, 0, 0)
        return result

    def stop(self) -> None:
        """Make `start` return at the next block's end; any thread."""
        self.lib.uc_emu_stop(self.uc)

    def close(self) -> None:
        """Close the instance; the views of its fields must not be used afterwards."""
        if self.uc:
            self.lib.uc_close(self.uc)
            self.uc = 0
            self._hooks.clear()
            self._anchors.clear()
            del self.vector
