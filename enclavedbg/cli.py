"""The command line: arguments in, exit status out.

Nothing heavy is imported here: `--help` and a refused argument answer at once, and the run itself loads what
it needs when it needs it.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from enclavedbg import __version__
from enclavedbg.errors import EnclaveDbgError
from enclavedbg.options import LOOPBACK, Address, Options, OutputError, UsageError, parse_seed
from enclavedbg.units import seconds
from enclavedbg.verbs.table import Family, Parser

if TYPE_CHECKING:
    from enclavedbg.nsm.faults import Fault

HELP = f"""\
enclavedbg {__version__}: run an AWS Nitro Enclave image here; stop it, look into it

  enclavedbg demo                        demo image: a tour, or a live shell
  enclavedbg --eif app.eif               run an image, with a shell to look in
  enclavedbg --eif app.eif --gdb :1234   and let gdb in: target remote :1234
  enclavedbg eif, enclavedbg attest      image files, attestation documents

  --eif FILE       the enclave image
  --gdb ADDRESS    serve gdb; :1234 is this machine only, others: HOST:PORT
  --wait           stop before the first instruction of the kernel
  --memory SIZE    the enclave's RAM: 512 (MiB), 2G; default: 512 or more
  --cpu NAME       auto or soft (kvm comes later); default: auto
  --cid N          the enclave's vsock context id, 4 or more; default: 16
  --vsock DIR      reach the guest's vsock through Unix sockets in this folder
  --console FILE   keep the serial console in a file
  --no-shell       print the console instead of opening the shell
  --timeout TIME   end the enclave after this long, e.g. 30s or 5m
  --help-nsm       the secure module's options: debug mode, identity, faults
  --version, --help

Exit status: 0 clean end, 2 bad usage or input, 10 kernel panic, 11 triple
fault, 12 hang, 13 --timeout, 130 Ctrl-C; docs/exit-codes.md has them all.
"""

HELP_NSM = """\
enclavedbg --eif app.eif ...: what the secure module attests, and how it fails

  --debug-mode     attest as an enclave in debug mode does: PCR0, 1, 2, 8 zero
  --role-arn ARN   the parent's IAM role, which PCR3 measures; default: none
  --instance-id ID the parent's instance, which PCR4 measures; default: made up
  --ephemeral-authority
                   sign documents under a root made for this run alone, not
                   under the one that `enclavedbg attest root` prints
  --map-encoding definite|indefinite
                   of documents, as older and newer real modules write them;
                   default: indefinite
  --nsm-fault 'KIND[#N] ACTION [if CONDITION]'
                   do wrong to the Nth or every request of a kind; repeatable.
                   ACTION: error NAME, delay TIME, drop or cut BYTES, e.g.
                   'Attestation#2 error InternalError', GetRandom:delay:2s
  --seed N         random answers, keys and the times of documents repeat in
                   every run with this number, under a root that follows from it

In the shell: pcrs, attest, nsm, fault, catch; docs/attestation.md says more.
"""

VERBS = ("demo",)

FAMILIES = {"eif": "enclavedbg.verbs.eif", "attest": "enclavedbg.verbs.attest"}
"""Words with verbs of their own, by the module that has their table."""

_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}", re.ASCII)
_INSTANCE = re.compile("i-(?:[0-9a-f]{8}|[0-9a-f]{17})")
_SIZE = re.compile(r"([0-9]+) ?([KMGT]?)(i?B)?", re.IGNORECASE)
_SIZE_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_address(text: str) -> Address:
    """`:1234` or `1234` means loopback; any other host must be written out. IPv6 addresses go in brackets."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"{text!r}: an IPv6 address goes in brackets, e.g. [::1]:1234")
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 <= int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; expected :PORT or HOST:PORT, e.g. :1234")
    return Address(host or LOOPBACK, int(port))


def parse_size(text: str) -> int:
    """Bytes from `512M`, `1G`, `300MiB` or a plain number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected a number with K, M or G, e.g. 512M")
    return int(match[1]) << _SIZE_SHIFT[match[2].upper()]


def parse_memory(text: str) -> int:
    """Bytes of RAM; a plain number means MiB, as nitro-cli's --memory does."""
    return int(text) << 20 if re.fullmatch("[0-9]{1,9}", text) and int(text) else parse_size(text)


def parse_time(text: str) -> float:
    """Seconds from `30s`, `5m`, `500ms`, `1h` or a plain number of seconds."""
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_cid(text: str) -> int:
    """A context id that an enclave may have: 0 to 3 are the hypervisor, the local one, host and parent."""
    if not re.fullmatch("[0-9]{1,10}", text) or not 4 <= int(text) < 0xFFFF_FFFF:
        raise argparse.ArgumentTypeError(f"{text!r} is no enclave's context id; expected 4 to 4294967294")
    return int(text)


