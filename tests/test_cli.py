from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclavedbg import __version__
from enclavedbg.cli import (
    HELP,
    HELP_NSM,
    main,
    parse,
    parse_address,
    parse_cid,
    parse_memory,
    parse_size,
    parse_time,
    parser,
)
from enclavedbg.errors import EnclaveDbgError
from enclavedbg.nsm.faults import parse_fault
from enclavedbg.options import Address, Options, UsageError


def test_help_fits_a_screen_and_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert shown == HELP
    lines = shown.splitlines()
    assert len(lines) <= 23  # and the prompt below it
    assert max(map(len, lines)) <= 80
    with pytest.raises(SystemExit) as exit_:
        main(["--help-nsm"])
    assert exit_.value.code == 0
    more = capsys.readouterr().out
    assert more == HELP_NSM
    assert len(more.splitlines()) <= 23
    assert max(map(len, more.splitlines())) <= 80
    for action in parser()._actions:
        for option in action.option_strings:
            assert option in shown or option in more or option == "-h"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"enclavedbg {__version__}\n"


def test_defaults() -> None:
    assert parse(["--eif", "x.eif"]) == Options(eif=Path("x.eif"))
    assert parse(["demo"]) == Options(verb="demo")


def test_everything_at_once() -> None:
    line = "--eif x.eif --gdb :1234 --wait --memory 1G --cpu soft --cid 7 --debug-mode --vsock /run/e"
    module = "--role-arn arn:aws:iam::123456789012:role/a/B --instance-id i-1234567890abcdef0 --seed 7 --map-encoding"
    faults = ["--nsm-fault", "any#3 drop", "--nsm-fault", "GetRandom:delay:2s"]
    options = parse(
        [*line.split(), "--console", "c.log", "--no-shell", "--timeout", "1.5m", *module.split(), "definite", *faults]
    )
    assert options == Options(
        eif=Path("x.eif"), gdb=Address("127.0.0.1", 1234), wait=True, memory=1 << 30, cpu="soft", cid=7,
        debug_mode=True, vsock=Path("/run/e"), console=Path("c.log"), shell=False, timeout=90.0,
        role_arn="arn:aws:iam::123456789012:role/a/B", instance_id="i-1234567890abcdef0", seed=7,
        map_encoding="definite",
        faults=(parse_fault("any#3 drop"), parse_fault("GetRandom delay 2s")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "host", "port", "public"),
    [
        (":1234", "127.0.0.1", 1234, False),
        ("1234", "127.0.0.1", 1234, False),
        ("localhost:0", "localhost", 0, False),
        ("127.0.0.9:1", "127.0.0.9", 1, False),
        ("[::1]:65535", "::1", 65535, False),
        ("0.0.0.0:1234", "0.0.0.0", 1234, True),
        ("[::]:1234", "::", 1234, True),
        ("example.com:1234", "example.com", 1234, True),
    ],
)
def test_addresses(text: str, host: str, port: int, public: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.public) == (host, port, public)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", ":", "host:", ":65536", ":-1", "::1:5", "host:12x", ":123456", ":\u0661"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("1g", 1 << 30), ("300MiB", 300 << 20), ("4096", 4096), ("64 K", 65536), ("2GB", 2 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("500ms", 0.5), ("1h", 3600), ("2", 2), ("0.5s", 0.5)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "0", "12Q", "1e3", "\u0663M"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "1d", "inf", "nan", "1e9"])
def test_bad_times(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_time(text)


@given(st.text(max_size=12))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    for read in (parse_address, parse_size, parse_time, parse_cid):
        try:
            read(text)
        except argparse.ArgumentTypeError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to run"),
        (["--eif"], "--eif"),
        (["--eif", "x", "--cpu", "vax"], "vax"),
        (["--eif", "x", "--cid", "3"], "context id"),
        (["--eif", "x", "--tiemout", "3"], "--tiemout"),
        (["--eif", "x", "--time", "3"], "--time"),
        (["bogus"], "bogus"),
        (["demo", "--eif", "x"], "demo"),
    ],
)
def test_misuse_is_one_line_and_status_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.startswith("enclavedbg: ") and said.err.count("\n") == 1


def test_errors_carry_their_status() -> None:
    assert issubclass(UsageError, EnclaveDbgError)
    assert UsageError("x").exit_status == 2


def test_what_is_not_needed_is_not_imported() -> None:
    """--help must not wait for libraries, and a run without a shell not for those of the shell."""
    code = (
        "import sys, contextlib, io\n"
        "from enclavedbg.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])\n"
        "print([n for n in ('asyncio', 'cryptography', 'cbor2', 'rich') if n in sys.modules])\n"
        "import enclavedbg.runner\n"
        "from enclavedbg.machine.enclave import Enclave\n"
        "print([n for n in ('cryptography', 'prompt_toolkit', 'rich', 'capstone', 'pygdbmi') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_module_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "enclavedbg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"enclavedbg {__version__}\n"


def test_memory_in_nitro_clis_unit() -> None:
    assert parse_memory("512") == parse_memory("512M") == 512 << 20
    assert parse_memory("2G") == 2 << 30
    with pytest.raises(argparse.ArgumentTypeError):
        parse_memory("0")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--role-arn", "Webserver", "is no role's ARN"),
        ("--role-arn", "arn:aws:iam::123456789012:instance-profile/x", "is an instance profile's ARN"),
        ("--instance-id", "i-123", "is no instance id"),
        ("--instance-id", "i-1234567890ABCDEF0", "is no instance id"),
        ("--seed", "-1", "is no seed"),
        ("--seed", "x", "is no seed"),
        ("--seed", "9" * 19, "expected a number of up to 18 digits"),
        ("--map-encoding", "other", "invalid choice"),
        ("--nsm-fault", "Attestation", r"nothing to do to the request is named.*\(see enclavedbg --help-nsm\)"),
        ("--nsm-fault", "Attest:drop", "there is no request 'Attest'"),
    ],
)
def test_what_the_secure_module_is_not_told(option: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(["--eif", "x.eif", f"{option}={value}"])
    assert "\n" not in str(caught.value)


def test_the_help_that_is_named_has_the_option() -> None:
    with pytest.raises(UsageError, match=r"\(see enclavedbg --help\)"):
        parse(["--eif"])
    with pytest.raises(UsageError, match=r"\(see enclavedbg --help-nsm\)"):
        parse(["--role-arn"])


def test_one_authority_for_a_run() -> None:
    assert parse(["demo", "--ephemeral-authority"]).ephemeral_authority
    with pytest.raises(UsageError, match="leave out --ephemeral-authority"):
        parse(["demo", "--seed", "7", "--ephemeral-authority"])


DEMO = str(Path(__file__).parents[1] / "enclavedbg" / "data" / "demo.eif")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--help-nsm"], ["attest"], ["attest", "forge", "--list"], ["eif", "describe", DEMO]]
)
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "enclavedbg", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("enclavedbg: cannot write standard output: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def _closed(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "enclavedbg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_closed_input_and_output_are_one_line() -> None:
    for done in (_closed(">&-", "attest", "forge", "--list"), _closed("<&-", "attest", "explain")):
        assert done.returncode == 2
        assert "is closed" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    arguments = ["attest", "forge", str(tmp_path / "\u00fc"), "--only", "expired-leaf"]
    command = [sys.executable, "-m", "enclavedbg", *arguments]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\\xfc\n")
