"""`enclavedbg eif cat`: a section, or a file of a ramdisk, to standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from enclavedbg.eif.contents import open_contents, parse_place, tree_at
from enclavedbg.eif.records import kind_of
from enclavedbg.eif.streams import PIECE
from enclavedbg.errors import EifError
from enclavedbg.verbs.eif.limits import add_limit, limits_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument(
        "path",
        metavar="PATH",
        help="/path in what the ramdisks make together, ramdisk0:/path in one of them, or a section: section:kernel, "
        "section:cmdline, section:metadata, section:signature, section:ramdisk0",
    )
    add_limit(parser)


def run(options: argparse.Namespace) -> int:
    is_terminal = sys.stdout.isatty()
    ended = True
    for piece in contents_at(options):
        if is_terminal and b"\0" in bytes(piece[:PIECE]):
            raise EifError(f"{options.path} is binary and this is a terminal; send it to a file with > FILE")
        sys.stdout.buffer.write(piece)
        ended = bytes(piece[-1:]) == b"\n"
    if is_terminal and not ended:
        # A command line has no line end; the prompt belongs on a line of its own.
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    return 0


def contents_at(options: argparse.Namespace) -> Iterator[memoryview]:
    """What PATH names, in pieces. Raises EifError."""
    contents = open_contents(options.file)
    place = parse_place(options.path)
    if place.section is not None:
        data = contents.section(place.section).data
        return (data[start : start + PIECE] for start in range(0, len(data), PIECE))
    system = contents.filesystem(limits=limits_from(options))
    node = tree_at(system, place).lookup(place.path)
    if not node.is_file:
        raise EifError(f"{options.path} is a {kind_of(node.mode)}, expected a file; enclavedbg eif ls lists it")
    return system.pieces(node)
