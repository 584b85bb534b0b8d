"""Run control: stops and their replies, resuming, breakpoints and watchpoints, detach and kill."""

from __future__ import annotations

import logging

from enclavedbg.errors import MachineError, ProtocolError
from enclavedbg.gdbstub import packets, registers
from enclavedbg.gdbstub.client import PROCESS, VCPU, Client, Deferred, Dialect, Feature, HandlerTable, Reply
from enclavedbg.gdbstub.packets import PointKind, Resume
from enclavedbg.gdbstub.target import Verdict
from enclavedbg.machine.cpu.engine import (
    BreakpointHit,
    Interrupted,
    StepDone,
    WatchKind,
    Watchpoint,
    WatchpointHit,
)
from enclavedbg.machine.cpu.state import CpuState

log = logging.getLogger(__name__)

TABLE = HandlerTable()

SIGINT, SIGTRAP = 2, 5
_MAX_POINTS = 4096
_WATCH_KINDS = {
    PointKind.WRITE: WatchKind.WRITE,
    PointKind.READ: WatchKind.READ,
    PointKind.ACCESS: WatchKind.ACCESS,
}


def stop_reply(client: Client, *, asked: bool = False) -> bytes:
    """The `T` packet for the machine's last stop. `asked`: the client wants to know where things stand (`?`),
    so nothing is said of what has stopped it, which the client may never have caused.
    """
    target = client.target
    reason = None if asked else target.stop_reason
    # A machine held at its end was interrupted too, but by nobody's Ctrl-C.
    signal = SIGINT if isinstance(reason, Interrupted) and verdict_of(client) is None else SIGTRAP
    parts = [f"T{signal:02x}thread:{client.thread};"]
    try:
        state: CpuState | None = target.state()
    except MachineError:
        state = None  # the run is over and nothing is left to look at
    if state is not None:
        for number in registers.EXPEDITED:
            parts.append(f"{number:02x}:{registers.read_register(state, number).hex()};")
    if client.dialect is Dialect.LLDB and client.list_threads:
        parts.append(f"threads:{client.thread};")
        if state is not None:
            parts.append(f"thread-pcs:{state.rip:x};")
    parts += _cause(client, reason)
    return "".join(parts).encode()


def _cause(client: Client, reason: object) -> list[str]:
    """The keys that name the cause. A breakpoint is only named where this client has one: GDB would take any other
    for a late hit of one that it has removed, and resume without a word.
    """
    lldb = client.dialect is Dialect.LLDB
    match reason:
        case BreakpointHit(address):
            for kind, key in ((PointKind.SOFTWARE, "swbreak"), (PointKind.HARDWARE, "hwbreak")):
                if address in client.points[kind]:
                    if lldb:
                        return ["reason:breakpoint;"]
                    return [f"{key}:;"] if f"{key}+" in client.offered else []
        case WatchpointHit(Watchpoint(start, length, kind), address):
            points = next(client.points[point] for point, watch in _WATCH_KINDS.items() if watch is kind)
            if points.get(start) == length:
                # An access may begin before the range; clients look the address up among their ranges.
                inside = min(max(address, start), start + length - 1)
                return [f"{kind.value}:{inside:x};"]
        case StepDone() if lldb:
            return ["reason:trace;"]
    return []


def verdict_of(client: Client) -> Verdict | None:
    """How the run ended, if it has."""
    return client.verdict if client.verdict is not None else client.target.verdict


def exit_reply(client: Client, verdict: Verdict) -> bytes:
    """The `W` packet that ends a session."""
    process = f";process:{PROCESS:x}" if client.multiprocess else ""
    return f"W{verdict.exit_status & 0xFF:02x}{process}".encode()


@TABLE.handles(packets.StopReason, stopped=True)
def stop_reason(client: Client, request: packets.StopReason) -> Reply:
    return stop_reply(client, asked=True)


@TABLE.handles(packets.ThreadStop, stopped=True)
def thread_stop(client: Client, request: packets.ThreadStop) -> Reply:
    client.check_thread(request.thread)
    return stop_reply(client)


