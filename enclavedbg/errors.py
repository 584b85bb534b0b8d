"""Every error that enclavedbg raises on purpose, and the exit status that each one becomes.

A message is one line: what was found, what was expected, what to do. The command line prints it after
`enclavedbg: ` and exits with `exit_status`; docs/exit-codes.md lists the numbers.
"""

from __future__ import annotations


class EnclaveDbgError(Exception):
    """Root of the package's own errors; `exit_status` is what the command exits with."""

    exit_status = 2


class EifError(EnclaveDbgError):
    """An enclave image is damaged, incomplete or not for this machine.

    `offset` is the byte in the file where the check failed, or None when it concerns the whole file.
    """

    def __init__(self, message: str, *, offset: int | None = None) -> None:
        super().__init__(message if offset is None else f"{message} (at byte {offset:#x} of the file)")
        self.offset = offset


class MachineError(EnclaveDbgError):
    """The machine cannot be built or cannot go on as asked."""


class GuestFault(MachineError):
    """An address that the guest, or a person looking at the guest, named leads nowhere.

    `address` is the faulting address; `level` names the page-table level that failed ("PML4E", "PDPTE",
    "PDE", "PTE"), "physical" for an address outside RAM; `entry` is the table entry found there.
    """

    def __init__(self, message: str, *, address: int, level: str = "physical", entry: int = 0) -> None:
        super().__init__(message)
        self.address = address
        self.level = level
        self.entry = entry


class NsmError(EnclaveDbgError):
    """The secure module or its authority cannot work as asked."""


class VsockError(EnclaveDbgError):
    """A vsock packet, endpoint or command breaks the rules of the socket."""


class ProtocolError(EnclaveDbgError):
    """A debugger's packet is not what the remote protocol allows."""


class SymbolError(EnclaveDbgError):
    """The kernel image holds no symbols or types that can be read."""
