from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from enclavedbg.machine import events as machine_events
from enclavedbg.machine.events import ConsoleLine, GuestStopped, GuestWarning, Record
from enclavedbg.machine.verdict import Outcome, Verdict
from enclavedbg.nsm import events as nsm_events
from enclavedbg.shell.render import KINDS, event_line, wanted
from enclavedbg.shell.text import STYLES, fields, hexdump, joined, lines, plain, size, styled
from enclavedbg.vsock import events as vsock_events


@dataclass(frozen=True)
class Hostile:
    """An event whose summary holds what a guest sent."""

    kind: ClassVar[str] = "vsock.packet"

    def summary(self) -> str:
        return "a\x1b[2Jb\nc"


def test_plain_and_styled() -> None:
    text = joined([[("good", "a"), ("", "b")], [("bad", "c")]])
    assert plain(text) == "ab\nc\n"
    assert styled(text)[:2] == [("class:good", "a"), ("", "b")]
    assert lines("") == [] and plain(lines("x")) == "x\n" == plain(lines("x\n"))


def test_fields_line_up() -> None:
    assert plain(fields([("a", "1"), ("long name", [("good", "2")])])) == "a          1\nlong name  2\n"


def test_sizes() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 3 << 20, 5 << 30)] == [
        "0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "3 MiB", "5 GiB",
    ]  # fmt: skip


def test_hexdump() -> None:
    text = plain(hexdump(0x1000, b"ABCDEFGHIJ\x00\xff" + bytes(8)))
    assert text == (
        "0000000000001000  4142 4344 4546 4748 494a 00ff 0000 0000 |ABCDEFGHIJ......|\n"
        "0000000000001010  0000 0000                               |....|\n"
    )


def test_events_as_lines() -> None:
    def shown(event: object) -> str:
        return plain(event_line(Record(1, 1_234_567_890, event)))  # type: ignore[arg-type]

    assert shown(ConsoleLine("hello")) == "    1.235 hello"
    assert shown(ConsoleLine("[    0.004000] booting [    0.1]")) == "    1.235 booting [    0.1]"
    whole = event_line(Record(1, 0, ConsoleLine("[    0.004000] booting")), whole=True)
    assert plain(whole) == "    0.000 [    0.004000] booting"
    stop = Record(1, 0, GuestStopped("breakpoint", 0x10))
    assert plain(event_line(stop, name="start_kernel")) == "    0.000 stop: breakpoint at 0x10 (start_kernel)"
    assert shown(GuestWarning("uart", "odd")) == "    1.235 warning: uart: odd"
    assert shown(GuestStopped("breakpoint", 0x10)) == "    1.235 stop: breakpoint at 0x10"
    assert shown(Hostile()) == "    1.235 vsock.packet: a\\x1b[2Jb\\nc"


def test_a_bad_end_is_red_and_a_good_one_green() -> None:
    for outcome, style in ((Outcome.CLEAN, "good"), (Outcome.PANIC, "bad")):
        assert event_line(Record(1, 0, Verdict(outcome, "x")))[1][0] == style
        assert style in STYLES


def test_every_kind_of_event_is_known() -> None:
    classes = [*vars(machine_events).values(), *vars(nsm_events).values(), *vars(vsock_events).values(), Verdict]
    kinds = {kind for c in classes if isinstance(c, type) and isinstance(kind := getattr(c, "kind", None), str)}
    assert kinds == set(KINDS)


def test_which_events_are_shown() -> None:
    @dataclass(frozen=True)
    class Exchange:
        name: str = "DescribePCR"
        error: str | None = None
        kind: ClassVar[str] = "nsm.exchange"

        def summary(self) -> str:
            return self.name

    assert wanted(Exchange(), {"nsm"}) and wanted(Exchange(), {"nsm.exchange"})
    assert not wanted(Exchange(), {"ns", "nsm.pcr", "vsock"})
    assert not wanted(Exchange("GetRandom"), {"nsm"})
    assert wanted(Exchange("GetRandom", "InternalError"), {"nsm"})
    assert wanted(GuestStopped("x", 1), set()) and wanted(GuestWarning("x", "y"), set())
    assert wanted(Verdict(Outcome.CLEAN, "x"), set())
