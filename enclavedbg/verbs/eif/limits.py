"""The option --limit: how far a ramdisk may expand."""

from __future__ import annotations

import argparse

from enclavedbg.cli import parse_size
from enclavedbg.eif.archives import DEFAULT_LIMITS, Limits


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add it."""
    parser.add_argument(
        "--limit",
        type=parse_size,
        metavar="SIZE",
        default=DEFAULT_LIMITS.unpacked,
        help="stop when a ramdisk unpacks to more than this, e.g. 20G; default: 8G",
    )


def limits_from(options: argparse.Namespace) -> Limits:
    """The limits that the options ask for."""
    return Limits(unpacked=options.limit)
