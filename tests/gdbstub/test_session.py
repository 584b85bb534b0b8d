"""Sessions packet by packet: what clients send when they connect, look, run, stop and leave."""

from __future__ import annotations

import asyncio
import re
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclavedbg.errors import MachineError, SymbolError
from enclavedbg.gdbstub import registers
from enclavedbg.gdbstub.client import Dialect
from enclavedbg.gdbstub.early import LinkedSegment, LinkMap
from enclavedbg.gdbstub.files import KERNEL_PATH
from enclavedbg.gdbstub.framing import PACKET_SIZE, encode
from enclavedbg.gdbstub.monitor import MonitorCommand
from enclavedbg.gdbstub.parser import FORMS
from enclavedbg.gdbstub.session import State
from enclavedbg.gdbstub.targetxml import TARGET_XML
from enclavedbg.machine.cpu.engine import (
    Caught,
    Interrupted,
    StepDone,
    TripleFault,
    WatchKind,
    Watchpoint,
    WatchpointHit,
)
from tests.gdbstub.fake import CODE, DATA, PAGE, TEXT, FakeMachine, FakeVerdict
from tests.gdbstub.talk import GDB_13, GDB_16, LLDB, Talk, gdb, lldb

SYMBOLS = bytes(range(256)) * 1000


async def symbols() -> bytes:
    return SYMBOLS


# ---- connecting, as captured from real clients


@pytest.mark.parametrize("hello", [GDB_13, GDB_16])
def test_gdb_connects(hello: str) -> None:
    talk = Talk(symbols=symbols)
    offered = talk.ask(hello).decode().split(";")
    assert {"PacketSize=20000", "QStartNoAckMode+", "multiprocess+", "vContSupported+", "swbreak+", "hwbreak+",
            "qXfer:features:read+", "qXfer:threads:read+", "qXfer:exec-file:read+",
            "qXfer:libraries-svr4:read+", "binary-upload+"} == set(offered)  # fmt: skip
    assert talk.session.client.dialect is Dialect.GDB
    assert talk.ask("vMustReplyEmpty") == b""
    assert talk.ask("QStartNoAckMode") == b"OK"
    assert talk.ask("Hgp0.0") == b"OK"
    document = b""
    while True:
        piece = talk.ask(f"qXfer:features:read:target.xml:{len(document):x},1000")
        document += piece[1:]
        if piece[:1] == b"l":
            break
    assert document.decode() == TARGET_XML
    assert talk.ask("qTStatus") == b""
    assert talk.ask("?") == (
        f"T05thread:p1.1;06:{'66' * 8};07:0008008 2ffffffff;10:00000081ffffffff;".replace(" ", "").encode()
    )
    assert talk.ask("qXfer:threads:read::0,1000") == (
        b'l<threads><thread id="p1.1" core="0" name="vcpu0">kernel</thread></threads>'
    )
    assert talk.ask("qAttached:1") == b"1"
    assert talk.ask("Hc-1") == b"OK"
    assert talk.ask("qOffsets") == b"Text=0;Data=0;Bss=0"
    assert len(talk.ask("g")) == 2 * registers.BLOCK_SIZE
    assert talk.ask("qXfer:libraries-svr4:read::0,1000") == b'l<library-list-svr4 version="1.0"/>'
    assert talk.ask("qSymbol::") == b"OK"
    assert talk.ask("vCont?") == b"vCont;c;C;s;S;t"
    assert bytes.fromhex(talk.ask(f"m{TEXT:x},7").decode()) == CODE


