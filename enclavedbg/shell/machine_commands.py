"""Commands about the processor: stop and go, registers, memory, code, stack, breakpoints, symbols."""

from __future__ import annotations

import re
from typing import Any

from enclavedbg.errors import GuestFault, SymbolError
from enclavedbg.machine.cpu.state import CpuState
from enclavedbg.shell.session import Session, register_value
from enclavedbg.shell.table import CommandError, CommandTable
from enclavedbg.shell.text import Text, hexdump, joined, lines

MEMORY_LIMIT = 1 << 16
"""Bytes that one `mem` shows at most."""

LONGEST_INSTRUCTION = 15

STEPPED = "stepped"
"""The reason of a stop behind a step."""

MAX_STEPS = 10_000

USER = "user program"
EARLY = "kernel code, before its own page tables"
_TARGET = re.compile(r"^0x[0-9a-f]+$")

COMMANDS = CommandTable()


@COMMANDS.add("stop", "interrupt", monitor=False)
async def stop(session: Session, words: list[str]) -> Text:
    """Stop the machine; guest time stands still."""
    session.require_alive()
    if await session.interrupt() is None:
        return [("", "It is stopped already:\n"), *await where(session)]
    return await where(session)


@COMMANDS.add("continue", "c", "cont", monitor=False)
async def resume(session: Session, words: list[str]) -> Text:
    """Let the machine run on."""
    session.require_control()
    if session.target.running:
        return lines("It is running.")
    session.target.resume()
    return []


@COMMANDS.add("step", "s", "si", usage="[N]", monitor=False, repeats=True)
async def step(session: Session, words: list[str]) -> Text:
    """Execute one instruction, or N; Enter repeats it.

    N is at most 10,000. It ends before when something else stops the machine, such as a breakpoint.
    """
    session.require_control()
    count = number(words[0], "a count") if words else 1
    if not 1 <= count <= MAX_STEPS:
        raise CommandError(f"{count} steps; expected 1 to {MAX_STEPS} (a breakpoint goes further)")
    if session.target.running:
        raise CommandError("the machine is running; stop it first")
    before = session.target.state()
    text: Text = []
    session.hushed = True
    try:
        for _ in range(count):
            stop = await session.step()
            if stop.reason != STEPPED:
                text = lines(f"stop: {stop.summary()}", "value")
                break
    finally:
        session.hushed = False
    text += await where(session)
    after = session.target.state()
    if before.halted and after.halted and before.rip == after.rip:
        text += lines("The CPU waits in HLT for an interrupt, and steps hold those back; continue instead.", "warn")
    return text


@COMMANDS.add("regs", "registers", usage="[all]", completes="all")
async def regs(session: Session, words: list[str]) -> Text:
    """Show the general registers, or the system's too.

    `regs all` adds segments, control and model registers, with their bits in words.
    """
    state = session.target.state()
    if words == ["all"]:
        from enclavedbg.gdbstub.monitor import show_registers

        return lines(show_registers(state))
    if words:
        raise CommandError("expected: regs [all]")
    rows: list[Text] = []
    names = list(state.regs)
    for row in range(0, len(names), 3):  # 69 columns
        line: Text = []
        for name in names[row : row + 3]:
            line += [("name", f"{name:>4} "), ("", f"{state.regs[name]:016x}  ")]
        rows.append(line)
    rows.append([("name", " rip "), ("", f"{state.rip:016x}  "), ("code", await session.describe(state.rip))])
    rows.append(
        [("name", " rfl "), ("", f"{state.rflags:016x}  "), ("name", f"cr3 {state.cr3:x}  "), ("", privilege(state))]
    )
    return joined(rows)


@COMMANDS.add("mem", "x", usage="[p:]ADDRESS [LENGTH]", completes="address")
async def mem(session: Session, words: list[str]) -> Text:
    """Show memory at an address: 128 bytes, or LENGTH.

    The address is virtual, as the CPU sees it now; p:ADDRESS is guest physical. An address is a number, a symbol
    or a register, added or subtracted: mem linux_banner 64; mem $rsp+0x20; mem p:0x100000
    """
    if not 1 <= len(words) <= 2:
        raise CommandError("expected: mem [p:]ADDRESS [LENGTH], e.g. mem linux_banner 128")
    length = number(words[1], "a length in bytes") if len(words) == 2 else 128
    if not 0 < length <= MEMORY_LIMIT:
        raise CommandError(f"a length of {length} bytes: expected 1 to {MEMORY_LIMIT}")
    physical = words[0].startswith("p:")
    address = await session.address(words[0].removeprefix("p:"))
    read = session.target.read_physical if physical else session.target.read_virtual
    data = read(address, length)
    text = hexdump(address, data)
    if len(data) < length:
        text += lines(f"{address + len(data):016x}  nothing is mapped here", "warn")
    return text


@COMMANDS.add("dis", "disassemble", usage="[ADDRESS] [N]", completes="address")
async def dis(session: Session, words: list[str]) -> Text:
    """Disassemble: 10 instructions from the next, or N.

    For example: dis; dis do_exit 20; dis $rip-8
    """
    if len(words) > 2:
        raise CommandError("expected: dis [ADDRESS] [N], e.g. dis do_exit 20")
    state = session.target.state()
    address = await session.address(words[0]) if words else state.rip
    count = number(words[1], "a count") if len(words) == 2 else 10
    return await disassembly(session, state, address, max(1, min(count, 1000)))


