"""The parent's half of the boot handshake: an enclave's init reports on CID 3, port 9000.

It sends one byte, 0xB7, and waits for the same byte; aws-nitro-enclaves-cli accepts one connection
(eif_loader), the enclave's init is aws-nitro-enclaves-sdk-bootstrap's init.c.
"""

from __future__ import annotations

from enclavedbg.errors import VsockError
from enclavedbg.vsock.events import Publish, VsockHeartbeat
from enclavedbg.vsock.inproc import VsockStream

HEARTBEAT_PORT = 9000
HEARTBEAT_BYTE = 0xB7


class HeartbeatService:
    """Answers the heartbeat and publishes whether it was right."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    async def __call__(self, stream: VsockStream) -> None:
        try:
            first = await stream.read(1)
            if not first:
                self._publish(VsockHeartbeat(False, "the guest closed the connection before it sent a byte"))
            elif first[0] != HEARTBEAT_BYTE:
                self._publish(VsockHeartbeat(False, f"the guest sent {first[0]:#04x}, expected {HEARTBEAT_BYTE:#04x}"))
            else:
                await stream.write(first)
                self._publish(VsockHeartbeat(True, "the guest reported, and was answered"))
        except VsockError as error:
            self._publish(VsockHeartbeat(False, str(error)))
