"""The demo program's attestation service on port 5001 (guest/README.md)."""

from __future__ import annotations

import struct

from tests.live.driver import Run

ABSENT = 0xFFFF_FFFF


async def attest(run: Run, *, nonce: bytes, user_data: bytes | None = None) -> bytes:
    """The document that a program in the guest asked for."""
    stream = await run.enclave.vsock.connect(5001)
    for field in (user_data, nonce, None):
        await stream.write(struct.pack(">I", ABSENT) if field is None else struct.pack(">I", len(field)) + field)
    status, length = struct.unpack(">BI", await stream.read_exactly(5))
    document = await stream.read_exactly(length)
    assert status == 0, document
    stream.close()
    return document
