"""`enclavedbg eif build --output FILE …`: make an image of parts, of a folder, or of a container image."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from enclavedbg.cli import parse_size
from enclavedbg.eif.text import safe
from enclavedbg.options import UsageError
from enclavedbg.verbs.eif.output import print_json

if TYPE_CHECKING:
    from enclavedbg.eif.build.boot import Boot
    from enclavedbg.eif.build.builders import About, Built


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to build of, what to run, what boots it, and what it says of itself."""
    parser.epilog = (
        "Same inputs give the same bytes. Files in the ramdisks have the time SOURCE_DATE_EPOCH, else 1970, and it "
        "moves the PCRs; the build time is in no PCR. Nothing is fetched: docker save, skopeo copy or buildctl make "
        "files of container images."
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="the image to write")

    source = parser.add_argument_group("the application: one of these").add_mutually_exclusive_group(required=False)
    source.add_argument("--root", type=Path, metavar="DIR", help="its root folder; with --command")
    source.add_argument(
        "--container", type=Path, metavar="PATH", help="an OCI image layout (folder or archive) or docker save archive"
    )
    source.add_argument(
        "--ramdisk", type=Path, metavar="FILE", nargs="+", action="extend", help="finished ramdisks, in their order"
    )
    add("--tag", type=_text, metavar="NAME", help="which image, where --container has several")

    run = parser.add_argument_group("what it runs")
    command = run.add_mutually_exclusive_group()
    command.add_argument(
        "--command", type=_text, metavar="WORDS", help="the program and its arguments, quoted as in a shell"
    )
    command.add_argument("--command-file", type=Path, metavar="FILE", help="the same, a word in each line")
    run.add_argument(
        "--env", type=_text, action="append", metavar="K=V", default=[], help="a variable; may come several times"
    )
    run.add_argument("--env-file", type=Path, metavar="FILE", help="variables, K=V in each line")

    boot = parser.add_argument_group("what boots it; default: the packaged demo's kernel and init")
    boot.add_argument(
        "--from", dest="source", type=Path, metavar="EIF", help="kernel, command line and first ramdisk of this image"
    )
    boot.add_argument("--kernel", type=Path, metavar="FILE", help="bzImage, or Image for aarch64")
    boot.add_argument("--kernel-config", type=Path, metavar="FILE", help="its .config, which names it in the metadata")
    boot.add_argument("--cmdline", type=_text, metavar="TEXT", help="the kernel's command line; default: nitro-cli's")
    boot.add_argument("--init", type=Path, metavar="FILE", help="the first program")
    boot.add_argument("--nsm", type=Path, metavar="FILE", help="nsm.ko, for kernels without that driver")
    boot.add_argument("--arch", choices=["x86_64", "aarch64"], help="default: the kernel's")

    about = parser.add_argument_group("what it says of itself")
    about.add_argument("--name", type=_text, help="default: the container image's name, or the program's or kernel's")
    about.add_argument("--version", type=_text, help="default: the container image's id, or 1.0")
    about.add_argument("--metadata", type=Path, metavar="FILE", help="your own JSON, at most 4096 bytes")
    about.add_argument(
        "--build-time", metavar="TIME", help="e.g. 2026-07-05T12:00:00Z; default: SOURCE_DATE_EPOCH, else the "
        "container image's, else 1970"
    )  # fmt: skip

    add("--keep-modes", action="store_true", help="take permissions in --root as they are, not as 755 and 644")
    add("--limit", type=parse_size, default=8 << 30, metavar="SIZE", help="what layers may unpack to; default: 8G")


def run(options: argparse.Namespace) -> int:
    """Build, then print the measurements as nitro-cli build-enclave does; 0."""
    from enclavedbg.eif.build.boot import gather_boot
    from enclavedbg.eif.describe import measurements_json

    _check(options)
    about = _about(options)
    boot = gather_boot(
        kernel=options.kernel,
        cmdline=options.cmdline,
        init=options.init,
        nsm=options.nsm,
        source=options.source,
        kernel_config=options.kernel_config,
        architecture=options.arch,
        with_ramdisk=not options.ramdisk or options.source is not None,
        mtime=about.mtime,
    )
    built = _build(options, boot, about)
    for note in built.notes:
        print(f"enclavedbg: note: {safe(note)}", file=sys.stderr)
    print_json({"Measurements": measurements_json(built.measurements)})
    return 0


def _text(argument: str) -> str:
    """An argument's bytes as UTF-8, in whatever locale: the image must not depend on that."""
    return os.fsencode(argument).decode("utf-8", "surrogateescape")


def _check(options: argparse.Namespace) -> None:
    if not (options.root or options.container or options.ramdisk):
        raise UsageError("nothing to build of; give --root DIR, --container PATH or --ramdisk FILE")
    if options.root and options.command is None and options.command_file is None:
        raise UsageError("a folder does not say what to run; add --command or --command-file")
    if options.tag is not None and not options.container:
        raise UsageError("--tag chooses in what --container names; leave it out")
    if options.keep_modes and not options.root:
        raise UsageError("--keep-modes is for --root; leave it out")
    if options.ramdisk:
        given = {
            "--command": options.command,
            "--command-file": options.command_file,
            "--env": options.env,
            "--env-file": options.env_file,
            "--init": options.init,
            "--nsm": options.nsm,
        }
        if useless := [name for name, value in given.items() if value]:
            raise UsageError(f"finished ramdisks are not changed; leave out {', '.join(useless)}")


def _about(options: argparse.Namespace) -> About:
    from enclavedbg.eif.build.builders import About
    from enclavedbg.eif.build.image import parse_build_time, read_custom_metadata, source_date_epoch

    epoch = source_date_epoch(os.environ)
    build_time = None if epoch is None else datetime.fromtimestamp(epoch, UTC)
    if options.build_time is not None:
        build_time = parse_build_time(options.build_time)
    custom = None if options.metadata is None else read_custom_metadata(options.metadata)
    return About(options.name, options.version, custom, build_time, epoch or 0)


def _build(options: argparse.Namespace, boot: Boot, about: About) -> Built:
    from enclavedbg.eif.build import builders
    from enclavedbg.eif.build.command import (
        parse_environment,
        read_command_file,
        read_environment_file,
        split_command,
    )
    from enclavedbg.eif.build.container import read_container

    if options.ramdisk:
        return builders.build_from_parts(options.output, boot=boot, ramdisks=options.ramdisk, about=about)
    command = None
    if options.command is not None:
        command = split_command(options.command)
    elif options.command_file is not None:
        command = read_command_file(options.command_file)
    environment = read_environment_file(options.env_file) if options.env_file is not None else {}
    environment |= parse_environment(options.env)
    if options.root:
        return builders.build_from_folder(
            options.output,
            options.root,
            boot=boot,
            command=command or [],
            environment=environment,
            about=about,
            keep_modes=options.keep_modes,
        )
    container = read_container(options.container, tag=options.tag, architecture=boot.architecture, limit=options.limit)
    return builders.build_from_container(
        options.output, container, boot=boot, command=command, environment=environment, about=about
    )
