"""Everything that tells a client about the server and the machine: features, threads, documents, host, monitor."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from enclavedbg import __version__
from enclavedbg.errors import EnclaveDbgError, MachineError, ProtocolError
from enclavedbg.gdbstub import packets
from enclavedbg.gdbstub.client import PROCESS, VCPU, Client, Dialect, Feature, HandlerTable, Reply
from enclavedbg.gdbstub.files import KERNEL_PATH
from enclavedbg.gdbstub.targetxml import TARGET_XML

log = logging.getLogger(__name__)

TABLE = HandlerTable()

_TRIPLE = b"x86_64-unknown-linux-gnu".hex()


@TABLE.handles(packets.StartNoAck, Feature("QStartNoAckMode+"))
def start_no_ack(client: Client, request: packets.StartNoAck) -> Reply:
    # The session stops acknowledging once this reply is on its way.
    return b"OK"


@TABLE.handles(packets.SelectThread)
def select_thread(client: Client, request: packets.SelectThread) -> Reply:
    client.check_thread(request.thread)
    return b"OK"


@TABLE.handles(packets.ThreadAlive)
def thread_alive(client: Client, request: packets.ThreadAlive) -> Reply:
    client.check_thread(request.thread)
    return b"OK"


@TABLE.handles(packets.CurrentThread, Feature("multiprocess+"))
def current_thread(client: Client, request: packets.CurrentThread) -> Reply:
    return f"QC{client.thread}".encode()


@TABLE.handles(packets.ListThreads)
def list_threads(client: Client, request: packets.ListThreads) -> Reply:
    return f"m{client.thread}".encode() if request.first else b"l"


@TABLE.handles(packets.ThreadText)
def thread_text(client: Client, request: packets.ThreadText) -> Reply:
    client.check_thread(request.thread)
    return _describe_vcpu(client).encode().hex().encode()


def _describe_vcpu(client: Client) -> str:
    try:
        state = client.target.state()
    except MachineError:
        return "running"
    return f"{'user' if state.cpl == 3 else 'kernel'}{', halted' if state.halted else ''}"


@TABLE.handles(packets.Attached)
def attached(client: Client, request: packets.Attached) -> Reply:
    return b"1"  # so that a client which quits leaves the machine alone


@TABLE.handles(packets.SectionOffsets)
def section_offsets(client: Client, request: packets.SectionOffsets) -> Reply:
    return b"Text=0;Data=0;Bss=0"  # kernels run at their link addresses here: the firmware starts them without KASLR


@TABLE.handles(packets.SymbolLookup)
def symbol_lookup(client: Client, request: packets.SymbolLookup) -> Reply:
    return b"OK"


def _target_xml(client: Client, annex: str) -> bytes:
    if annex != "target.xml":
        raise ProtocolError(f"there is no description {annex!r}, only target.xml")
    return TARGET_XML.encode()


def _threads(client: Client, annex: str) -> bytes:
    return (
        f'<threads><thread id="{client.thread}" core="{VCPU - 1}" name="vcpu{VCPU - 1}">'
        f"{_describe_vcpu(client)}</thread></threads>"
    ).encode()


async def _exec_file(client: Client, annex: str) -> bytes:
    assert client.services.symbols is not None
    if annex and int(annex, 16) != PROCESS:
        raise ProtocolError(f"there is no process {annex}, only {PROCESS}")
    await client.services.symbols()  # so that a kernel without symbols is said here, not by a failing open
    return KERNEL_PATH.encode()


def _libraries(client: Client, annex: str) -> bytes:
    # Nothing is loaded besides the kernel; saying so keeps GDB from searching the guest for a list.
    return b'<library-list-svr4 version="1.0"/>'


DOCUMENTS: dict[str, Callable[[Client, str], bytes | Awaitable[bytes]]] = {
    "features": _target_xml,
    "threads": _threads,
    "exec-file": _exec_file,
    "libraries-svr4": _libraries,
}
"""What `qXfer` reads, by object name; each is announced because it is here."""


def _served(client: Client) -> list[str]:
    return [name for name in DOCUMENTS if name != "exec-file" or client.services.symbols is not None]


@TABLE.handles(packets.Xfer)
def xfer(client: Client, request: packets.Xfer) -> Reply:
    if request.object not in _served(client):
        return b""
    document = DOCUMENTS[request.object](client, request.annex)
    if isinstance(document, bytes):
        return _piece(document, request)
    return _later_piece(document, request)


async def _later_piece(document: Awaitable[bytes], request: packets.Xfer) -> bytes:
    return _piece(await document, request)


def _piece(document: bytes, request: packets.Xfer) -> bytes:
    piece = document[request.offset : request.offset + request.length]
    return (b"m" if request.offset + len(piece) < len(document) else b"l") + piece


def supported(client: Client, features: list[Feature]) -> bytes:
    """The qSupported reply: what the handlers announce, as far as it concerns this client."""
    words = [feature.text for feature in features if client.dialect in feature.dialects]
    if "multiprocess+" not in client.offered:
        words = [word for word in words if word != "multiprocess+"]
    return ";".join(words + [f"qXfer:{name}:read+" for name in _served(client)]).encode()


@TABLE.handles(packets.MonitorText)
def monitor(client: Client, request: packets.MonitorText) -> Reply:
    try:
        result = client.services.commands.run(request.text)
    except EnclaveDbgError as error:
        return _monitor_failed(client, error)
    if isinstance(result, str):
        client.console(result)
        return b"OK"
    return _later_monitor(client, result)


async def _later_monitor(client: Client, result: Awaitable[str]) -> bytes:
    try:
        client.console(await result)
    except EnclaveDbgError as error:
        return _monitor_failed(client, error)
    return b"OK"


def _monitor_failed(client: Client, error: EnclaveDbgError) -> bytes:
    reply = client.error(error)
    if b"." not in reply and b";" not in reply:
        # This client shows no text with errors, so it comes as output.
        client.console(f"{error}\n")
    return reply


@TABLE.handles(packets.HostInfo)
def host_info(client: Client, request: packets.HostInfo) -> Reply:
    # Without a triple LLDB takes the target for a Darwin kernel and probes memory thousands of times.
    return f"triple:{_TRIPLE};endian:little;ptrsize:8;ostype:linux;".encode()


@TABLE.handles(packets.ProcessInfo)
def process_info(client: Client, request: packets.ProcessInfo) -> Reply:
    return f"pid:{PROCESS:x};triple:{_TRIPLE};endian:little;ptrsize:8;ostype:linux;".encode()


@TABLE.handles(packets.ServerVersion)
def server_version(client: Client, request: packets.ServerVersion) -> Reply:
    return f"name:enclavedbg;version:{__version__};".encode()


@TABLE.handles(packets.WatchpointSupport)
def watchpoint_support(client: Client, request: packets.WatchpointSupport) -> Reply:
    return b"num:64;"


@TABLE.handles(packets.ThreadSuffix, Feature("QThreadSuffixSupported+", Dialect.LLDB))
def thread_suffix(client: Client, request: packets.ThreadSuffix) -> Reply:
    return b"OK"


@TABLE.handles(packets.ThreadsInStopReply, Feature("QListThreadsInStopReply+", Dialect.LLDB))
def threads_in_stop_reply(client: Client, request: packets.ThreadsInStopReply) -> Reply:
    client.list_threads = True
    return b"OK"


@TABLE.handles(packets.ErrorStrings, Feature("QEnableErrorStrings+", Dialect.LLDB))
def error_strings(client: Client, request: packets.ErrorStrings) -> Reply:
    client.error_strings = True
    return b"OK"
