"""What clients can ask for, each request a frozen dataclass; `parser` makes them from packets.

GDB manual, "Packets", "General Query Packets", "Host I/O Packets"; LLDB's gdb-remote notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_ADDRESS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ThreadId:
    """A thread as packets name it: -1 means all, 0 means any; `pid` is None where no process was named."""

    tid: int
    pid: int | None = None

    def covers(self, pid: int, tid: int) -> bool:
        """Whether the thread `tid` of process `pid` is meant."""
        return self.pid in (None, -1, 0, pid) and self.tid in (-1, 0, tid)


class PointKind(Enum):
    """The digit of `Z` and `z` packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


class Resume(Enum):
    """What a `vCont` action makes of a thread."""

    CONTINUE = "c"
    STEP = "s"
    STOP = "t"


@dataclass(frozen=True, slots=True)
class Action:
    """One action of `vCont`: signals are parsed away, as a machine has none."""

    resume: Resume
    thread: ThreadId | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A packet that this server does not know."""

    body: bytes


@dataclass(frozen=True, slots=True)
class QuerySupported:
    """`qSupported`: what the client offers."""

    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartNoAck:
    """`QStartNoAckMode`."""


@dataclass(frozen=True, slots=True)
class StopReason:
    """`?`: why does the target stand still; also the question that begins a session."""


@dataclass(frozen=True, slots=True)
class ReadRegisters:
    """`g`."""

    thread: ThreadId | None = None


@dataclass(frozen=True, slots=True)
class WriteRegisters:
    """`G`: all registers as one block; None stands for a byte sent as `xx`, to be left as it is."""

    data: tuple[int | None, ...]
    thread: ThreadId | None = None


@dataclass(frozen=True, slots=True)
class ReadRegister:
    """`p`."""

    number: int
    thread: ThreadId | None = None


@dataclass(frozen=True, slots=True)
class WriteRegister:
    """`P`."""

    number: int
    value: bytes
    thread: ThreadId | None = None


@dataclass(frozen=True, slots=True)
class ReadMemory:
    """`m` (`binary` False: reply in hexadecimal) and `x`."""

    address: int
    length: int
    binary: bool = False


@dataclass(frozen=True, slots=True)
class WriteMemory:
    """`M` and `X`."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class VContQuery:
    """`vCont?`."""


@dataclass(frozen=True, slots=True)
class VCont:
    """`vCont`; also the older `c`, `C`, `s`, `S`, then with the address to go on from, if one was given."""

    actions: tuple[Action, ...]
    address: int | None = None


@dataclass(frozen=True, slots=True)
class SelectThread:
    """`H`: `operation` is `g` (data) or `c` (resuming)."""

    operation: str
    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ThreadAlive:
    """`T`."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class CurrentThread:
    """`qC`."""


@dataclass(frozen=True, slots=True)
class ListThreads:
    """`qfThreadInfo` (`first`) and `qsThreadInfo`."""

    first: bool


@dataclass(frozen=True, slots=True)
class ThreadText:
    """`qThreadExtraInfo`."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class ThreadStop:
    """`qThreadStopInfo` (LLDB)."""

    thread: ThreadId


@dataclass(frozen=True, slots=True)
class Attached:
    """`qAttached`."""


@dataclass(frozen=True, slots=True)
class Xfer:
    """`qXfer:object:read:annex:offset,length`."""

    object: str
    annex: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class InsertPoint:
    """`Z`: a breakpoint, or a watchpoint of `length` bytes."""

    kind: PointKind
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class RemovePoint:
    """`z`."""

    kind: PointKind
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Detach:
    """`D`; LLDB's `D1` leaves the target stopped."""

    stay_stopped: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """`vKill` (`reply`) and `k`, which expects no reply."""

    reply: bool


@dataclass(frozen=True, slots=True)
class FileSetFs:
    """`vFile:setfs`: whose view of the files is meant."""

    pid: int


@dataclass(frozen=True, slots=True)
class FileOpen:
    """`vFile:open`; `flags` in the protocol's own numbers."""

    path: str
    flags: int


@dataclass(frozen=True, slots=True)
class FileClose:
    """`vFile:close`."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class FileRead:
    """`vFile:pread`."""

    descriptor: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """`vFile:fstat`."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class FileSize:
    """`vFile:size` (LLDB)."""

    path: str


@dataclass(frozen=True, slots=True)
class SectionOffsets:
    """`qOffsets`."""


@dataclass(frozen=True, slots=True)
class SymbolLookup:
    """`qSymbol`: the client offers to look symbols up."""


@dataclass(frozen=True, slots=True)
class MonitorText:
    """`qRcmd`: the text after GDB's `monitor`."""

    text: str


@dataclass(frozen=True, slots=True)
class HostInfo:
    """`qHostInfo` (LLDB)."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """`qProcessInfo` (LLDB)."""


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """`qGDBServerVersion` (LLDB)."""


@dataclass(frozen=True, slots=True)
class WatchpointSupport:
    """`qWatchpointSupportInfo` (LLDB)."""


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """`qMemoryRegionInfo` (LLDB): what is mapped around an address."""

    address: int


@dataclass(frozen=True, slots=True)
class ThreadSuffix:
    """`QThreadSuffixSupported` (LLDB): `;thread:ID;` will follow register packets."""


@dataclass(frozen=True, slots=True)
class ThreadsInStopReply:
    """`QListThreadsInStopReply` (LLDB)."""


@dataclass(frozen=True, slots=True)
class ErrorStrings:
    """`QEnableErrorStrings` (LLDB): errors may carry text."""


@dataclass(frozen=True, slots=True)
class DetachStopped:
    """`qSupportsDetachAndStayStopped` (LLDB)."""


Request = (
    Unknown | QuerySupported | StartNoAck | StopReason | ReadRegisters | WriteRegisters | ReadRegister
    | WriteRegister | ReadMemory | WriteMemory | VContQuery | VCont | SelectThread | ThreadAlive
    | CurrentThread | ListThreads | ThreadText | ThreadStop | Attached | Xfer | InsertPoint | RemovePoint
    | Detach | Kill | FileSetFs | FileOpen | FileClose | FileRead | FileStatus | FileSize | SectionOffsets
    | SymbolLookup | MonitorText | HostInfo | ProcessInfo | ServerVersion | WatchpointSupport | MemoryRegion
    | ThreadSuffix | ThreadsInStopReply | ErrorStrings | DetachStopped
)  # fmt: skip