def test_lldb_connects() -> None:
    talk = Talk()
    assert talk.ask("QStartNoAckMode") == b"OK"
    assert talk.session.client.dialect is Dialect.LLDB
    offered = talk.ask(LLDB).decode().split(";")
    assert "multiprocess+" in offered and "QThreadSuffixSupported+" in offered
    assert "swbreak+" not in offered and "binary-upload+" not in offered
    for packet in ("QThreadSuffixSupported", "QListThreadsInStopReply", "QEnableErrorStrings"):
        assert talk.ask(packet) == b"OK"
    triple = b"x86_64-unknown-linux-gnu".hex().encode()
    assert b"triple:" + triple in talk.ask("qHostInfo")
    assert b"pid:1;triple:" + triple in talk.ask("qProcessInfo")
    assert talk.ask("qVAttachOrWaitSupported") == b""
    stop = talk.ask("?").decode()
    assert "threads:p1.1;" in stop and "thread-pcs:ffffffff81000000;" in stop
    assert talk.ask("qC") == b"QCp1.1"
    assert talk.ask("qfThreadInfo") == b"mp1.1"
    assert talk.ask("qsThreadInfo") == b"l"
    assert talk.ask("p0;thread:0001;") == b"00" * 8
    assert talk.ask("p10;thread:p1.1;") == TEXT.to_bytes(8, "little").hex().encode()
    assert talk.ask("x0,0") == b"OK"
    assert talk.ask(f"x{TEXT:x},7") == CODE
    assert talk.ask("jThreadsInfo") == b""
    assert talk.ask("_M1000,rwx") == b""
    assert talk.ask(f"qMemoryRegionInfo:{TEXT:x}") == b"start:ffffffff81000000;size:1000;permissions:rx;"
    assert talk.ask(f"qMemoryRegionInfo:{DATA + 8:x}") == b"start:ffffffff82000000;size:2000;permissions:rw;"
    assert talk.ask("m10,8") == b"E14;" + b"0x10 is not mapped: PTE is 0x0".hex().encode()


def test_features_are_announced_because_handlers_exist() -> None:
    talk = gdb()
    assert b"exec-file" not in talk.ask(GDB_13)
    assert talk.ask("qXfer:exec-file:read:1:0,1000") == b""
    assert talk.ask("qXfer:auxv:read::0,1000") == b""


def test_without_multiprocess_threads_are_plain_numbers() -> None:
    talk = Talk()
    talk.ask("qSupported:swbreak+")
    assert talk.ask("qC") == b"QC1"
    assert talk.ask("qfThreadInfo") == b"m1"


# ---- framing as the session sees it


def test_packets_are_acknowledged_until_told_otherwise() -> None:
    talk = Talk()
    talk.session.feed(encode(b"qC"))
    assert talk.raw == b"+" + encode(b"QC1")
    talk.raw.clear()
    talk.session.feed(encode(b"QStartNoAckMode"))
    assert talk.raw == b"+" + encode(b"OK")
    talk.raw.clear()
    talk.session.feed(b"+" + encode(b"qC"))
    assert talk.raw == encode(b"QC1")


def test_a_reply_is_sent_again_when_the_client_missed_it() -> None:
    talk = Talk()
    talk.session.feed(encode(b"qC"))
    talk.raw.clear()
    talk.session.feed(b"-")
    assert talk.raw == encode(b"QC1")
    talk.raw.clear()
    talk.session.feed(b"+-")
    assert talk.raw == b""


def test_a_damaged_packet_is_asked_for_again_or_dropped() -> None:
    talk = Talk()
    talk.session.feed(b"$qC#00")
    assert talk.raw == b"-"
    talk = gdb()
    talk.session.feed(b"$qC#00")
    assert talk.raw == b""


def test_an_unknown_packet_gets_the_empty_reply() -> None:
    talk = gdb()
    for packet in ("vUnknown", "QUnknown:1", "_", "!", "R00", "bs", "vFile:unlink:2f"):
        assert talk.ask(packet) == b"", packet


# ---- registers and memory


def test_registers_are_written() -> None:
    talk = gdb()
    assert talk.ask("P0=0102030405060708") == b"OK"
    assert talk.machine.cpu.regs["rax"] == 0x0807060504030201
    block = talk.ask("g")
    before = talk.machine.cpu
    assert talk.ask(b"G" + block) == b"OK"
    assert talk.machine.cpu == before


