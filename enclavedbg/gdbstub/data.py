"""Registers and memory: `g G p P m M x X`."""

from __future__ import annotations

from enclavedbg.errors import GuestFault, ProtocolError
from enclavedbg.gdbstub import packets, registers
from enclavedbg.gdbstub.client import Client, Dialect, Feature, HandlerTable, Reply
from enclavedbg.gdbstub.framing import PACKET_SIZE

TABLE = HandlerTable()

_LONGEST_READ = PACKET_SIZE // 2
"""In bytes, so that the reply fits in hexadecimal; a client takes a short reply as a partial read."""


@TABLE.handles(packets.ReadRegisters, stopped=True)
def read_registers(client: Client, request: packets.ReadRegisters) -> Reply:
    client.check_thread(request.thread)
    return registers.read_all(client.target.state()).hex().encode()


@TABLE.handles(packets.WriteRegisters, stopped=True)
def write_registers(client: Client, request: packets.WriteRegisters) -> Reply:
    client.check_thread(request.thread)
    client.target.set_state(registers.write_all(client.target.state(), request.data))
    return b"OK"


@TABLE.handles(packets.ReadRegister, stopped=True)
def read_register(client: Client, request: packets.ReadRegister) -> Reply:
    client.check_thread(request.thread)
    _check_number(request.number)
    return registers.read_register(client.target.state(), request.number).hex().encode()


@TABLE.handles(packets.WriteRegister, stopped=True)
def write_register(client: Client, request: packets.WriteRegister) -> Reply:
    client.check_thread(request.thread)
    _check_number(request.number)
    client.target.set_state(registers.write_register(client.target.state(), request.number, request.value))
    return b"OK"


@TABLE.handles(packets.ReadMemory, Feature("binary-upload+", Dialect.GDB), stopped=True)
def read_memory(client: Client, request: packets.ReadMemory) -> Reply:
    if not request.binary:
        return _read(client, request.address, request.length).hex().encode()
    if client.dialect is not Dialect.LLDB:
        return b"b" + _read(client, request.address, request.length)
    # LLDB asks for nothing first, to see whether `x` is known, and wants the bytes alone.
    return _read(client, request.address, request.length) if request.length else b"OK"


@TABLE.handles(packets.WriteMemory, stopped=True)
def write_memory(client: Client, request: packets.WriteMemory) -> Reply:
    if not request.data:
        return b"OK"
    try:
        client.target.write_virtual(request.address, request.data)
    except GuestFault:
        physical = _before_paging(client, request.address)
        if physical is None or len(request.data) > physical[1]:
            raise
        client.target.write_physical(physical[0], request.data)
    return b"OK"


def _read(client: Client, address: int, length: int) -> bytes:
    length = min(length, _LONGEST_READ, packets.MAX_ADDRESS + 1 - address)
    if not length:
        return b""
    try:
        return client.target.read_virtual(address, length)
    except GuestFault:
        physical = _before_paging(client, address)
        if physical is None:
            raise
        return client.target.read_physical(physical[0], min(length, physical[1]))


def _before_paging(client: Client, address: int) -> tuple[int, int] | None:
    links = client.services.link_map
    return links.physical(client.target, address) if links is not None else None


def _check_number(number: int) -> None:
    if number >= len(registers.REGISTERS):
        raise ProtocolError(f"there is no register {number}; the last one is {len(registers.REGISTERS) - 1}")
