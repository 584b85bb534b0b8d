"""The host side of the enclave's socket: connections, endpoints, parent services, trace.

    switch = VsockSwitch(16, loop, publish=print, now_ns=time.monotonic_ns)
    UnixEndpoints(Path("sockets"), switch).open()
    switch.register(5005, my_service, name="mine")
    stream = await switch.connect(5000)

The device model feeds it with `from_guest` and empties it with `next_for_guest`. Nothing here imports the machine.
"""

from __future__ import annotations

from enclavedbg.vsock.contract import ConnectionInfo, Ending, State
from enclavedbg.vsock.events import (
    Change,
    Side,
    VsockConnection,
    VsockEvent,
    VsockHeartbeat,
    VsockPacketEvent,
)
from enclavedbg.vsock.inproc import VsockStream
from enclavedbg.vsock.switch import ParentService, VsockSwitch
from enclavedbg.vsock.unix import UnixEndpoints

__all__ = [
    "Change",
    "ConnectionInfo",
    "Ending",
    "ParentService",
    "Side",
    "State",
    "UnixEndpoints",
    "VsockConnection",
    "VsockEvent",
    "VsockHeartbeat",
    "VsockPacketEvent",
    "VsockStream",
    "VsockSwitch",
]