def test_impossible_registers_are_refused() -> None:
    talk = gdb(hello=GDB_16)
    reply = talk.ask(f"P{registers.NUMBERS['cr0']:x}=0000008000000000")
    assert reply.startswith(b"E.cr0 has PG without PE")
    assert talk.ask("p1000").startswith(b"E.there is no register 4096")
    assert gdb().ask("p1000") == b"E22"


def test_memory_is_read_as_far_as_it_is_mapped() -> None:
    talk = gdb()
    assert talk.ask(f"m{DATA + 2 * PAGE - 4:x},10") == b"00000000"
    assert talk.ask(f"x{TEXT:x},4") == b"b" + CODE[:4]
    assert talk.ask("m10,4") == b"E14"
    assert talk.ask("mffffffffffffffff,10") == b"E14"
    assert gdb(hello=GDB_16).ask("m10,4") == b"E.0x10 is not mapped: PTE is 0x0"


def test_a_read_never_exceeds_the_packet_size() -> None:
    talk = gdb()
    talk.machine.pages |= {page: bytearray(PAGE) for page in range(0x400_0000, 0x410_0000, PAGE)}
    reply = talk.ask("mffffffff84000000,ffffffff")
    assert len(reply) == PACKET_SIZE


def test_memory_is_written_in_both_forms() -> None:
    talk = gdb()
    assert talk.ask(f"X{DATA:x},0:") == b"OK"
    assert talk.ask(f"X{DATA:x},4:".encode() + b"}#$*") == b"OK"
    assert talk.ask(f"M{DATA + 4:x},2:beef") == b"OK"
    assert talk.ask(f"m{DATA:x},6") == b"7d23242abeef"
    assert talk.ask("M10,1:00") == b"E14"


def test_the_kernel_can_be_read_before_it_has_mapped_itself() -> None:
    machine = FakeMachine()
    machine.kernel_mapped = False
    assert gdb(Talk(machine)).ask(f"m{TEXT:x},2") == b"E14"
    talk = gdb(Talk(machine, link_map=LinkMap((LinkedSegment(TEXT, 0x100_0000, PAGE),))))
    assert talk.ask(f"m{TEXT:x},7") == CODE.hex().encode()
    assert talk.ask(f"m{TEXT + PAGE - 2:x},7") == b"9090"
    assert talk.ask(f"m{TEXT + PAGE:x},1") == b"E14"
    assert talk.ask(f"M{TEXT:x},1:cc") == b"OK"
    assert machine.pages[0x100_0000][0] == 0xCC
    assert talk.ask(f"Z0,{TEXT:x},1") == b"OK"


# ---- running and stopping


def test_a_running_machine_is_stopped_when_a_client_asks_for_it() -> None:
    machine = FakeMachine()
    machine.resume()
    talk = Talk(machine)
    talk.ask(GDB_13)
    assert talk.send("?") == []
    assert talk.send("qAttached:1") == []
    machine.advance()
    stop, attached = talk.take()
    assert stop.startswith(b"T05thread:p1.1;") and attached == b"1"


def test_step_and_continue_to_a_breakpoint() -> None:
    talk = gdb()
    (stop,) = talk.resume("vCont;s:p1.1;c:p1.-1")
    assert stop.startswith(b"T05") and b"10:01000081ffffffff;" in stop and b"break" not in stop
    assert talk.ask(f"Z0,{TEXT + 4:x},1") == b"OK"
    (stop,) = talk.resume()
    assert stop.startswith(b"T05") and stop.endswith(b"swbreak:;")
    assert talk.ask(f"z0,{TEXT + 4:x},1") == b"OK"
    assert talk.machine.breakpoints == set()


def test_older_ways_to_resume() -> None:
    talk = gdb()
    (stop,) = talk.resume(f"s{TEXT + 1:x}")
    assert b"10:02000081ffffffff;" in stop
    talk.ask(f"Z1,{TEXT + 1:x},1")
    (stop,) = talk.resume("C05")
    assert stop.endswith(b"hwbreak:;")


