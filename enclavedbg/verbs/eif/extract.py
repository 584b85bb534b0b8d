"""`enclavedbg eif extract`: sections as files, ramdisks as folders."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from enclavedbg.eif.contents import open_contents
from enclavedbg.eif.extract import MANIFEST, Extracted, extract
from enclavedbg.verbs.eif.limits import add_limit, limits_from
from enclavedbg.verbs.eif.text import count, shown

LINES_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or an empty folder")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SECTION",
        help="kernel, cmdline, metadata, signature, ramdisk0 ...; may be given several times; default: all",
    )
    parser.add_argument("--all", action="store_true", help="name everything that was not made, not just the first few")
    parser.add_argument("--json", action="store_true", help="say what was done as JSON")
    add_limit(parser)


def run(options: argparse.Namespace) -> int:
    contents = open_contents(options.file)
    done = extract(contents, options.folder, only=options.only, limits=limits_from(options))
    if options.json:
        print(json.dumps(record(done), indent=2))
        return 0
    print(f"{', '.join(done.sections)} in {shown(str(done.folder))}, {count(done.files, 'file')} of ramdisks")
    limit = len(done.skipped) if options.all else LINES_SHOWN
    for line in done.skipped[:limit]:
        print(f"not made: {shown(line)}", file=sys.stderr)
    if len(done.skipped) > limit:
        print(f"not made: {len(done.skipped) - limit} more; --all or {MANIFEST} has them", file=sys.stderr)
    if done.outside:
        links = "symbolic link leads" if done.outside == 1 else "symbolic links lead"
        print(f"note: {done.outside} {links} out of the ramdisk's folder when followed here", file=sys.stderr)
    for note in contents.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def record(done: Extracted) -> dict[str, object]:
    """What was done, for JSON."""
    return {
        "folder": str(done.folder),
        "sections": list(done.sections),
        "files": done.files,
        "not_made": list(done.skipped),
        "links_leading_outside": done.outside,
    }
