"""Unicorn's shared library through ctypes: found, loaded once, checked for the pinned release.

The Python package `unicorn` is not imported, only its library is used: half of the import's time is tables of
other architectures, and its wrappers cost as much again as the callbacks they wrap.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

from enclavedbg.errors import MachineError
from enclavedbg.machine.cpu.soft import native
from enclavedbg.machine.cpu.soft.layout import UNICORN_VERSION

# include/unicorn/unicorn.h, x86.h
ARCH_X86 = 4
MODE_64 = 8
PROT_ALL = 7
HOOK_INTR = 1 << 0
HOOK_INSN = 1 << 1
HOOK_MEM_WRITE_PROT = 1 << 8
HOOK_MEM_READ = 1 << 10
HOOK_MEM_WRITE = 1 << 11
HOOK_INSN_INVALID = 1 << 14
INSN_CPUID = 113
INSN_IN = 218
INSN_OUT = 500
INSN_SYSCALL = 699
CTL_USE_EXITS = 4
CTL_CPU_MODEL = 7
CTL_TCG_BUFFER_SIZE = 13
CPU_MODEL_BROADWELL = 20
ERROR_FETCH_UNMAPPED = 8

InterruptHook = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
InvalidHook = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_void_p)
PortReadHook = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
PortWriteHook = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
SyscallHook = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
CpuidHook = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
MmioReadHook = ctypes.CFUNCTYPE(c_uint64, c_void_p, c_uint64, c_uint32, c_void_p)
MmioWriteHook = ctypes.CFUNCTYPE(None, c_void_p, c_uint64, c_uint32, c_uint64, c_void_p)
MemoryHook = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_uint64, c_int, ctypes.c_int64, c_void_p)
FaultHook = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_int, c_uint64, c_int, ctypes.c_int64, c_void_p)
StopInterruptHook = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_int)


def library_path() -> Path:
    """The library inside the installed `unicorn` package; raises MachineError when it is missing or another."""
    try:
        version = importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        raise MachineError(f"the package unicorn is missing; install unicorn=={UNICORN_VERSION}") from None
    if version != UNICORN_VERSION:
        raise MachineError(
            f"unicorn {version} is installed, the software CPU needs exactly {UNICORN_VERSION}; "
            f"run: pip install unicorn=={UNICORN_VERSION}"
        )
    spec = importlib.util.find_spec("unicorn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for pattern in ("libunicorn.so*", "libunicorn*.dylib", "unicorn.dll"):
            for path in sorted(Path(folder, "lib").glob(pattern)):
                return path
    raise MachineError("the package unicorn holds no library for this platform; reinstall it with pip")


class Library:
    """Typed access to the functions that the engine calls; inner ones carry the suffix `_x86_64` in the library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.dll = ctypes.CDLL(str(path))
        except OSError as error:
            raise MachineError(f"cannot load {path.name}: {error}") from error
        for name, (result, arguments) in _PUBLIC.items():
            self._declare(name, result, arguments)
        for name, (result, arguments) in _INNER.items():
            self._declare(f"{name}_x86_64", result, arguments, alias=name)

    def _declare(self, symbol: str, result: object, arguments: list[object], *, alias: str | None = None) -> None:
        try:
            function = getattr(self.dll, symbol)
        except AttributeError:
            message = f"{self.path.name} does not export {symbol}; expected unicorn {UNICORN_VERSION}"
            raise MachineError(message) from None
        function.restype = result
        function.argtypes = arguments
        setattr(self, alias or symbol, function)

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)

    def call(self, name: str, *arguments: object) -> None:
        """Call a public function that returns an error code; raises MachineError with Unicorn's words for it."""
        code = getattr(self, name)(*arguments)
        if code:
            raise MachineError(f"{name}: {self.error_text(code)}")

    def error_text(self, code: int) -> str:
        """Unicorn's sentence for an error code."""
        text: bytes = self.uc_strerror(code)
        return text.decode(errors="replace")


_PUBLIC: dict[str, tuple[object, list[object]]] = {
    "uc_open": (c_int, [c_int, c_int, c_void_p]),
    "uc_close": (c_int, [c_void_p]),
    "uc_strerror": (c_char_p, [c_int]),
    "uc_mem_map_ptr": (c_int, [c_void_p, c_uint64, c_size_t, c_uint32, c_void_p]),
    "uc_mmio_map": (c_int, [c_void_p, c_uint64, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p]),
    "uc_mem_protect": (c_int, [c_void_p, c_uint64, c_size_t, c_uint32]),
    "uc_emu_start": (c_int, [c_void_p, c_uint64, c_uint64, c_uint64, c_size_t]),
    "uc_emu_stop": (c_int, [c_void_p]),
    "uc_hook_del": (c_int, [c_void_p, c_size_t]),
    "uc_reg_write": (c_int, [c_void_p, c_int, c_void_p]),
}
_INNER: dict[str, tuple[object, list[object]]] = {
    "x86_cpu_do_interrupt": (None, [c_void_p]),
    "x86_cpu_tlb_fill": (ctypes.c_bool, [c_void_p, c_uint64, c_int, c_int, c_int, ctypes.c_bool, c_uint64]),
    "x86_update_hflags": (None, [c_void_p]),
    "helper_read_eflags": (c_uint64, [c_void_p]),
    "helper_write_eflags": (None, [c_void_p, c_uint64, c_uint32]),
    "cpu_get_tsc": (c_uint64, [c_void_p]),
    "tlb_flush": (None, [c_void_p]),
    "tb_flush": (None, [c_void_p]),
    "tb_invalidate_phys_page_range": (None, [c_void_p, c_uint64, c_uint64]),
    "cpu_breakpoint_insert": (c_int, [c_void_p, c_uint64, c_int, c_void_p]),
    "cpu_breakpoint_remove_all": (None, [c_void_p, c_int]),
    "x86_cpu_get_phys_page_attrs_debug": (c_uint64, [c_void_p, c_uint64, c_void_p]),
    "cpu_x86_update_dr7": (None, [c_void_p, c_uint32]),
    "update_fp_status": (None, [c_void_p]),
    "update_mxcsr_status": (None, [c_void_p]),
}


@functools.cache
def load() -> tuple[Library, ctypes.CDLL | None]:
    """Unicorn's library and the native part, or None where that was not built or does not fit.

    The native part comes first, as the dynamic linker gives a name to whoever defined it first.
    """
    dll = native.load()
    library = Library(library_path())
    if dll is not None and dll.enclavedbg_bind(str(library.path).encode()):
        # Its functions are in the way of Unicorn's already and cannot hand over.
        raise MachineError(f"the native part does not fit {library.path.name}; delete it or reinstall enclavedbg")
    return library, dll
