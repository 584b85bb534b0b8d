"""`vFile`: the one virtual file that is served, the guest kernel's symbols. Nothing of the host is reachable.

GDB manual, "Host I/O Packets" and "File-I/O Remote Protocol Extension" (numbers and the layout of stat).
"""

from __future__ import annotations

import struct

from enclavedbg.errors import SymbolError
from enclavedbg.gdbstub import packets
from enclavedbg.gdbstub.client import Client, HandlerTable, Reply
from enclavedbg.gdbstub.framing import PACKET_SIZE, escape

TABLE = HandlerTable()

KERNEL_PATH = "/enclavedbg/kernel"
"""Under this name a client opens the symbol file."""

_ENOENT, _EBADF, _EMFILE, _EROFS = 2, 9, 24, 30
_READ_ONLY = 0
_MAX_OPEN = 16
_REGULAR_FILE_MODE = 0o100444
_BLOCK = 512

_STAT = struct.Struct(">IIIIIIIQQQIII")
"""st_dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime: big-endian, 64 bytes."""


def _failure(number: int) -> bytes:
    return f"F-1,{number:x}".encode()


@TABLE.handles(packets.FileSetFs)
def set_filesystem(client: Client, request: packets.FileSetFs) -> Reply:
    return b"F0"


@TABLE.handles(packets.FileOpen)
def open_file(client: Client, request: packets.FileOpen) -> Reply:
    if client.services.symbols is None or request.path != KERNEL_PATH:
        return _failure(_ENOENT)
    if request.flags != _READ_ONLY:
        return _failure(_EROFS)
    if len(client.files) >= _MAX_OPEN:
        return _failure(_EMFILE)
    return _open_symbols(client)


async def _open_symbols(client: Client) -> bytes:
    assert client.services.symbols is not None
    try:
        content = await client.services.symbols()
    except SymbolError:
        return _failure(_ENOENT)
    descriptor = next(n for n in range(_MAX_OPEN + 1) if n not in client.files)
    client.files[descriptor] = content
    return f"F{descriptor:x}".encode()


@TABLE.handles(packets.FileClose)
def close_file(client: Client, request: packets.FileClose) -> Reply:
    return b"F0" if client.files.pop(request.descriptor, None) is not None else _failure(_EBADF)


@TABLE.handles(packets.FileRead)
def read_file(client: Client, request: packets.FileRead) -> Reply:
    content = client.files.get(request.descriptor)
    if content is None:
        return _failure(_EBADF)
    # Escapes may double the bytes and the reply has to fit: the client asks again for what is missing.
    room = PACKET_SIZE - 16
    data = content[request.offset : request.offset + min(request.count, room)]
    if len(escape(data)) > room:
        data = data[: room // 2]
    return f"F{len(data):x};".encode() + data


@TABLE.handles(packets.FileStatus)
def file_status(client: Client, request: packets.FileStatus) -> Reply:
    content = client.files.get(request.descriptor)
    if content is None:
        return _failure(_EBADF)
    size = len(content)
    block = _STAT.pack(0, 1, _REGULAR_FILE_MODE, 1, 0, 0, 0, size, _BLOCK, -(-size // _BLOCK), 0, 0, 0)
    return f"F{len(block):x};".encode() + block


@TABLE.handles(packets.FileSize)
def file_size(client: Client, request: packets.FileSize) -> Reply:
    if client.services.symbols is None or request.path != KERNEL_PATH:
        return _failure(_ENOENT)
    return _symbols_size(client)


async def _symbols_size(client: Client) -> bytes:
    assert client.services.symbols is not None
    try:
        return f"F{len(await client.services.symbols()):x}".encode()
    except SymbolError:
        return _failure(_ENOENT)
