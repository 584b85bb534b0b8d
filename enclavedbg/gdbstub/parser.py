"""Packet bodies into requests: `parse` gives a frozen dataclass, and raises ProtocolError on malformed ones.

One table (`FORMS`) names every packet that is understood; all others become `Unknown`, which must be answered
with the empty reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from enclavedbg.errors import ProtocolError
from enclavedbg.gdbstub.packets import (
    MAX_ADDRESS,
    Action,
    Attached,
    CurrentThread,
    Detach,
    DetachStopped,
    ErrorStrings,
    FileClose,
    FileOpen,
    FileRead,
    FileSetFs,
    FileSize,
    FileStatus,
    HostInfo,
    InsertPoint,
    Kill,
    ListThreads,
    MemoryRegion,
    MonitorText,
    PointKind,
    ProcessInfo,
    QuerySupported,
    ReadMemory,
    ReadRegister,
    ReadRegisters,
    RemovePoint,
    Request,
    Resume,
    SectionOffsets,
    SelectThread,
    ServerVersion,
    StartNoAck,
    StopReason,
    SymbolLookup,
    ThreadAlive,
    ThreadId,
    ThreadsInStopReply,
    ThreadStop,
    ThreadSuffix,
    ThreadText,
    Unknown,
    VCont,
    VContQuery,
    WatchpointSupport,
    WriteMemory,
    WriteRegister,
    WriteRegisters,
    Xfer,
)


def parse(body: bytes) -> Request:
    """The request that a packet's body (escapes undone) makes; raises ProtocolError when it is malformed."""
    name = _NAME.match(body)
    key = name[0] if name else body[:1]
    form = FORMS.get(key)
    return form(body[len(key) :]) if form is not None else Unknown(body)


# Names of several letters: up to the first character that cannot belong to one. `vCont?` is not `vCont`, and
# the number of a thread is not part of qThreadStopInfo's name.
_NAME = re.compile(rb"qThreadStopInfo|vCont\?|[qQvj][A-Za-z]+")
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_THREAD_SUFFIX = re.compile(rb";thread:([^;]*);?$")
_THREAD = re.compile(rb"(?:p(-1|[0-9a-fA-F]{1,8})(?:\.|$))?(-1|[0-9a-fA-F]{1,8})?")


def _hex(text: bytes, what: str) -> int:
    if not _HEX.fullmatch(text):
        raise ProtocolError(f"{what} is {_show(text)}, expected up to 16 hexadecimal digits")
    return int(text, 16)


def _hex_bytes(text: bytes, what: str) -> bytes:
    if len(text) % 2 or not re.fullmatch(rb"[0-9a-fA-F]*", text):
        raise ProtocolError(f"{what} is {_show(text)}, expected pairs of hexadecimal digits")
    return bytes.fromhex(text.decode("ascii"))


def _text(text: bytes, what: str) -> str:
    return _hex_bytes(text, what).decode("utf-8", "surrogateescape")


def _show(text: bytes) -> str:
    return repr(text[:40].decode("latin-1")) + ("..." if len(text) > 40 else "")


def _fields(text: bytes, separator: bytes, count: int, form: str) -> list[bytes]:
    fields = text.split(separator)
    if len(fields) != count:
        raise ProtocolError(f"found {_show(text)}, expected {form}")
    return fields


def _range(text: bytes) -> tuple[int, int]:
    address, length = _fields(text, b",", 2, "ADDRESS,LENGTH")
    return _hex(address, "the address"), _hex(length, "the length")


def _thread(text: bytes) -> ThreadId:
    found = _THREAD.fullmatch(text)
    if not text or found is None:
        raise ProtocolError(f"the thread is {_show(text)}, expected pPID.TID, TID or -1")
    pid, tid = found[1], found[2]
    return ThreadId(tid=-1 if tid is None else int(tid, 16), pid=None if pid is None else int(pid, 16))


def _suffixed(text: bytes) -> tuple[bytes, ThreadId | None]:
    """Take LLDB's `;thread:ID;` off a register packet."""
    found = _THREAD_SUFFIX.search(text)
    return (text[: found.start()], _thread(found[1])) if found else (text, None)


def _supported(rest: bytes) -> Request:
    features = rest.removeprefix(b":").decode("latin-1").split(";")
    return QuerySupported(tuple(f for f in features if f))