def test_software_and_hardware_breakpoints_at_one_address() -> None:
    talk = gdb()
    for packet in (f"Z0,{TEXT:x},1", f"Z0,{TEXT:x},1", f"Z1,{TEXT:x},1", f"z0,{TEXT:x},1"):
        assert talk.ask(packet) == b"OK"
    assert talk.machine.breakpoints == {(TEXT, "gdb")}
    assert talk.ask(f"z1,{TEXT:x},1") == b"OK"
    assert talk.ask(f"z1,{TEXT:x},1") == b"OK"
    assert talk.machine.breakpoints == set()


def test_a_breakpoint_of_someone_else_is_a_plain_stop() -> None:
    talk = gdb()
    talk.machine.add_breakpoint(TEXT + 1, owner="shell")
    (stop,) = talk.resume()
    assert stop.startswith(b"T05") and b"break" not in stop


@pytest.mark.parametrize(
    ("kind", "watch", "key"),
    [(2, WatchKind.WRITE, b"watch"), (3, WatchKind.READ, b"rwatch"), (4, WatchKind.ACCESS, b"awatch")],
)
def test_watchpoints_say_what_was_touched(kind: int, watch: WatchKind, key: bytes) -> None:
    talk = gdb()
    assert talk.ask(f"Z{kind},{DATA:x},8") == b"OK"
    assert {w for w, _ in talk.machine.watchpoints} == {Watchpoint(DATA, 8, watch)}
    (stop,) = talk.resume()
    assert stop.endswith(b";%s:%x;" % (key, DATA))
    assert talk.ask(f"z{kind},{DATA:x},8") == b"OK"
    assert talk.machine.watchpoints == set()


def test_a_catchpoint_is_named_whatever_else_stopped_the_machine() -> None:
    talk = gdb()
    talk.session.feed(encode(b"vCont;c"))
    talk.machine.caught = Caught("catchpoint 1: LockPCR")
    talk.machine.stop_with(Caught("catchpoint 1: LockPCR"))
    text, stop = talk.take()
    assert bytes.fromhex(text[1:].decode()) == b"enclavedbg: catchpoint 1: LockPCR\n"
    assert stop.startswith(b"T05")
    talk.session.feed(encode(b"vCont;c"))
    talk.machine.stop_with(WatchpointHit(Watchpoint(DATA, 8, WatchKind.WRITE), DATA))
    assert len(talk.take()) == 2, "beside a watchpoint too"


def test_impossible_watchpoints_are_refused() -> None:
    talk = gdb()
    for packet in ("Z2,10,0", "Z2,ffffffffffffffff,2"):
        assert talk.ask(packet) == b"E22"


def test_lldb_is_told_reasons() -> None:
    talk = lldb()
    (stop,) = talk.resume("vCont;s:0001")
    assert b"reason:trace;" in stop
    talk.ask(f"Z0,{TEXT + 4:x},1")
    (stop,) = talk.resume("vCont;c")
    assert b"reason:breakpoint;" in stop


def test_only_an_interrupt_is_heard_while_the_machine_runs() -> None:
    talk = gdb()
    talk.session.feed(encode(b"vCont;c") + encode(b"qC") + b"\x03")
    assert talk.session.state is State.RUNNING and talk.raw == b""
    talk.machine.advance()
    stop, current = talk.take()
    assert stop.startswith(b"T02") and current == b"QCp1.1"


def test_an_interrupt_of_a_stopped_machine_is_nothing() -> None:
    talk = gdb()
    talk.session.feed(b"\x03")
    assert talk.raw == b"" and not talk.machine._interrupt.is_set()


def test_a_stop_that_is_over_is_no_news() -> None:
    talk = gdb()
    assert talk.send("vCont;c") == []
    talk.session.machine_stopped()
    assert talk.raw == b""


def test_actions_for_other_threads_run_nothing() -> None:
    talk = gdb()
    assert talk.ask("vCont;c:p1.2") == b"E22"
    assert talk.ask("Hgp2.1") == b"E22"
    assert talk.ask("Tp1.1") == b"OK"
    assert talk.ask("Tp1.7") == b"E22"