def parse_role(text: str) -> str:
    """An IAM role's ARN: its text is what PCR3 measures, to the letter."""
    if ":instance-profile/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is an instance profile's ARN; PCR3 measures that of its role")
    if not _ROLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no role's ARN; expected arn:aws:iam::123456789012:role/NAME")
    return text


def parse_instance(text: str) -> str:
    """An EC2 instance's id: its text is what PCR4 measures, to the letter."""
    if not _INSTANCE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no instance id; expected i- and 17 (or 8) hex digits")
    return text


def parse_nsm_fault(text: str) -> Fault:
    """What the secure module is to do wrong."""
    from enclavedbg.nsm.faults import parse_fault

    try:
        return parse_fault(text)
    except EnclaveDbgError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _HelpNsm(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(HELP_NSM)
        parser.exit()


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        listed = re.findall(r"^  (--[a-z-]+)", HELP_NSM, re.MULTILINE)
        more = any(word in listed for word in re.findall("--[a-z-]+", message))
        raise UsageError(f"{message} (see enclavedbg {'--help-nsm' if more else '--help'})")

    def format_help(self) -> str:
        return HELP


def parser() -> argparse.ArgumentParser:
    """The parser for all arguments; HELP above is its help."""
    top = _Parser(prog="enclavedbg", allow_abbrev=False)
    top.add_argument("--eif", type=Path)
    top.add_argument("--gdb", type=parse_address)
    top.add_argument("--wait", action="store_true")
    top.add_argument("--memory", type=parse_memory)
    top.add_argument("--cpu", choices=["auto", "soft", "kvm"], default="auto")
    top.add_argument("--cid", type=parse_cid, default=16)
    top.add_argument("--debug-mode", action="store_true")
    top.add_argument("--help-nsm", action=_HelpNsm, nargs=0)
    top.add_argument("--role-arn", type=parse_role)
    top.add_argument("--instance-id", type=parse_instance)
    top.add_argument("--ephemeral-authority", action="store_true")
    top.add_argument("--map-encoding", choices=["definite", "indefinite"], default="indefinite")
    top.add_argument("--nsm-fault", dest="faults", type=parse_nsm_fault, action="append", default=[])
    top.add_argument("--seed", type=parse_seed)
    top.add_argument("--vsock", type=Path)
    top.add_argument("--console", type=Path)
    top.add_argument("--no-shell", dest="shell", action="store_false")
    top.add_argument("--timeout", type=parse_time)
    top.add_argument("--version", action="version", version=f"enclavedbg {__version__}")
    return top


def parse(arguments: Sequence[str]) -> Options:
    """Options from arguments; raises UsageError, or SystemExit for --help and --version."""
    verb, arguments = _verb(arguments)
    given = vars(parser().parse_args(arguments))
    del given["help_nsm"]
    options = Options(verb=verb, faults=tuple(given.pop("faults")), **given)
    if options.verb == "demo" and options.eif is not None:
        raise UsageError("demo brings its own image; leave out --eif, or leave out demo to run yours")
    if options.seed is not None and options.ephemeral_authority:
        raise UsageError("--seed signs under a root that follows from it; leave out --ephemeral-authority")
    if options.verb is None and options.eif is None:
        raise UsageError("nothing to run; name an image with --eif FILE, or try: enclavedbg demo")
    return options


def _verb(arguments: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The leading word, which argparse would confuse with the values of options that it does not know."""
    if not arguments or arguments[0].startswith("-"):
        return None, arguments
    if arguments[0] not in VERBS:
        raise UsageError(
            f"there is no command {arguments[0]!r}; name an image with --eif FILE, or try: enclavedbg demo"
        )
    return arguments[0], arguments[1:]


def execute(options: Options) -> int:
    """Do what the options say, until its end; the exit status."""
    if options.verb == "demo":
        from enclavedbg.demo import run_demo

        return run_demo(options)
    from enclavedbg.runner import run

    return run(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `enclavedbg`."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(given)
    except EnclaveDbgError as error:
        print(f"enclavedbg: {error}", file=sys.stderr)
        if isinstance(error, OutputError):
            _discard_output()
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141


def _run(arguments: Sequence[str]) -> int:
    """Do it all, with what was printed really written: Python would find out too late that it cannot be."""
    if sys.stdout is None:
        raise OutputError("cannot write standard output: it is closed; give it a file or a terminal")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding has not is escaped, never an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _do(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Files are reported where they are opened, by name; what has none is standard output.
        if error.filename is not None:
            raise
        raise OutputError.of(error) from error


def _do(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in FAMILIES:
        from importlib import import_module

        family: Family = import_module(FAMILIES[arguments[0]]).FAMILY
        return family.run(arguments[1:])
    return execute(parse(arguments))


def _discard_output() -> None:
    """Nobody reads our output. Python would complain once more when it closes stdout, with what it still holds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
