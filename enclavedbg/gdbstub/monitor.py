"""Commands behind GDB's `monitor`: one table, filled by the owner of the machine, and `help` made from it."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from enclavedbg.errors import ProtocolError
from enclavedbg.gdbstub.registers import REGISTERS
from enclavedbg.gdbstub.target import DebugTarget
from enclavedbg.gdbstub.targetxml import FLAGS
from enclavedbg.machine.cpu.state import CpuState


@dataclass(frozen=True, slots=True)
class MonitorCommand:
    """A command: `run` gets the words after its name and returns the text to show, or an awaitable of it.

    `details` is what `monitor help NAME` says. It runs on the event loop's thread; errors for the person are raised as
    EnclaveDbgError.
    """

    name: str
    summary: str
    run: Callable[[list[str]], str | Awaitable[str]]
    details: str = ""


class MonitorTable:
    """The commands by name; any beginning that fits only one of them will do."""

    def __init__(self, target: DebugTarget, commands: Iterable[MonitorCommand] = ()) -> None:
        own = (
            MonitorCommand("help", "this list, or what is said of one command", self._help),
            MonitorCommand("registers", "all system registers, in words", lambda words: show_registers(target.state())),
        )
        self._commands = {command.name: command for command in (*own, *commands)}

    def help(self) -> str:
        """One line for each command."""
        width = max(map(len, self._commands))
        return "".join(f"{c.name:{width}}  {c.summary}\n" for c in sorted(self._commands.values(), key=_name))

    def _help(self, words: list[str]) -> str:
        if not words:
            return self.help()
        command = self._find(words[0])
        return command.details or f"{command.name}  {command.summary}\n"

    def run(self, text: str) -> str | Awaitable[str]:
        """Run a line as typed after `monitor`; ProtocolError when it names no command."""
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ProtocolError(f"cannot read {text!r}: {error}") from None
        if not words:
            return self.help()
        return self._find(words[0]).run(words[1:])

    def _find(self, word: str) -> MonitorCommand:
        if (exact := self._commands.get(word)) is not None:
            return exact
        fitting = sorted((c for c in self._commands.values() if c.name.startswith(word)), key=_name)
        match fitting:
            case [command]:
                return command
            case []:
                raise ProtocolError(f"there is no command {word!r}; `monitor help` lists all")
            case _:
                raise ProtocolError(f"{word!r} could be {', '.join(c.name for c in fitting)}")


def _name(command: MonitorCommand) -> str:
    return command.name


def show_registers(state: CpuState) -> str:
    """The tidy view of a CPU: general registers in columns, then segments, control and model registers in words."""
    by_name = {register.name: register for register in REGISTERS}
    lines = []
    names = [*state.regs, "rip"]
    for row in range(0, len(names), 3):
        lines.append("  ".join(f"{n:3} {by_name[n].read(state):016x}" for n in names[row : row + 3]))
    for name in ("eflags", "cr0", "cr4", "efer"):
        register = by_name[name]
        lines.append(
            f"{name:6} {register.read(state):#x} [{' '.join(flag_names(register.type, register.read(state)))}]"
        )
    lines.append(f"cr2    {state.cr2:#x}  cr3 {state.cr3:#x}  cr8 {state.cr8:#x}")
    for name, segment in (*state.segments.items(), ("tr", state.tr), ("ldtr", state.ldtr)):
        lines.append(
            f"{name:4} {segment.selector:04x}  base {segment.base:016x}  limit {segment.limit:08x}"
            f"  attributes {segment.attributes:04x}"
        )
    for name, table in (("gdtr", state.gdtr), ("idtr", state.idtr)):
        lines.append(f"{name:10} base {table.base:016x}  limit {table.limit:08x}")
    m = state.msrs
    lines.append(f"kernel_gs_base {m.kernel_gs_base:#x}  lstar {m.lstar:#x}  star {m.star:#x}  sfmask {m.sfmask:#x}")
    lines.append(f"privilege level {state.cpl}, {'halted' if state.halted else 'not halted'}")
    return "\n".join(lines) + "\n"


def flag_names(kind: str, value: int) -> list[str]:
    """The names of the bits set in a value of a target.xml flags type; `NAME=n` for fields of several bits."""
    names = []
    for name, low, high in FLAGS[kind][2]:
        content = value >> low & (1 << (high - low + 1)) - 1
        if content and name:
            names.append(name if low == high else f"{name}={content:#x}")
    return names
