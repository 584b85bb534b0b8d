"""The optional native part: one small C library that replaces functions inside Unicorn (see native.c)."""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import Structure, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path

from enclavedbg.machine.cpu.soft import layout

log = logging.getLogger(__name__)

MAX_REGIONS = 4
MAX_WATCHPOINTS = 64


class NativeLayout(Structure):
    """`struct layout` of native.c."""

    _fields_ = [
        (name, c_uint32)
        for name in (
            "uc_stop_request",
            "uc_invalid_error",
            "uc_tcg_context",
            "cpu_exit_request",
            "cpu_exception_index",
            "cpu_interrupt_request",
            "cpu_icount_decr",
            "cpu_cflags_next_tb",
            "cpu_singlestep",
            "cpu_mem_io_pc",
            "cpu_halted",
            "tb_cflags",
            "env_eip",
            "env_eflags",
            "env_hflags",
            "env_segs",
            "env_efer",
            "env_star",
            "env_lstar",
            "env_cstar",
            "env_fmask",
            "env_exception_is_int",
        )
    ]


class NativeRegion(Structure):
    """A run of RAM: guest physical address, size, host address; `ram_addr` is filled in by the library."""

    _fields_ = [("gpa", c_uint64), ("size", c_uint64), ("host", c_uint64), ("ram_addr", c_uint64)]


class NativeWatchpoint(Structure):
    _fields_ = [("address", c_uint64), ("length", c_uint64), ("access", c_uint32)]


class NativeEngine(Structure):
    """`struct engine` of native.c: one engine's handles and watchpoints, shared with the library."""

    _fields_ = [
        ("uc", c_void_p),
        ("cpu", c_void_p),
        ("env", c_void_p),
        ("at", NativeLayout),
        ("regions", c_uint32),
        ("region", NativeRegion * MAX_REGIONS),
        ("has_code", c_void_p * MAX_REGIONS),
        ("watchpoints", c_uint32),
        ("watchpoint", NativeWatchpoint * MAX_WATCHPOINTS),
        ("watch_hit", c_uint32),
        ("watch_index", c_uint32),
        ("watch_address", c_uint64),
        ("exact_stops", c_uint32),
        ("debug_stop", c_uint32),
        ("triple_fault", c_uint32),
        ("no_task_state", c_uint32),
        ("interrupt_held", c_uint32),
        ("instruction", c_uint64),
    ]


def native_layout() -> NativeLayout:
    """The offsets of layout.py in the form that the library takes."""
    return NativeLayout(
        uc_stop_request=layout.UC_STOP_REQUEST,
        uc_invalid_error=layout.UC_INVALID_ERROR,
        uc_tcg_context=layout.UC_TCG_CONTEXT,
        cpu_exit_request=layout.CPU_EXIT_REQUEST,
        cpu_exception_index=layout.CPU_EXCEPTION_INDEX,
        cpu_interrupt_request=layout.CPU_INTERRUPT_REQUEST,
        cpu_icount_decr=layout.CPU_ICOUNT_DECR,
        cpu_cflags_next_tb=layout.CPU_CFLAGS_NEXT_TB,
        cpu_singlestep=layout.CPU_SINGLESTEP,
        cpu_mem_io_pc=layout.CPU_MEM_IO_PC,
        cpu_halted=layout.CPU_HALTED,
        tb_cflags=layout.TB_CFLAGS,
        env_eip=layout.ENV_EIP,
        env_eflags=layout.ENV_EFLAGS,
        env_hflags=layout.ENV_HFLAGS,
        env_segs=layout.ENV_SEGS,
        env_efer=layout.ENV_EFER,
        env_star=layout.ENV_STAR,
        env_lstar=layout.ENV_LSTAR,
        env_cstar=layout.ENV_CSTAR,
        env_fmask=layout.ENV_FMASK,
        env_exception_is_int=layout.ENV_EXCEPTION_IS_INT,
    )


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, or None where it was not built or cannot be used; must come before Unicorn's is loaded."""
    for path in sorted(Path(__file__).parent.glob("_native*.so")):
        try:
            # Looked at before its functions get in the way of Unicorn's: it may be older than this file.
            if ctypes.CDLL(str(path)).enclavedbg_engine_size() != ctypes.sizeof(NativeEngine):
                raise OSError("it was built from other sources; install enclavedbg again")
            dll = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            dll.enclavedbg_bind.argtypes = [ctypes.c_char_p]
            dll.enclavedbg_bind.restype = c_int
            dll.enclavedbg_attach.argtypes = [ctypes.POINTER(NativeEngine)]
            dll.enclavedbg_attach.restype = c_int
            dll.enclavedbg_detach.argtypes = [ctypes.POINTER(NativeEngine)]
            dll.enclavedbg_detach.restype = None
            _ = dll.enclavedbg_deliver, dll.enclavedbg_stop_interrupt
        except (OSError, AttributeError) as error:
            log.warning("%s cannot be used: %s; the software CPU runs in Python only", path.name, error)
            continue
        return dll
    return None