def _read_registers(rest: bytes) -> Request:
    rest, thread = _suffixed(rest)
    if rest:
        raise ProtocolError(f"found {_show(rest)} after g, expected nothing")
    return ReadRegisters(thread)


def _write_registers(rest: bytes) -> Request:
    rest, thread = _suffixed(rest)
    if len(rest) % 2 or not re.fullmatch(rb"(?:[0-9a-fA-F]{2}|xx)*", rest):
        raise ProtocolError(f"the registers are {_show(rest)}, expected pairs of hexadecimal digits or xx")
    pairs = (rest[i : i + 2] for i in range(0, len(rest), 2))
    return WriteRegisters(tuple(None if pair == b"xx" else int(pair, 16) for pair in pairs), thread)


def _read_register(rest: bytes) -> Request:
    rest, thread = _suffixed(rest)
    return ReadRegister(_hex(rest, "the register's number"), thread)


def _write_register(rest: bytes) -> Request:
    rest, thread = _suffixed(rest)
    number, value = _fields(rest, b"=", 2, "NUMBER=VALUE")
    return WriteRegister(_hex(number, "the register's number"), _hex_bytes(value, "the value"), thread)


def _read_memory(rest: bytes, *, binary: bool) -> Request:
    address, length = _range(rest)
    return ReadMemory(address, length, binary)


def _write_memory(rest: bytes, *, binary: bool) -> Request:
    where, colon, data = rest.partition(b":")
    address, length = _range(where)
    data = data if binary else _hex_bytes(data, "the data")
    if not colon or len(data) != length:
        raise ProtocolError(f"{len(data)} bytes to write, the packet says {length}")
    if address + length > MAX_ADDRESS + 1:
        raise ProtocolError(f"{length} bytes at {address:#x} go beyond the last address")
    return WriteMemory(address, data)


def _action(text: bytes) -> Action:
    what, colon, thread = text.partition(b":")
    letter, signal = what[:1].decode("latin-1"), what[1:]
    if letter not in ("c", "C", "s", "S", "t") or bool(signal) != (letter in "CS"):
        raise ProtocolError(f"the action is {_show(text)}, expected c, s, t, C SIGNAL or S SIGNAL")
    if signal:
        _hex(signal, "the signal")
    return Action(Resume(letter.lower()), _thread(thread) if colon else None)


def _vcont(rest: bytes) -> Request:
    if not rest.startswith(b";"):
        raise ProtocolError(f"found {_show(rest)} after vCont, expected ;ACTION")
    return VCont(tuple(_action(part) for part in rest[1:].split(b";")))


def _resume(rest: bytes, *, resume: Resume, signal: bool) -> Request:
    if signal:
        number, _, rest = rest.partition(b";")
        _hex(number, "the signal")
    return VCont((Action(resume, None),), _hex(rest, "the address") if rest else None)


def _select(rest: bytes) -> Request:
    if rest[:1] not in (b"g", b"c"):
        raise ProtocolError(f"found {_show(rest)} after H, expected g or c and a thread")
    return SelectThread(rest[:1].decode("ascii"), _thread(rest[1:]))


def _xfer(rest: bytes) -> Request:
    fields = rest.removeprefix(b":").split(b":")
    if len(fields) < 4 or fields[1] != b"read":
        # Writing, and whatever a later client may invent, is not offered.
        return Unknown(b"qXfer" + rest)
    offset, length = _range(fields[-1])
    annex = b":".join(fields[2:-1]).decode("latin-1")
    return Xfer(fields[0].decode("latin-1"), annex, offset, length)


def _point(rest: bytes, *, insert: bool) -> Request:
    kind, address, length = _fields(rest, b",", 3, "TYPE,ADDRESS,KIND")
    if kind not in (b"0", b"1", b"2", b"3", b"4"):
        return Unknown((b"Z" if insert else b"z") + rest)
    form = InsertPoint if insert else RemovePoint
    return form(PointKind(int(kind)), _hex(address, "the address"), _hex(length, "the kind"))


def _detach(rest: bytes) -> Request:
    flag, _, pid = rest.partition(b";")
    if flag not in (b"", b"1"):
        raise ProtocolError(f"found {_show(rest)} after D, expected nothing, 1 or ;PID")
    if pid:
        _hex(pid, "the process")
    return Detach(stay_stopped=flag == b"1")


