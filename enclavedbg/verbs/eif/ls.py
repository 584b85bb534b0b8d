"""`enclavedbg eif ls`: the sections of an image, and the files in its ramdisks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from enclavedbg.eif.archives import Ramdisk
from enclavedbg.eif.contents import Contents, Section, open_contents, parse_place, tree_at
from enclavedbg.eif.filesystem import FileSystem
from enclavedbg.eif.records import archive_record, node_record
from enclavedbg.eif.tree import Node, Tree
from enclavedbg.errors import EifError
from enclavedbg.verbs.eif.limits import add_limit, limits_from
from enclavedbg.verbs.eif.text import archive_text, columns, count, long_row, node_name, shown

NOTES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="/path in what the ramdisks make together, ramdisk0:/path in one of them; default: sections and /",
    )
    parser.add_argument("-l", "--long", action="store_true", help="mode, owner, size, time and ramdisk of each file")
    parser.add_argument("-R", "--recursive", action="store_true", help="all below PATH, one path per line")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    add_limit(parser)


def run(options: argparse.Namespace) -> int:
    contents = open_contents(options.file)
    place = parse_place(options.path or "/")
    if place.section is not None:
        section = contents.section(place.section)
        _print(json.dumps(section_record(section)) if options.json else "\n".join(section_table([section])))
        return 0
    system = contents.filesystem(limits=limits_from(options))
    tree = tree_at(system, place)
    files = list(listing(tree, place.path, recursive=options.recursive))
    if options.json:
        record: dict[str, object] = {} if options.path else image_record(contents, system)
        _print(json.dumps(record | {"files": [node_record(path, node) for path, _, node in files]}, indent=2))
        return 0
    lines = [] if options.path else overview(contents, system)
    rows = [(path if options.recursive else name, node) for path, name, node in files]
    if options.long:
        lines += columns([long_row(name, node) for name, node in rows], right=frozenset({1, 2}))
    else:
        lines += [node_name(name, node) for name, node in rows]
    _print("\n".join(lines))
    if not options.path:
        _notes(contents, tree)
    return 0


def listing(tree: Tree, path: str, *, recursive: bool) -> Iterator[tuple[str, str, Node]]:
    """Path, name and node of what a directory holds, sorted; of a file itself. Raises Missing.

    A symbolic link at the end of `path` is followed when it leads to a directory.
    """
    plain = "/" + path.strip("/")
    node = tree.lookup(path, follow=path.endswith("/"))
    if node.is_symlink:
        try:
            followed = tree.lookup(path)
        except EifError:
            followed = node
        node = followed if followed.is_directory else node
    if not node.is_directory:
        yield plain, plain, node
    elif recursive:
        for below, found in tree.walk(node, plain.rstrip("/")):
            if found is not node:
                yield below, below.rpartition("/")[2], found
    else:
        for name in sorted(node.children):
            yield f"{plain.rstrip('/')}/{name}", name, node.children[name]


def overview(contents: Contents, system: FileSystem) -> list[str]:
    """The image in lines: its sections, then what each ramdisk is made of."""
    header = contents.walk.header
    lines = [f"EIF version {header.version}, {header.architecture}, {contents.walk.size} bytes", ""]
    lines += [*section_table(contents.sections), ""]
    for ramdisk in system.ramdisks:
        lines += _ramdisk_lines(ramdisk)
    return [*lines, "", "/ when all are unpacked:"]


def section_table(sections: tuple[Section, ...] | list[Section]) -> list[str]:
    """Name, place and size of each section, and which PCRs it goes into."""
    rows = [["section", "offset", "size", "measured in"]]
    rows += [[s.name, str(s.offset), str(s.size), _measured(s)] for s in sections]
    return columns(rows, right=frozenset({1, 2}))


def _measured(section: Section) -> str:
    if not section.pcrs:
        return "-"
    names = ", ".join(f"PCR{number}" for number in section.pcrs)
    return names if section.is_measured else f"{names} (its certificate)"


def _ramdisk_lines(ramdisk: Ramdisk) -> list[str]:
    name = f"ramdisk{ramdisk.index}"
    if len(ramdisk.archives) == 1:
        return [f"{name}: {archive_text(ramdisk.archives[0])}"]
    lines = [f"{name}: {count(len(ramdisk.archives), 'archive')}"]
    return lines + [f"  at {archive.offset}: {archive_text(archive)}" for archive in ramdisk.archives]


def section_record(section: Section) -> dict[str, object]:
    """A section for JSON; `offset` is that of its 12-byte header, sizes in bytes."""
    return {"name": section.name, "offset": section.offset, "size": section.size, "pcrs": list(section.pcrs)}


def image_record(contents: Contents, system: FileSystem) -> dict[str, object]:
    """What `overview` says, for JSON."""
    header = contents.walk.header
    return {
        "version": header.version,
        "architecture": header.architecture,
        "size": contents.walk.size,
        "sections": [section_record(section) for section in contents.sections],
        "ramdisks": [
            {
                "name": f"ramdisk{ramdisk.index}",
                "unpacked": ramdisk.unpacked,
                "entries": len(ramdisk.entries),
                "archives": [archive_record(archive) for archive in ramdisk.archives],
            }
            for ramdisk in system.ramdisks
        ],
        "notes": [*contents.notes, *_problems(system.tree)],
    }


def _problems(tree: Tree) -> list[str]:
    return [f"{p.entry.name}: {p.why}" if p.entry is not None else p.why for p in tree.problems]


def _notes(contents: Contents, tree: Tree) -> None:
    """On standard error, so that lists stay lists."""
    notes = [*contents.notes, *_problems(tree)]
    for note in notes[:NOTES_SHOWN]:
        print(f"note: {shown(note)}", file=sys.stderr)
    if len(notes) > NOTES_SHOWN:
        print(f"note: {len(notes) - NOTES_SHOWN} more; --json has them", file=sys.stderr)


def _print(text: str) -> None:
    if text:
        print(text)
