"""`enclavedbg attest root`: the development root certificate, to be given to a verifier."""

from __future__ import annotations

import argparse
import ssl
import sys

from enclavedbg.errors import MachineError
from enclavedbg.options import parse_seed
from enclavedbg.verbs.attest.inputs import authority
from enclavedbg.verbs.eif.output import warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--seed, --der."""
    parser.description = (
        "The certificate of the development root, in PEM on standard output. It is made on first use and stays the "
        "same from then on; its key never leaves the state folder. A verifier that is to take documents of enclavedbg "
        "trusts this certificate, beside AWS's or in its place, and only where that is a test."
    )
    parser.add_argument("--seed", type=parse_seed, metavar="N", help="the root of runs with --seed N instead")
    parser.add_argument("--der", action="store_true", help="in DER instead")


def run(options: argparse.Namespace) -> int:
    """Print the certificate; 0."""
    if options.der and sys.stdout.isatty():
        raise MachineError("DER is binary, and standard output is a terminal; redirect it to a file")
    der = authority(options.seed).root()
    if options.seed is not None:
        warn([f"whoever knows the number {options.seed} can sign under this root: trust it in tests alone"])
    sys.stdout.buffer.write(der if options.der else ssl.DER_cert_to_PEM_cert(der).encode())
    sys.stdout.flush()
    return 0
