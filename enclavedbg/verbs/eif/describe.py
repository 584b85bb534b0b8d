"""`enclavedbg eif describe FILE`: what an image is; JSON of nitro-cli describe-eif, or a table for people."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from enclavedbg.eif.describe import Description, describe
from enclavedbg.eif.source import open_source
from enclavedbg.eif.text import safe
from enclavedbg.verbs.eif.output import measuring_warnings, print_json, warn

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and --json."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument(
        "--json", action="store_true", help="JSON as nitro-cli describe-eif prints it; so also when piped"
    )


def run(options: argparse.Namespace) -> int:
    """Print the description; 0, also for a wrong CRC or a signature of another image, as nitro-cli does."""
    with open_source(options.file) as source:
        description = describe(source)
    if options.json or not sys.stdout.isatty():
        warn(measuring_warnings(description.walk, description.measured))
        print_json(description.as_json())
    else:
        _print_table(options.file, description)
    return 0


def _print_table(path: Path, description: Description) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(table(path, description, now=datetime.now(UTC)))
    console.print(_sections(description))
    for problem in description.walk.problems:
        stops = ", ".join(sorted(reader.value for reader in problem.stops))
        who = f" [refused by {stops}]" if stops else ""
        console.print(f"{problem.id}: {safe(problem.message)}{who}", markup=False)


def table(path: Path, description: Description, *, now: datetime) -> Table:
    """Everything but the sections, as two columns; `now` is when the certificate should be valid."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    walk, measured = description.walk, description.measured
    crc = "good" if measured.crc_matches else f"WRONG: computed {measured.crc32:08x}; damaged or changed since built"
    rows = [
        ("file", f"{path}, {walk.size} bytes"),
        ("format", f"version {walk.header.version}, {walk.header.architecture}"),
        ("CRC-32", f"{measured.stated_crc32:08x}, {crc}"),
        *((f"PCR{index}", value.hex()) for index, value in measured.measurements.as_mapping().items()),
        *_signature_rows(description, now=now),
        *_metadata_rows(description),
    ]
    for name, value in rows:
        grid.add_row(Text(safe(name)), Text(safe(value)))
    return grid


def _signature_rows(description: Description, *, now: datetime) -> list[tuple[str, str]]:
    certificate = description.certificate
    if certificate is None:
        return [("signature", "none: PCR8 is zero in the enclave, so no policy can ask for a signer")]
    if description.signature_check:
        meaning = "good: made with the certificate's key, and for this image (its PCR0)"
    else:
        meaning = "WRONG: made with the certificate's key, but for another image (another PCR0); sign it again"
    when = f"{certificate.not_before:%Y-%m-%d %H:%M} to {certificate.not_after:%Y-%m-%d %H:%M} UTC"
    if not certificate.valid_at(now):
        ended = "has ended" if now > certificate.not_after else "has not begun"
        when += f": {ended.upper()}, nitro-cli run-enclave refuses the image (E59)"
    issuer = "itself" if certificate.issuer_name == certificate.subject else certificate.issuer_name
    return [
        ("signature", meaning),
        ("certificate", f"{certificate.subject or '(no name)'}, key on {certificate.key}"),
        (
            "issued by",
            f"{issuer or '(no name)'}, {certificate.algorithm}; neither nitro-cli nor the enclave checks by whom",
        ),
        ("valid", when),
    ]


def _metadata_rows(description: Description) -> list[tuple[str, str]]:
    metadata = description.metadata
    if metadata is None:
        return [("metadata", "none")]
    build = metadata.build
    rows = [
        ("image", f"{metadata.name}, version {metadata.version}"),
        ("built", f"{build['BuildTime']} by {build['BuildTool']} {build['BuildToolVersion']}"),
        ("kernel", f"{build['OperatingSystem']} {build['KernelVersion']}"),
    ]
    if isinstance(metadata.docker, dict):
        tags = metadata.docker.get("RepoTags")
        named = ", ".join(str(tag) for tag in tags) if isinstance(tags, list) else ""
        rows.append(("docker", f"{named or metadata.docker.get('Id', 'yes')} (all of it with --json)"))
    for name, value in (metadata.custom or {}).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append((f"own: {name}", shown))
    return rows


def _sections(description: Description) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    sections = Table(box=SIMPLE)
    for heading in ("section", "offset", "bytes", "measured in"):
        sections.add_column(heading, justify="right" if heading in ("offset", "bytes") else "left")
    ramdisks = 0
    for section in description.walk.walked.sections:
        pcrs = {"kernel": "PCR0, PCR1", "cmdline": "PCR0, PCR1", "signature": "PCR8 (its certificate)"}
        if section.name == "ramdisk":
            pcrs["ramdisk"] = "PCR0, PCR2" if ramdisks else "PCR0, PCR1"
            ramdisks += 1
        sections.add_row(section.name, f"{section.offset:#x}", str(section.size), pcrs.get(section.name, "nothing"))
    return sections
