"""The three ways to an image: finished ramdisks, a folder, a container image. Equal inputs give equal bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from enclavedbg.eif.build.boot import Boot
from enclavedbg.eif.build.command import encode_command, encode_environment
from enclavedbg.eif.build.container import Container, container_tree
from enclavedbg.eif.build.contents import Contents, InMemory
from enclavedbg.eif.build.docker import created, docker_info, image_name, run_command, run_environment, run_notes
from enclavedbg.eif.build.folder import read_folder
from enclavedbg.eif.build.image import EPOCH, ramdisk_file, write_image
from enclavedbg.eif.build.ramdisk import application_ramdisk
from enclavedbg.eif.measure import Measurements
from enclavedbg.eif.metadata import build_metadata
from enclavedbg.errors import EifError

DEFAULT_NAME = "enclave"
DEFAULT_VERSION = "1.0"


@dataclass(frozen=True, slots=True)
class About:
    """What an image says of itself; None where the way of building has a default.

    `custom` is any JSON value; `build_time` is aware. `mtime`, in seconds since 1970, is that of every file in the
    ramdisks that are made, so it moves the PCRs; `build_time` is in the metadata only and moves none.
    """

    name: str | None = None
    version: str | None = None
    custom: object = None
    build_time: datetime | None = None
    mtime: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """An image that was written: its measurements, and sentences on what may surprise."""

    measurements: Measurements
    notes: tuple[str, ...]


def build_from_parts(output: Path, *, boot: Boot, ramdisks: Sequence[Path], about: About | None = None) -> Built:
    """Write an image of finished ramdisks, behind `boot`'s own if it has one.

    The name is by default that of the kernel's file, the version 1.0, as eif_build has them. Raises EifError.
    """
    parts = [ramdisk_file(path) for path in ramdisks]
    if boot.ramdisk is not None:
        parts.insert(0, boot.ramdisk)
    if not parts:
        raise EifError("an image needs a ramdisk; name one with --ramdisk, or give --root or --container")
    about = about or About()
    return _write(output, boot, parts, about, name=_readable(boot.image_name or DEFAULT_NAME))


def build_from_folder(
    output: Path,
    root: Path,
    *,
    boot: Boot,
    command: Sequence[str],
    environment: Mapping[str, str],
    about: About | None = None,
    keep_modes: bool = False,
) -> Built:
    """Write an image whose application's file system is a folder (see `read_folder` for what is normalised).

    The name is by default that of the command's program, the version 1.0. Raises EifError.
    """
    about = about or About()
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(root)):
        raise EifError(f"{output} lies in the root folder {root}, and would be in the next image; name another place")
    tree, notes = read_folder(root, keep_modes=keep_modes)
    second = application_ramdisk(
        tree, command=encode_command(command), environment=encode_environment(environment), mtime=about.mtime
    )
    return _write(output, boot, _behind(boot, second), about, name=_program_name(command), notes=notes)


def build_from_container(
    output: Path,
    container: Container,
    *,
    boot: Boot,
    command: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    about: About | None = None,
) -> Built:
    """Write an image of a container image's layers, with nitro-cli's choice of what to run.

    `command` replaces the image's, `environment` adds to its own. The name is by default the image's first one
    without its tag, the version its id, the build time when the image was created. Raises EifError.
    """
    about = about or About()
    words = run_command(container) if command is None else command
    variables = run_environment(container) | dict(environment or {})
    cmd, env = encode_command(words), encode_environment(variables)
    tree, notes = container_tree(container)
    return _write(
        output,
        boot,
        _behind(boot, application_ramdisk(tree, command=cmd, environment=env, mtime=about.mtime)),
        about,
        name=image_name(container) or _program_name(words),
        version=container.image_id,
        docker=docker_info(container),
        build_time=created(container),
        notes=[*run_notes(container, own_command=command is not None), *notes],
    )


def _behind(boot: Boot, ramdisk: Contents) -> list[Contents]:
    if boot.ramdisk is None:
        raise EifError("the image needs a first ramdisk with an init; name one with --init or --from")
    return [boot.ramdisk, ramdisk]


def _program_name(command: Sequence[str]) -> str:
    return _readable(PurePosixPath(command[0]).name) or DEFAULT_NAME


def _readable(name: str) -> str:
    """A file's name in UTF-8, as metadata must be, whatever bytes it has."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return DEFAULT_NAME


def _write(
    output: Path,
    boot: Boot,
    ramdisks: Sequence[Contents],
    about: About,
    *,
    name: str,
    version: str = DEFAULT_VERSION,
    docker: object = None,
    build_time: datetime | None = None,
    notes: Sequence[str] = (),
) -> Built:
    metadata = build_metadata(
        name=about.name if about.name is not None else name,
        version=about.version if about.version is not None else version,
        build_time=(about.build_time or build_time or EPOCH).astimezone(UTC),
        operating_system=boot.operating_system,
        kernel_version=boot.kernel_version,
        docker_info=docker,
        custom=about.custom,
    )
    measurements = write_image(
        output,
        kernel=InMemory(boot.kernel),
        cmdline=boot.cmdline,
        ramdisks=ramdisks,
        metadata=metadata,
        architecture=boot.architecture,
    )
    custom = [] if about.custom is None or isinstance(about.custom, dict) else [_NO_OBJECT]
    return Built(measurements, (*boot.notes, *notes, *custom))


_NO_OBJECT = "the metadata file holds no JSON object, and nitro-cli describe-eif fails on such an image"
