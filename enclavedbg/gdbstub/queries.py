"""Everything that tells a client about the server and the machine: features, threads, documents, host, monitor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from enclavedbg import __version__
from enclavedbg.errors import EnclaveDbgError, GuestFault, MachineError, ProtocolError
from enclavedbg.gdbstub import packets
from enclavedbg.gdbstub.client import PROCESS, VCPU, Client, Dialect, Feature, HandlerTable, Reply
from enclavedbg.gdbstub.files import KERNEL_PATH
from enclavedbg.gdbstub.targetxml import TARGET_XML
from enclavedbg.machine.cpu.state import CR4_LA57
from enclavedbg.machine.paging import Translation

log = logging.getLogger(__name__)

TABLE = HandlerTable()

_REGION_PAGES = 128
"""How far a memory region is followed; a longer one is told in parts."""

_HOLES = {"PTE": 1 << 12, "PDE": 1 << 21, "PDPTE": 1 << 30, "PML4E": 1 << 39, "PML5E": 1 << 48}
"""How much is missing when an entry of this level is."""

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
    if annex and annex.lstrip("0") != f"{PROCESS:x}":
        raise ProtocolError(f"there is no process {annex!r}, only {PROCESS}")
    await client.services.symbols()  # so that a kernel without symbols is said here, not by a failing open
    return KERNEL_PATH.encode()


def _libraries(client: Client, annex: str) -> bytes:
    # Nothing is loaded besides the kernel; saying so keeps GDB from searching the guest for a list.
    return b'<library-list-svr4 version="1.0"/>'


DOCUMENTS: dict[str, Callable[[Client, str], bytes]] = {
    "features": _target_xml,
    "threads": _threads,
    "libraries-svr4": _libraries,
}
"""What `qXfer` reads, by object name; each is announced because it is here."""

SYMBOL_DOCUMENTS: dict[str, Callable[[Client, str], Awaitable[bytes]]] = {"exec-file": _exec_file}
"""Those that wait for the symbol file, and are there only with one."""


def _served(client: Client) -> list[str]:
    return [*DOCUMENTS, *(SYMBOL_DOCUMENTS if client.services.symbols is not None else ())]


@TABLE.handles(packets.Xfer)
def xfer(client: Client, request: packets.Xfer) -> Reply:
    if request.object not in _served(client):
        return b""
    if request.object in SYMBOL_DOCUMENTS:
        return _later_piece(client, request)
    return _piece(DOCUMENTS[request.object](client, request.annex), request)


async def _later_piece(client: Client, request: packets.Xfer) -> bytes:
    return _piece(await SYMBOL_DOCUMENTS[request.object](client, request.annex), request)


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
    # A task of its own, so that the command is carried out even if its client has left by then.
    return _later_monitor(client, asyncio.ensure_future(result))


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


@TABLE.handles(packets.MemoryRegion, stopped=True)
def memory_region(client: Client, request: packets.MemoryRegion) -> Reply:
    start, end, page = _region(client, request.address)
    if page is None:
        return f"start:{start:x};size:{end - start:x};".encode()
    rights = f"r{'w' if page.writable else ''}{'x' if page.executable else ''}"
    return f"start:{start:x};size:{end - start:x};permissions:{rights};".encode()


def _region(client: Client, address: int) -> tuple[int, int, Translation | None]:
    """First and last address of the run of like pages, or of the hole, that begins at `address`'s page."""
    first, end, page = _page(client, address)
    for _ in range(_REGION_PAGES):
        if end > packets.MAX_ADDRESS:
            break
        _, next_end, next_page = _page(client, end)
        if _rights(next_page) != _rights(page):
            break
        end = next_end
    return first, end, page


def _page(client: Client, address: int) -> tuple[int, int, Translation | None]:
    try:
        page = client.target.translate(address)
    except GuestFault as fault:
        if fault.level == "canonical":
            half = 1 << (56 if client.target.state().cr4 & CR4_LA57 else 47)
            return half, packets.MAX_ADDRESS + 1 - half, None
        size = _HOLES.get(fault.level, 1 << 12)
        return address & -size, (address & -size) + size, None
    return address & -page.page_size, (address & -page.page_size) + page.page_size, page


def _rights(page: Translation | None) -> tuple[bool, ...]:
    return () if page is None else (page.writable, page.user, page.executable)


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
