"""What a run is asked to do: the command line's answer, as data."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from enclavedbg.errors import EnclaveDbgError

if TYPE_CHECKING:
    from enclavedbg.nsm.faults import Fault

LOOPBACK = "127.0.0.1"


class UsageError(EnclaveDbgError):
    """The command line is not understood."""


class OutputError(EnclaveDbgError):
    """Standard output cannot be written, though somebody may still be there: a full disk, for example."""

    @classmethod
    def of(cls, error: OSError) -> OutputError:
        """With the system's reason."""
        return cls(f"cannot write standard output: {error.strerror or error}; give it a place with room")


def parse_seed(text: str) -> int:
    """For argparse: a number to repeat a run by."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no seed; expected a number of up to 18 digits, e.g. 7")
    return int(text)


@dataclass(frozen=True, slots=True)
class Address:
    """Where gdb may connect. `public` when it reaches beyond this machine."""

    host: str
    port: int

    @property
    def public(self) -> bool:
        import ipaddress

        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Options:
    """What to run and how. `memory` in bytes, `timeout` in seconds."""

    verb: str | None = None
    eif: Path | None = None
    gdb: Address | None = None
    wait: bool = False
    memory: int | None = None
    cpu: Literal["auto", "soft", "kvm"] = "auto"
    cid: int = 16
    debug_mode: bool = False
    role_arn: str | None = None
    instance_id: str | None = None
    seed: int | None = None
    ephemeral_authority: bool = False
    map_encoding: Literal["definite", "indefinite"] = "indefinite"
    faults: tuple[Fault, ...] = ()
    vsock: Path | None = None
    console: Path | None = None
    shell: bool = True
    timeout: float | None = None