def test_a_machine_that_someone_else_resumed_gives_errors_not_a_stop() -> None:
    talk = gdb(hello=GDB_16)
    talk.machine.resume()
    assert talk.ask("g") == b"E.the enclave is running; stop it first"
    assert talk.send("vCont;c") == []
    talk.machine.interrupt()
    talk.machine.advance()
    assert talk.take()[0].startswith(b"T02")


def test_too_many_packets_while_running_end_the_session() -> None:
    talk = gdb()
    talk.send("vCont;c")
    talk.session.feed(encode(b"qC") * 300)
    assert talk.hung_up


# ---- the end of the guest


def test_the_end_is_shown_before_the_session_ends() -> None:
    talk = gdb()
    talk.machine.pages[0x100_0000][1] = 0xF4
    words, stop = talk.resume()
    assert "interrupts off" in talk.console([words]) and stop.startswith(b"T05")
    assert len(talk.ask("g")) == 2 * registers.BLOCK_SIZE
    assert talk.send("vCont;c") == [b"W0c;process:1"]
    talk.machine.advance()
    assert talk.machine.ended
    assert talk.take() == []


def test_an_end_does_not_look_like_ctrl_c() -> None:
    talk = gdb()
    talk.send("vCont;c")
    talk.machine.stop_with(Interrupted(), FakeVerdict("kernel panic: no init", 10))
    words, stop = talk.take()
    assert "kernel panic" in talk.console([words]) and stop.startswith(b"T05")


def test_an_end_from_outside_ends_the_session_with_its_reason() -> None:
    talk = gdb()
    talk.send("vCont;c")
    talk.machine.verdict = FakeVerdict("still running after 5 s", 13)
    talk.machine.advance()
    words, end = talk.take()
    assert "still running after 5 s" in talk.console([words]) and end == b"W0d;process:1"


def test_a_machine_that_has_ended_before_says_so_when_resumed() -> None:
    machine = FakeMachine()
    machine.verdict, machine.ended = FakeVerdict("kernel panic: no init", 10), True
    talk = gdb(Talk(machine))
    words, end = talk.send("vCont;c")
    assert "kernel panic" in talk.console([words]) and end == b"W0a;process:1"
    assert talk.send("vCont;c") == [b"W0a;process:1"]


def test_an_end_held_for_someone_before_is_told_to_the_next() -> None:
    talk = gdb()
    talk.machine.stop_with(TripleFault(), FakeVerdict("triple fault", 11))
    assert talk.send("vCont;c") == []
    talk.machine.advance()
    words, end = talk.take()
    assert "triple fault" in talk.console([words]) and end == b"W0b;process:1"


def test_a_client_that_comes_while_the_machine_ends_is_answered() -> None:
    machine = FakeMachine()
    machine.resume()
    talk = Talk(machine)
    talk.ask(GDB_13)
    assert talk.send("?") == []
    machine.verdict = FakeVerdict("time is up", 13)
    machine.advance()
    assert talk.take()[0].startswith(b"T05")


def test_detaching_from_a_held_end_lets_it_end() -> None:
    talk = gdb()
    talk.send("vCont;c")
    talk.machine.stop_with(TripleFault(), FakeVerdict("triple fault", 11))
    assert len(talk.take()) == 2
    assert talk.ask("D;1") == b"OK" and talk.hung_up
    assert talk.machine.running


def test_detach_resumes_without_breakpoints() -> None:
    talk = gdb()
    talk.ask(f"Z0,{TEXT:x},1")
    assert talk.ask("D;1") == b"OK"
    assert talk.hung_up and talk.machine.running and talk.machine.breakpoints == set()


def test_lldb_may_detach_and_leave_it_stopped() -> None:
    talk = lldb()
    assert talk.ask("qSupportsDetachAndStayStopped:") == b"OK"
    assert talk.ask("D1") == b"OK"
    assert talk.hung_up and not talk.machine.running