@TABLE.handles(packets.VContQuery)
def vcont_query(client: Client, request: packets.VContQuery) -> Reply:
    return b"vCont;c;C;s;S;t"


@TABLE.handles(packets.VCont, Feature("vContSupported+", Dialect.GDB), stopped=True)
def vcont(client: Client, request: packets.VCont) -> Reply:
    for action in request.actions:
        if action.thread is None or action.thread.covers(PROCESS, VCPU):
            break
    else:
        raise ProtocolError("no action is for thread 1.1, the only one: nothing would run")
    if action.resume is Resume.STOP:
        return stop_reply(client)
    if request.address is not None:
        number = registers.NUMBERS["rip"]
        state = registers.write_register(client.target.state(), number, request.address.to_bytes(8, "little"))
        client.target.set_state(state)
    return Deferred.STEP if action.resume is Resume.STEP else Deferred.RUN


@TABLE.handles(
    packets.InsertPoint, Feature("swbreak+", Dialect.GDB), Feature("hwbreak+", Dialect.GDB), stopped=True
)  # fmt: skip
def insert_point(client: Client, request: packets.InsertPoint) -> Reply:
    points = client.points[request.kind]
    if request.address in points and points[request.address] == request.length:
        return b"OK"
    if sum(map(len, client.points.values())) >= _MAX_POINTS:
        raise MachineError(f"{_MAX_POINTS} breakpoints are set; remove some first")
    if request.kind in _WATCH_KINDS:
        if request.address in points:
            raise ProtocolError(f"{request.address:#x} is watched already with another length; remove that one first")
        client.target.add_watchpoint(_watchpoint(request), owner=client.owner)
    elif not _has_breakpoint(client, request.address):
        client.target.add_breakpoint(request.address, owner=client.owner)
    points[request.address] = request.length
    return b"OK"


@TABLE.handles(packets.RemovePoint, stopped=True)
def remove_point(client: Client, request: packets.RemovePoint) -> Reply:
    points = client.points[request.kind]
    if request.address not in points:
        return b"OK"
    if request.kind in _WATCH_KINDS:
        watched = packets.RemovePoint(request.kind, request.address, points[request.address])
        client.target.remove_watchpoint(_watchpoint(watched), owner=client.owner)
        del points[request.address]
        return b"OK"
    del points[request.address]
    if not _has_breakpoint(client, request.address):
        client.target.remove_breakpoint(request.address, owner=client.owner)
    return b"OK"


def _has_breakpoint(client: Client, address: int) -> bool:
    """Z0 and Z1 are one thing to the machine, but two to a client, which may have both at an address."""
    return address in client.points[PointKind.SOFTWARE] or address in client.points[PointKind.HARDWARE]


def _watchpoint(request: packets.InsertPoint | packets.RemovePoint) -> Watchpoint:
    if not request.length or request.address + request.length > packets.MAX_ADDRESS + 1:
        raise ProtocolError(f"cannot watch {request.length} bytes at {request.address:#x}")
    return Watchpoint(request.address, request.length, _WATCH_KINDS[request.kind])


@TABLE.handles(packets.DetachStopped)
def detach_stopped(client: Client, request: packets.DetachStopped) -> Reply:
    return b"OK"


@TABLE.handles(packets.Detach)
def detach(client: Client, request: packets.Detach) -> Reply:
    for points in client.points.values():
        points.clear()
    client.target.clear_owner(client.owner)
    if not request.stay_stopped:
        let_go(client)
    return Deferred.GOODBYE


def let_go(client: Client) -> None:
    """Let the machine go on, or end if it was held at its end; one that is gone already is left alone."""
    if client.target.running:
        return
    try:
        client.target.resume()
    except MachineError as error:
        if verdict_of(client) is None:
            raise
        log.debug("the machine has ended: %s", error)


@TABLE.handles(packets.Kill)
def kill(client: Client, request: packets.Kill) -> Reply:
    if client.services.end_guest is None:
        raise MachineError("this server cannot end the guest; detach instead")
    client.services.end_guest()
    return Deferred.GOODBYE if request.reply else Deferred.SILENCE
