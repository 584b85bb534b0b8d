"""vsock: a program of the host talks to the guest's echo service through a Unix socket, and to a plain echo server."""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.boot import OURS
from benchmarks.debugger import READY
from benchmarks.harness import Context, Sample
from benchmarks.images import DEMO, ours, surroundings
from benchmarks.process import Child, Failed

PEER = "asyncio echo server"
LISTENING = "listening"
ECHO_PORT = 5000
ATTESTATION_PORT = 5001
_ROUND_TRIP = "round trip of 64 bytes"
_THROUGHPUT = "throughput, there and back"
_CONNECT = "connect, echo one byte, close"
_DOCUMENT = "attestation document through the guest's program"
_BYTES = 8 << 20
_PINGS = 200


def vsock(context: Context) -> None:
    """Round trips, throughput and connections; both servers are processes of their own, the client is the same."""
    folder = context.folder / "vsock"
    plain = context.folder / "echo"
    environment = surroundings(context.folder)
    with (
        Child(ours(DEMO, "--vsock", str(folder)), environment=environment) as enclave,
        Child([sys.executable, "-m", "benchmarks.echo", str(plain)]) as server,
    ):
        enclave.until(READY)
        server.until(LISTENING)

        def guest(port: int = ECHO_PORT) -> socket.socket:
            return _connect(folder / "vsock", f"CONNECT {port}\n".encode())

        sides = {
            OURS: lambda: {**_measure(guest), **_documents(lambda: guest(ATTESTATION_PORT))},
            PEER: lambda: _measure(lambda: _connect(plain)),
        }
        samples = context.in_turns(sides, rounds=5)
    for what, unit in ((_ROUND_TRIP, "s"), (_THROUGHPUT, "B/s"), (_CONNECT, "s"), (_DOCUMENT, "s")):
        context.add(samples, what, unit=unit)


def _connect(path: Path, greeting: bytes = b"") -> socket.socket:
    """A connection, past the hybrid convention's `CONNECT port` and `OK port` when there is a greeting."""
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(60)
    stream.connect(str(path))
    if greeting:
        stream.sendall(greeting)
        answer = b""
        while not answer.endswith(b"\n"):
            piece = stream.recv(1)
            if not piece:
                raise Failed(f"{greeting!r} was refused")
            answer += piece
    return stream


def _measure(connect: Callable[[], socket.socket]) -> Sample:
    with connect() as stream:
        trips = []
        for number in range(_PINGS):
            message = number.to_bytes(64, "big")
            began = time.perf_counter()
            stream.sendall(message)
            if _exactly(stream, len(message)) != message:
                raise Failed("the echo is not what was sent")
            trips.append(time.perf_counter() - began)
        rate = _flood(stream)
    began = time.perf_counter()
    for _ in range(20):
        with connect() as stream:
            stream.sendall(b"x")
            _exactly(stream, 1)
    connection = (time.perf_counter() - began) / 20
    return {_ROUND_TRIP: statistics.median(trips), _THROUGHPUT: rate, _CONNECT: connection}


def _flood(stream: socket.socket) -> float:
    """Bytes per second when as much is sent as the other side takes."""
    data = bytes(range(256)) * (_BYTES >> 8)
    sender = threading.Thread(target=stream.sendall, args=(data,), daemon=True)
    began = time.perf_counter()
    sender.start()
    echoed = _exactly(stream, len(data))
    took = time.perf_counter() - began
    sender.join()
    if echoed != data:
        raise Failed("the echo is not what was sent")
    return len(data) / took


def _documents(connect: Callable[[], socket.socket]) -> Sample:
    """Seconds for one document, of twenty that the guest's program asks its secure module for (guest/README.md)."""
    absent = b"\xff\xff\xff\xff"
    request = (32).to_bytes(4, "big") + bytes(32) + absent + absent
    with connect() as stream:
        began = time.perf_counter()
        for _ in range(20):
            stream.sendall(request)
            head = _exactly(stream, 5)
            if head[0] != 0:
                raise Failed(f"the attestation service answered status {head[0]}")
            _exactly(stream, int.from_bytes(head[1:], "big"))
        return {_DOCUMENT: (time.perf_counter() - began) / 20}


def _exactly(stream: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        piece = stream.recv(min(1 << 18, count - len(parts)))
        if not piece:
            raise Failed(f"the connection ended after {len(parts)} of {count} bytes")
        parts += piece
    return bytes(parts)


async def _serve(path: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(echo, path)
    print(LISTENING, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