def test_kill_ends_the_guest_where_that_is_possible() -> None:
    assert gdb().ask("vKill;1") == b"E01"
    ended: list[bool] = []
    talk = gdb(Talk(end_guest=lambda: ended.append(True)))
    assert talk.ask("vKill;1") == b"OK"
    assert ended == [True] and talk.hung_up
    talk = gdb(Talk(end_guest=lambda: ended.append(True)))
    assert talk.send("k") == []
    assert ended == [True, True] and talk.hung_up


# ---- the symbol file


def test_the_symbol_file_is_read_as_gdb_does() -> None:
    async def session() -> None:
        talk = gdb(Talk(symbols=symbols))
        assert await talk.ask_later("qXfer:exec-file:read:1:0,1000") == b"l" + KERNEL_PATH.encode()
        assert talk.ask("vFile:setfs:0") == b"F0"
        assert talk.ask(f"vFile:open:{b'just probing'.hex()},0,1c0") == b"F-1,2"
        assert talk.ask("vFile:setfs:1") == b"F0"
        path = KERNEL_PATH.encode().hex()
        assert await talk.ask_later(f"vFile:open:{path},0,0") == b"F0"
        assert talk.ask(f"vFile:open:{path},1,0") == b"F-1,1e"
        status = talk.ask("vFile:fstat:0")
        assert status[:4] == b"F40;"
        assert struct.unpack(">I", status[4:][8:12])[0] == 0o100444
        assert struct.unpack(">Q", status[4:][28:36])[0] == len(SYMBOLS)
        content = b""
        while True:
            count, _, data = talk.ask(f"vFile:pread:0,3000,{len(content):x}").partition(b";")
            assert int(count[1:], 16) == len(data)
            if not data:
                break
            content += data
        assert content == SYMBOLS
        assert talk.ask("vFile:close:0") == b"F0"
        assert talk.ask("vFile:close:0") == b"F-1,9"
        assert talk.ask("vFile:pread:0,1,0") == b"F-1,9"

    asyncio.run(session())


def test_replies_with_file_content_fit_the_packet_size() -> None:
    async def hash_signs() -> bytes:
        return b"#" * 300_000

    async def session() -> None:
        talk = gdb(Talk(symbols=hash_signs))
        await talk.ask_later(f"vFile:open:{KERNEL_PATH.encode().hex()},0,0")
        talk.session.feed(encode(b"vFile:pread:0,40000,0"))
        assert len(talk.raw) <= PACKET_SIZE + 4

    asyncio.run(session())


def test_a_kernel_without_symbols_is_said() -> None:
    async def none() -> bytes:
        raise SymbolError("the kernel has no symbol table")

    async def session() -> None:
        talk = gdb(Talk(symbols=none), GDB_16)
        assert await talk.ask_later("qXfer:exec-file:read:1:0,1000") == b"E.the kernel has no symbol table"
        assert await talk.ask_later(f"vFile:open:{KERNEL_PATH.encode().hex()},0,0") == b"F-1,2"

    asyncio.run(session())


def test_packets_wait_for_the_symbol_file() -> None:
    async def session() -> None:
        ready = asyncio.get_running_loop().create_future()
        talk = gdb(Talk(symbols=lambda: ready))
        assert talk.send("qXfer:exec-file:read:1:0,1000") == []
        assert talk.send("qC") == []
        ready.set_result(b"elf")
        for _ in range(5):
            await asyncio.sleep(0)
        assert talk.take() == [b"l" + KERNEL_PATH.encode(), b"QCp1.1"]

    asyncio.run(session())


def test_a_client_that_leaves_while_it_waits_gets_nothing_more() -> None:
    async def session() -> None:
        ready = asyncio.get_running_loop().create_future()
        talk = gdb(Talk(symbols=lambda: ready))
        talk.send("qXfer:exec-file:read:1:0,1000")
        talk.session.close()
        await asyncio.sleep(0)
        assert talk.take() == []

    asyncio.run(session())