def _file(rest: bytes) -> Request:
    operation, _, arguments = rest.removeprefix(b":").partition(b":")
    match operation:
        case b"setfs":
            return FileSetFs(_hex(arguments, "the process"))
        case b"open":
            path, flags, mode = _fields(arguments, b",", 3, "PATH,FLAGS,MODE")
            _hex(mode, "the mode")
            return FileOpen(_text(path, "the path"), _hex(flags, "the flags"))
        case b"close":
            return FileClose(_hex(arguments, "the descriptor"))
        case b"pread":
            descriptor, count, offset = _fields(arguments, b",", 3, "DESCRIPTOR,COUNT,OFFSET")
            return FileRead(_hex(descriptor, "the descriptor"), _hex(count, "the count"), _hex(offset, "the offset"))
        case b"fstat":
            return FileStatus(_hex(arguments, "the descriptor"))
        case b"size":
            return FileSize(_text(arguments, "the path"))
        case _:
            return Unknown(b"vFile" + rest)


def _after(form: Callable[[ThreadId], Request], separator: bytes) -> Callable[[bytes], Request]:
    return lambda rest: form(_thread(rest.removeprefix(separator)))


def _plain(value: Request, *, name: str) -> Callable[[bytes], Request]:
    """A packet without arguments; what follows its name makes it another one."""
    return lambda rest: Unknown(name.encode() + rest) if rest not in (b"", b":") else value


FORMS: Mapping[bytes, Callable[[bytes], Request]] = {
    b"?": _plain(StopReason(), name="?"),
    b"g": _read_registers,
    b"G": _write_registers,
    b"p": _read_register,
    b"P": _write_register,
    b"m": lambda rest: _read_memory(rest, binary=False),
    b"x": lambda rest: _read_memory(rest, binary=True),
    b"M": lambda rest: _write_memory(rest, binary=False),
    b"X": lambda rest: _write_memory(rest, binary=True),
    b"c": lambda rest: _resume(rest, resume=Resume.CONTINUE, signal=False),
    b"C": lambda rest: _resume(rest, resume=Resume.CONTINUE, signal=True),
    b"s": lambda rest: _resume(rest, resume=Resume.STEP, signal=False),
    b"S": lambda rest: _resume(rest, resume=Resume.STEP, signal=True),
    b"H": _select,
    b"T": _after(ThreadAlive, b""),
    b"Z": lambda rest: _point(rest, insert=True),
    b"z": lambda rest: _point(rest, insert=False),
    b"D": _detach,
    b"k": lambda rest: Kill(reply=False),
    b"vKill": lambda rest: Kill(reply=True),
    b"vCont?": _plain(VContQuery(), name="vCont?"),
    b"vCont": _vcont,
    b"vFile": _file,
    b"qSupported": _supported,
    b"QStartNoAckMode": _plain(StartNoAck(), name="QStartNoAckMode"),
    b"qC": _plain(CurrentThread(), name="qC"),
    b"qfThreadInfo": lambda rest: ListThreads(first=True),
    b"qsThreadInfo": lambda rest: ListThreads(first=False),
    b"qThreadExtraInfo": _after(ThreadText, b","),
    b"qThreadStopInfo": _after(ThreadStop, b""),
    b"qAttached": lambda rest: Attached(),
    b"qXfer": _xfer,
    b"qOffsets": _plain(SectionOffsets(), name="qOffsets"),
    b"qSymbol": lambda rest: SymbolLookup(),
    b"qRcmd": lambda rest: MonitorText(_text(rest.removeprefix(b","), "the command")),
    b"qHostInfo": _plain(HostInfo(), name="qHostInfo"),
    b"qProcessInfo": _plain(ProcessInfo(), name="qProcessInfo"),
    b"qGDBServerVersion": _plain(ServerVersion(), name="qGDBServerVersion"),
    b"qWatchpointSupportInfo": _plain(WatchpointSupport(), name="qWatchpointSupportInfo"),
    b"qMemoryRegionInfo": lambda rest: MemoryRegion(_hex(rest.removeprefix(b":"), "the address")),
    b"qSupportsDetachAndStayStopped": _plain(DetachStopped(), name="qSupportsDetachAndStayStopped"),
    b"QThreadSuffixSupported": _plain(ThreadSuffix(), name="QThreadSuffixSupported"),
    b"QListThreadsInStopReply": _plain(ThreadsInStopReply(), name="QListThreadsInStopReply"),
    b"QEnableErrorStrings": _plain(ErrorStrings(), name="QEnableErrorStrings"),
}