@COMMANDS.add("bt", "backtrace", "where")
async def bt(session: Session, words: list[str]) -> Text:
    """Show the kernel's call chain."""
    trace = await session.backtrace()
    foreign = EARLY if session.target.state().cpl == 0 else USER
    rows: list[Text] = []
    for level, frame in enumerate(trace.frames):
        name = frame.symbol or ((USER if level else foreign) if frame.user else "?")
        if frame.offset:
            name += f"+{frame.offset:#x}"
        rows.append([("dim", f"#{level:<3}"), ("", f"{frame.ip:016x}  "), ("code", name)])
        if frame.interrupted and level:
            rows[-1].append(("dim", "  interrupted here"))
    rows.append([("dim", f"({trace.end})")])
    return joined(rows)


@COMMANDS.add("break", "b", usage="[ADDRESS]", completes="address")
async def break_(session: Session, words: list[str]) -> Text:
    """Stop at an address, or list the breakpoints.

    The machine may be running. For example: break __x64_sys_connect; break do_exit+4
    """
    if not words:
        if not session.breakpoints:
            return lines("There are no breakpoints.")
        return joined(
            [("name", f"{point.number:3}  "), ("", f"{point.address:016x}  "), ("code", point.text)]
            for point in session.breakpoints.values()
        )
    session.require_alive()
    text = "".join(words)
    address = await session.address(text)
    name = await session.describe(address)
    point = await session.while_stopped(lambda: session.add_breakpoint(address, name))
    return lines(f"Breakpoint {point.number} at {address:#x} ({point.text})")


@COMMANDS.add("delete", "d", usage="[NUMBER]")
async def delete(session: Session, words: list[str]) -> Text:
    """Take away a breakpoint or catchpoint, or all."""
    caught = session.enclave.catchpoints
    numbers = [number(word, "a breakpoint's number") for word in words]
    there = [*session.breakpoints, *(n for n, _ in caught.listing())]
    numbers = numbers or there
    if not numbers:
        return lines("There are no breakpoints.")
    if missing := [str(n) for n in numbers if n not in there]:
        raise CommandError(f"there is no breakpoint {', '.join(missing)}; `break` and `catch` list them")
    removed = {n: caught.remove(n) for n in numbers}
    gone = [f"Catchpoint {n} ({point}) is gone" for n, point in removed.items() if point is not None]
    others = [n for n, point in removed.items() if point is None]
    if others:
        points = await session.while_stopped(lambda: [session.remove_breakpoint(n) for n in others])
        gone += [f"Breakpoint {point.number} ({point.text}) is gone" for point in points]
    return lines("\n".join(gone))


@COMMANDS.add("sym", "symbol", usage="NAME|ADDRESS", completes="address")
async def sym(session: Session, words: list[str]) -> Text:
    """Find symbols by name, or what is at an address.

    The beginning of a name is enough, for example: sym vsock_; an address may be a register: sym $rip
    """
    if len(words) != 1:
        raise CommandError("expected: sym NAME or sym ADDRESS")
    symbols = await session.symbols()
    word = words[0]
    if word.startswith("$") or word[:1].isdigit():
        address = await session.address(word)
        return lines(f"{address:#x} is {symbols.describe(address)}")
    rows: list[Text] = []
    for name in symbols.complete(word, limit=30):
        symbol = symbols.symbol(name)
        assert symbol is not None
        rows.append([("", f"{symbol.address:016x} "), ("dim", f"{symbol.type} {symbol.size:6}  "), ("code", name)])
    return joined(rows) if rows else lines(f"No symbol begins with {word!r}.")


def number(word: str, what: str) -> int:
    """A number that a person typed, decimal or 0x...; raises CommandError."""
    try:
        value = int(word, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise CommandError(f"{word!r} is not {what}")
    return value


def privilege(state: CpuState) -> str:
    """Where the CPU is, in words."""
    return {0: "kernel", 3: USER}.get(state.cpl, f"ring {state.cpl}") + (", halted" if state.halted else "")


async def where(session: Session) -> Text:
    """The next instruction: address, symbol, disassembly."""
    state = session.target.state()
    return await disassembly(session, state, state.rip, 1)


async def disassembly(session: Session, state: CpuState, address: int, count: int) -> Text:
    """`count` instructions from an address, branch targets named."""
    import capstone

    mode = capstone.CS_MODE_64 if state.segments["cs"].long_mode_code else capstone.CS_MODE_32
    machine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    try:
        code = session.target.read_virtual(address, count * LONGEST_INSTRUCTION)
    except GuestFault:
        return [("", f"{address:016x}  "), ("warn", "nothing is mapped here\n")]
    try:
        symbols = await session.symbols()
    except SymbolError:
        symbols = None
    rows: list[Text] = []
    last = ""
    at = address
    for instruction in machine.disasm(code, address, count):
        found = symbols.lookup(instruction.address) if symbols else None
        if found and found[0] != last:
            last = found[0]
            rows.append([("code", f"{symbols.describe(instruction.address) if symbols else ''}:")])
        rows.append(_instruction(instruction, symbols, state.rip))
        at = instruction.address + instruction.size
    if not rows or (len(rows) < count and at < address + len(code) - LONGEST_INSTRUCTION):
        rows.append([("", f"   {at:016x}  "), ("warn", f"no instruction: {code[at - address :][:8].hex(' ')}")])
    return joined(rows)


def _instruction(instruction: Any, symbols: Any, rip: int) -> Text:
    mark = "=> " if instruction.address == rip else "   "
    line: Text = [
        ("value" if mark.strip() else "", f"{mark}{instruction.address:016x}  "),
        ("", f"{instruction.mnemonic} {instruction.op_str}".rstrip()),
    ]
    if symbols is not None and _TARGET.match(instruction.op_str):
        target = int(instruction.op_str, 16)
        if symbols.lookup(target) is not None:
            line.append(("code", f"  {symbols.describe(target)}"))
    return line


__all__ = ["COMMANDS", "disassembly", "number", "privilege", "register_value", "where"]