# ---- monitor


def monitor(talk: Talk, text: str) -> tuple[str, bytes]:
    *output, reply = talk.send(f"qRcmd,{text.encode().hex()}")
    return talk.console(output), reply


def test_monitor_commands_come_from_one_table() -> None:
    def fail(words: list[str]) -> str:
        raise MachineError(f"no {words[0]} here")

    commands = [
        MonitorCommand("pcrs", "the measurements", lambda words: f"PCR0 {words}\n"),
        MonitorCommand("fail", "always fails", fail),
        MonitorCommand("failure", "also fails", fail, "all about failure\n"),
    ]
    talk = gdb(Talk(commands=commands))
    text, reply = monitor(talk, "help")
    assert reply == b"OK" and "pcrs       the measurements\n" in text and "registers" in text
    assert monitor(talk, "help failure") == ("all about failure\n", b"OK")
    assert monitor(talk, "help pc") == ("pcrs  the measurements\n", b"OK")
    assert monitor(talk, "pc 'a b'") == ("PCR0 ['a b']\n", b"OK")
    text, reply = monitor(talk, "reg")
    assert reply == b"OK" and "cr0    0x80050033 [PE MP ET NE WP AM PG]" in text
    assert monitor(talk, "fail x") == ("no x here\n", b"E01")
    assert monitor(talk, "fai") == ("'fai' could be fail, failure\n", b"E22")
    assert monitor(talk, "nonsense") == ("there is no command 'nonsense'; `monitor help` lists all\n", b"E22")
    assert monitor(talk, "'") == ('cannot read "\'": No closing quotation\n', b"E22")
    assert monitor(gdb(Talk(commands=commands), GDB_16), "fail x") == ("", b"E.no x here")


def test_a_monitor_command_may_take_its_time() -> None:
    async def slow(words: list[str]) -> str:
        await asyncio.sleep(0)
        return "done\n"

    async def session() -> None:
        talk = gdb(Talk(commands=[MonitorCommand("slow", "takes a turn", slow)]))
        assert talk.send(f"qRcmd,{b'slow'.hex()}") == []
        for _ in range(5):
            await asyncio.sleep(0)
        assert talk.take() == [b"O" + b"done\n".hex().encode(), b"OK"]

    asyncio.run(session())


def test_an_internal_error_ends_neither_session_nor_machine(caplog: pytest.LogCaptureFixture) -> None:
    def broken(words: list[str]) -> str:
        raise ZeroDivisionError

    talk = gdb(Talk(commands=[MonitorCommand("broken", "divides by zero", broken)]))
    assert talk.ask(f"qRcmd,{b'broken'.hex()}") == b"E01"
    assert "no answer to" in caplog.text
    assert talk.ask("qC") == b"QCp1.1"


# ---- rubbish


@given(st.lists(st.one_of(
    st.binary(max_size=60),
    st.tuples(st.sampled_from(sorted(FORMS)), st.from_regex(rb"[0-9a-f,;:.p\-=]{0,30}", fullmatch=True)).map(b"".join),
), max_size=12), st.booleans())  # fmt: skip
@settings(max_examples=150)
def test_no_packets_break_a_session(bodies: list[bytes], end_guest: bool) -> None:
    talk = Talk(end_guest=(lambda: None) if end_guest else None)
    for body in bodies:
        talk.session.feed(encode(body))
        if talk.session.state in (State.RUNNING, State.STOPPING):
            talk.machine.stop_with(Interrupted())
        for answer in talk.take():
            assert len(answer) <= PACKET_SIZE
            assert b"internal error" not in answer
    if not talk.hung_up:
        talk.session.feed(b"#00")
        talk.take()
        assert re.fullmatch(rb"QC(p1\.)?1", talk.ask("qC"))


def test_a_step_that_is_not_done_is_still_a_stop() -> None:
    talk = gdb()
    talk.send("vCont;s:p1.1")
    talk.machine.stop_with(StepDone())
    assert talk.take()[0].startswith(b"T05")
