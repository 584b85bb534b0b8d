"""Packet bodies become values, and bad ones ProtocolError, whatever they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg.errors import ProtocolError
from enclavedbg.gdbstub import packets
from enclavedbg.gdbstub.packets import Action, PointKind, Resume, ThreadId, Unknown
from enclavedbg.gdbstub.parser import FORMS, parse

ARGUMENTS = b"0123456789abcdefABCDEF,;:=.-p?tcCsSgm \xff}*#"


@given(st.binary(max_size=80))
def test_any_bytes_give_a_value_or_protocol_error(body: bytes) -> None:
    _try(body)


@given(st.sampled_from(sorted(FORMS)), st.lists(st.sampled_from(ARGUMENTS), max_size=40))
def test_any_arguments_give_a_value_or_protocol_error(name: bytes, arguments: list[int]) -> None:
    _try(name + bytes(arguments))


@given(st.sampled_from([b"vFile:open:", b"vFile:pread:", b"qXfer:features:read:", b"vCont;", b"G", b"Z0,"]),
       st.lists(st.sampled_from(ARGUMENTS), max_size=40))  # fmt: skip
def test_any_deeper_arguments_give_a_value_or_protocol_error(name: bytes, arguments: list[int]) -> None:
    _try(name + bytes(arguments))


def _try(body: bytes) -> None:
    try:
        request = parse(body)
    except ProtocolError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(request, packets.Request)


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        (b"?", packets.StopReason()),
        (b"g", packets.ReadRegisters()),
        (b"g;thread:0001;", packets.ReadRegisters(ThreadId(1))),
        (b"p10;thread:p1.1;", packets.ReadRegister(16, ThreadId(1, 1))),
        (b"P6=0100;thread:1;", packets.WriteRegister(6, b"\x01\x00", ThreadId(1))),
        (b"G01xx", packets.WriteRegisters((1, None))),
        (b"mffffffff81000000,40", packets.ReadMemory(0xFFFFFFFF81000000, 0x40)),
        (b"x0,0", packets.ReadMemory(0, 0, binary=True)),
        (b"M10,2:beef", packets.WriteMemory(0x10, b"\xbe\xef")),
        (b"X10,3:a:\x03", packets.WriteMemory(0x10, b"a:\x03")),
        (b"vCont?", packets.VContQuery()),
        (b"vCont;c:p1.-1", packets.VCont((Action(Resume.CONTINUE, ThreadId(-1, 1)),))),
        (b"vCont;s:p1.1;c:p1.-1",
         packets.VCont((Action(Resume.STEP, ThreadId(1, 1)), Action(Resume.CONTINUE, ThreadId(-1, 1))))),
        (b"vCont;C05:0001", packets.VCont((Action(Resume.CONTINUE, ThreadId(1)),))),
        (b"c", packets.VCont((Action(Resume.CONTINUE, None),))),
        (b"s1000", packets.VCont((Action(Resume.STEP, None),), 0x1000)),
        (b"C05;1000", packets.VCont((Action(Resume.CONTINUE, None),), 0x1000)),
        (b"Hgp0.0", packets.SelectThread("g", ThreadId(0, 0))),
        (b"Hc-1", packets.SelectThread("c", ThreadId(-1))),
        (b"Z0,ffffffff81000000,1", packets.InsertPoint(PointKind.SOFTWARE, 0xFFFFFFFF81000000, 1)),
        (b"z2,10,8", packets.RemovePoint(PointKind.WRITE, 0x10, 8)),
        (b"Z9,10,8", Unknown(b"Z9,10,8")),
        (b"D;1", packets.Detach(stay_stopped=False)),
        (b"D1", packets.Detach(stay_stopped=True)),
        (b"k", packets.Kill(reply=False)),
        (b"vKill;1", packets.Kill(reply=True)),
        (b"qC", packets.CurrentThread()),
        (b"qCRC:0,10", Unknown(b"qCRC:0,10")),
        (b"qfThreadInfo", packets.ListThreads(first=True)),
        (b"qThreadStopInfo1", packets.ThreadStop(ThreadId(1))),
        (b"qThreadStopInfo0a", packets.ThreadStop(ThreadId(10))),
        (b"qThreadExtraInfo,p1.1", packets.ThreadText(ThreadId(1, 1))),
        (b"qXfer:features:read:target.xml:0,1000", packets.Xfer("features", "target.xml", 0, 0x1000)),
        (b"qXfer:siginfo:write::0:ab", Unknown(b"qXfer:siginfo:write::0:ab")),
        (b"vFile:open:2f61,0,1c0", packets.FileOpen("/a", 0)),
        (b"vFile:pread:0,3000,40", packets.FileRead(0, 0x3000, 0x40)),
        (b"vFile:readlink:2f61", Unknown(b"vFile:readlink:2f61")),
        (b"qRcmd,68656c70", packets.MonitorText("help")),
        (b"vMustReplyEmpty", Unknown(b"vMustReplyEmpty")),
        (b"qSupported:swbreak+;x=1", packets.QuerySupported(("swbreak+", "x=1"))),
        (b"qMemoryRegionInfo:1000", packets.MemoryRegion(0x1000)),
        (b"", Unknown(b"")),
    ],
)  # fmt: skip
def test_packets_that_clients_send(body: bytes, request_: packets.Request) -> None:
    assert parse(body) == request_


@pytest.mark.parametrize(
    "body",
    [b"m", b"m10", b"m1,2,3", b"mxyz,1", b"m11111111111111111,1", b"M0,2:aa", b"M0,1:a", b"X0,2:a",
     b"Xffffffffffffffff,2:ab", b"P0", b"p", b"Z0,1", b"vCont", b"vCont;", b"vCont;q", b"vCont;C", b"H", b"Hx1",
     b"T", b"Tzz", b"vFile:open:zz,0,0", b"vFile:pread:0", b"qRcmd,6", b"G1", b"Dx", b"g1"],
)  # fmt: skip
def test_malformed_packets_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(body)
