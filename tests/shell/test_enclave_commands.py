from __future__ import annotations

import pytest

from enclavedbg.errors import MachineError, VsockError
from enclavedbg.shell.session import Session
from enclavedbg.shell.table import CommandError, CommandTable
from enclavedbg.shell.text import Text

from .conftest import Live

pytestmark = pytest.mark.live


def test_status(live: Live) -> None:
    text = live.command("status")
    for words in ("running", live.enclave.measurements.pcr0.hex(), "512 MiB", "CID 16", "x86_64"):
        assert words in text
    live.command("stop")
    text = live.command("status")
    assert "stopped: " in text and "=> " in text


def test_pcrs_are_those_of_the_file(live: Live) -> None:
    text = live.command("pcrs")
    for index in (0, 1, 2):
        assert f"PCR{index}  {live.enclave.measurements.as_mapping()[index].hex()} locked  = file" in text
    instance = live.enclave.nsm.module_id.partition("-enc")[0]
    assert text.splitlines()[3].endswith(f" locked  = {instance}")
    assert len(text.splitlines()) == 4
    assert len(live.command("pcrs all").splitlines()) == 32


def test_nsm_exchanges(live: Live) -> None:
    text = live.command("nsm")
    assert "DescribePCR" in text
    assert len(live.command("nsm 2").splitlines()) == 3  # one line says how many came before


def test_attest_shows_a_verified_document(live: Live) -> None:
    text = live.command("attest 'some data' 0123")
    assert "user data   9 bytes: some data" in text
    assert "nonce       4 bytes: 0123" in text
    assert f"PCR0        {live.enclave.measurements.pcr0.hex()}" in text
    assert "signature, chain and times hold" in text
    assert "none" in live.command("attest")


def test_vsock(live: Live) -> None:
    async def look() -> str:
        async with await live.enclave.vsock.connect(5000, label="test") as stream:
            await stream.write(b"hello")
            assert await stream.read_exactly(5) == b"hello"
            from enclavedbg.shell.commands import COMMANDS
            from enclavedbg.shell.text import plain

            return plain(await COMMANDS.run(live.session, "vsock"))

    text = live.call(look())
    assert "5000" in text and "established" in text
    assert "9000 (heartbeat)" in text
    packets = live.command("vsock packets 50")
    assert "RW 5 bytes |hello|" in packets


def test_vsock_send_shows_the_answer(live: Live) -> None:
    assert live.command("vsock send 5000 hello there") == "hello there\n"
    assert "PCR0: " in live.command("vsock send 5002 pcrs")
    with pytest.raises(VsockError):
        live.command("vsock send 4444 nobody")
    live.command("stop")
    with pytest.raises(CommandError, match="the enclave is stopped"):
        live.command("vsock send 5000 hello")


def test_console(live: Live) -> None:
    assert "demo: ready on vsock ports" in live.command("console all")
    assert live.command("console").count("\n") <= 21
    assert len(live.command("console 3").splitlines()) == 3
    assert "Linux version" in live.command("console all").splitlines()[0]
    assert live.command("console 0") == ""


def test_events(live: Live) -> None:
    assert "heartbeat" in live.command("events boot")
    assert "earlier events" in live.command("events 5")
    text = live.command("events nothing.such")
    assert "Nothing of that kind" in text and "boot, console" in text


def test_choosing_live_events(live: Live) -> None:
    before = set(live.session.live)
    try:
        assert "vsock.packet" in live.command("events on vsock.packet")
        assert "vsock" not in live.command("events off vsock")
        assert "stops, warnings and the end only" in live.command("events off")
    finally:
        live.session.live = before


@pytest.mark.parametrize(
    "line", ["pcrs 0", "attest a b c", "vsock nonsense", "console x", "nsm 1 2", "events on a b", "events on nosuch"]
)
def test_misuse(live: Live, line: str) -> None:
    with pytest.raises(CommandError):
        live.command(line)


def test_help_lists_every_command(live: Live) -> None:
    text = live.command("help")
    names = "status pcrs nsm attest fault catch vsock console events stop continue step regs mem dis bt break delete"
    for name in names.split():
        assert f"\n{name} " in f"\n{text}"
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) <= 22
    assert "mem [p:]ADDRESS [LENGTH]" in live.command("help mem")
    assert "vsock send 5000 hello" in live.command("help vsock")


def test_two_commands_of_one_name_are_refused() -> None:
    table = CommandTable()

    @table.add("look", "l")
    async def look(session: Session, words: list[str]) -> Text:
        """Look."""
        return []

    with pytest.raises(ValueError, match="'l'"):
        table.add("list", "l")(look)


def test_the_kernel_s_log(live: Live) -> None:
    with pytest.raises(MachineError, match="stop it first"):
        live.command("dmesg")
    live.command("stop")
    text = live.command("dmesg all")
    assert "Linux version" in text.splitlines()[0]
    assert "Run /init as init process" in text
    assert len(live.command("dmesg 3").splitlines()) == 3


def test_words_that_are_no_command(live: Live) -> None:
    with pytest.raises(CommandError, match="no command"):
        live.command("frobnicate")
    with pytest.raises(CommandError, match="did you mean status"):
        live.command("sttaus")
    with pytest.raises(CommandError, match="could be"):
        live.command("st")
    with pytest.raises(CommandError, match="cannot read"):
        live.command("attest 'open")
    assert live.command("") == ""
    assert "PCR0" in live.command("pc")  # an unambiguous beginning
