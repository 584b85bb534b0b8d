"""`enclavedbg attest explain`: what a document says, and what becomes of every check of a verifier."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from enclavedbg.errors import NsmError
from enclavedbg.nsm.authority import default_folder
from enclavedbg.nsm.encoding import value_bytes
from enclavedbg.nsm.findings import Check
from enclavedbg.nsm.record import report_record
from enclavedbg.nsm.roots import AWS_ROOTS, ROOT_FILE_LIMIT, Root, development_root, roots_from
from enclavedbg.nsm.tree import report_lines, safe
from enclavedbg.nsm.verify import Report, verify
from enclavedbg.options import UsageError, parse_seed
from enclavedbg.verbs.attest.inputs import (
    STDIN,
    authority,
    expected_registers,
    input_name,
    parse_bytes,
    parse_when,
    read_document,
    read_input,
)
from enclavedbg.verbs.eif.output import print_json, warn

_COLOURS = {"good": "32", "bad": "1;31", "dim": "2", "name": "36"}
_PCR = re.compile(r"(?:PCR)?([0-9]{1,2})=(?:0x)?([0-9a-f]{96})", re.IGNORECASE)
_BYTES = "text, hex:..., base64:... or @FILE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DOC, what to trust, when, what to expect, --json."""
    parser.description = (
        "What an attestation document says, and what becomes of every check of a verifier. Documents from EC2 and "
        "from enclavedbg alike. Exit status: 0 valid, 1 not valid, 2 no document can be read there."
    )
    parser.add_argument(
        "document", type=Path, nargs="?", default=STDIN, metavar="DOC",
        help="binary, base64 or hex; standard input when left out, or -",
    )  # fmt: skip
    trust = parser.add_argument_group("what to trust, and when")
    trust.add_argument(
        "--root", type=Path, action="append", metavar="FILE",
        help="root certificates to trust, PEM or DER, and no others; default: AWS's (commercial regions, GovCloud) "
        "and this user's development root",
    )  # fmt: skip
    trust.add_argument(
        "--seed", type=parse_seed, metavar="N", help="trust the root of runs with --seed N, and what --root names"
    )
    trust.add_argument(
        "--at", type=parse_when, metavar="TIME",
        help="check certificates at this time, e.g. 2026-11-27T10:00:00Z, or `now`; default: the document's own time",
    )  # fmt: skip
    trust.add_argument("--allow-debug", action="store_true", help="do not refuse the document of a debug-mode enclave")
    expected = parser.add_argument_group("what to expect")
    expected.add_argument(
        "--expect-pcr", type=parse_pcr, action="append", default=[], metavar="N=HEX", help="e.g. 0=36e0...; repeatable"
    )
    expected.add_argument("--expect-eif", type=Path, metavar="FILE", help="the PCRs of this enclave image")
    for name in ("nonce", "user-data", "public-key"):
        expected.add_argument(f"--{name}", metavar="VALUE", help=_BYTES if name == "nonce" else "likewise")
    parser.add_argument("--json", action="store_true", help="everything as JSON")


def parse_pcr(text: str) -> tuple[int, bytes]:
    """A register's index and value from `N=HEX`."""
    match = _PCR.fullmatch(text)
    if match is None or int(match[1]) > 31:
        raise argparse.ArgumentTypeError(f"{text[:60]!r}: expected N=HEX, with N from 0 to 31 and 96 hex digits")
    return int(match[1]), bytes.fromhex(match[2])


def run(options: argparse.Namespace) -> int:
    """Print tree and checks; 0 when the document is valid, 1 when not, 2 when it is none."""
    if options.document == STDIN and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("no document; name a file, or pipe one in (see enclavedbg attest explain --help)")
    written = {name: getattr(options, name) for name in ("nonce", "user_data", "public_key")}
    values = {name: None if text is None else parse_bytes(text) for name, text in written.items()}
    report = verify(
        read_document(options.document),
        roots=_roots(options.root, options.seed),
        at=options.at,
        now=datetime.now(UTC),
        expect_pcrs=expected_registers(options.expect_pcr, options.expect_eif),
        allow_debug=options.allow_debug,
        **values,
    )
    warn(_forms_meant(written, report))
    if options.json:
        print_json(report_record(report))
    elif not report.readable:
        # One line, as for every input that is not what it should be.
        first, name = report.failures[0], input_name(options.document)
        raise NsmError(f"{name} is no attestation document ({first.check.value}: {safe(first.reason)})")
    else:
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(lines(report, coloured=coloured, ascii_only=not _shows_lines())))
    if not report.readable:
        return 2
    return 0 if report.valid else 1


def _forms_meant(written: Mapping[str, str | None], report: Report) -> Iterator[str]:
    """Where a value does not fit as text, but would as hex or base64."""
    failed = {finding.check for finding in report.failures}
    for name, check in (("nonce", Check.NONCE), ("user_data", Check.USER_DATA), ("public_key", Check.PUBLIC_KEY)):
        for form in ("hex", "base64") if check in failed else ():
            with suppress(NsmError):
                if value_bytes(f"{form}:{written[name]}") == report.reading.values.get(name):
                    yield f"--{name.replace('_', '-')} was taken as text; {form}:{written[name]} would be equal"


def _roots(given: Sequence[Path] | None, seed: int | None) -> list[Root]:
    if given or seed is not None:
        files = {path: read_input(path, limit=ROOT_FILE_LIMIT) for path in given or ()}
        roots = [root for path, data in files.items() for root in roots_from(data, str(path))]
        if seed is not None:
            roots.append(Root.of(authority(seed).root(), f"the root of runs with --seed {seed}"))
        return roots
    try:
        development = development_root(default_folder(os.environ))
    except NsmError as error:
        warn([f"{error}. Documents of enclavedbg's own are not trusted"])
        development = None
    return [*AWS_ROOTS, *([development] if development else [])]


def _shows_lines() -> bool:
    try:
        "├─└│".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def lines(report: Report, *, coloured: bool = False, ascii_only: bool = False) -> Iterator[str]:
    """For people: the tree, the checks, the verdict in one line."""
    for pieces in report_lines(report, ascii_only=ascii_only):
        yield "".join(
            f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if coloured and style and text else text for style, text in pieces
        )
