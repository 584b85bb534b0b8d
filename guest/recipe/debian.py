"""The second guest: an image around Debian's own 6.12 cloud kernel, which nobody here configured.

Its drivers are modules, and it has no virtio-mmio devices on the command line: it finds them through ACPI. The package
is fetched with apt into the cache folder and only read, never installed. init and the programs are those of the
packaged demo image, so nothing is compiled.
"""

from __future__ import annotations

import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from .apt import Apt, Package, default_apt
from .errors import FetchError, RecipeError
from .images import DEBIAN_COMMAND_LINE, packaged_parts, packaged_stress, program_image
from .programs import source_files
from .ramdisk import File, Module

KERNEL_PATTERN = r"linux-image-6\.12\.[0-9.]+\+deb12(\.[0-9]+)?-cloud-amd64"
DRIVERS = ("virtio_mmio", "vmw_vsock_virtio_transport", "nsm")
"""What an enclave needs; the modules that these depend on come with them, if they are not built in."""
STRESS_MODULE = "crc7"
"""A module that depends on nothing, for loading and unloading."""


@dataclass(frozen=True)
class KernelPackage:
    """What is used of a kernel package: the bzImage and all modules, still compressed, by normalised name."""

    release: str
    bzimage: bytes
    modules: Mapping[str, bytes]


def fetch_kernel(apt: Apt | None = None, *, name: str | None = None) -> Path:
    """Return the .deb of Debian's newest 6.12 cloud kernel in bookworm-backports, downloaded before or now.

    :param name: another package, for example ``linux-image-6.12.95+deb12-cloud-amd64``
    :raises FetchError: it cannot be had, and none was downloaded before
    """
    apt = apt or default_apt()
    if name is None:
        try:
            name = apt.newest(KERNEL_PATTERN)
        except FetchError:
            # Without a network the kernel fetched last time is as good.
            before = sorted(apt.downloads.glob("linux-image-6.12*-cloud-amd64_*.deb"))
            if not before:
                raise
            return before[-1]
    return apt.fetch(Package(name))


def read_package(deb: Path) -> KernelPackage:
    """Read kernel and modules out of a package.

    :raises RecipeError: it is no kernel package
    """
    bzimage, release = None, None
    modules: dict[str, bytes] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./").removeprefix("usr/")
                    if match := re.fullmatch(r"boot/vmlinuz-(.+)", path):
                        release = match[1]
                        bzimage = _contents(archive, member)
                    elif match := re.fullmatch(r"lib/modules/[^/]+/.*/([^/]+)\.ko(\.xz)?", path):
                        modules[normal_name(match[1])] = _contents(archive, member)
        except tarfile.TarError as error:
            raise RecipeError(f"{deb} cannot be read: {error}; delete it and fetch it again") from error
    if bzimage is None or release is None:
        raise RecipeError(f"{deb} has no boot/vmlinuz-*: it is no kernel package")
    return KernelPackage(release, bzimage, modules)


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise RecipeError(f"{member.name} in the package is no regular file")
    return file.read()


def normal_name(name: str) -> str:
    """Return a module's name as the kernel writes it: files may have - where names have _."""
    return name.replace("-", "_")


def decompress_module(data: bytes) -> bytes:
    """Return a module as the kernel links it; Debian 12's 6.12 packages have .ko.xz."""
    if data[:6] != b"\xfd7zXZ\0":
        return data
    try:
        return lzma.decompress(data)
    except lzma.LZMAError as error:
        raise RecipeError(f"a module cannot be decompressed: {error}") from error


def dependencies(module: bytes) -> list[str]:
    """Return the names of the modules that a module needs, from its .modinfo section (``depends=a,b``).

    :raises RecipeError: it is no kernel module
    """
    try:
        section = ELFFile(BytesIO(module)).get_section_by_name(".modinfo")
        fields = [] if section is None else section.data().split(b"\0")
    except (ELFError, ValueError, KeyError, OverflowError) as error:
        raise RecipeError(f"a module is no ELF file: {error}") from error
    for field in fields:
        if field.startswith(b"depends="):
            return [normal_name(name) for name in field[8:].decode("ascii", "replace").split(",") if name]
    raise RecipeError("a module does not tell what it depends on (no depends= in .modinfo)")


def load_order(wanted: Iterable[str], modules: Mapping[str, bytes]) -> list[Module]:
    """Return the wanted modules and all that they need, each after what it depends on, decompressed.

    A wanted module that is not there is taken as built into the kernel; a needed one that is not there is an error.

    :raises RecipeError: a missing or circular dependency
    """
    ordered: dict[str, Module] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in ordered:
            return
        if name in path:
            raise RecipeError(f"the modules {' -> '.join([*path, name])} need each other")
        if name not in modules:
            raise RecipeError(f"the module {path[-1]} needs {name}, which the package does not have")
        data = decompress_module(modules[name])
        for needed in dependencies(data):
            add(needed, (*path, name))
        ordered[name] = Module(name, data)

    for name in wanted:
        if name in modules:
            add(name, ())
    return list(ordered.values())


def debian_image(deb: Path, *, program: str = "demo", arguments: Sequence[str] = ()) -> bytes:
    """Return an EIF of a Debian kernel package whose program is ``demo`` or ``stress``.

    The stress program also gets a module of this kernel to load and unload.

    :raises RecipeError: the package has not what is needed
    """
    package = read_package(deb)
    parts = packaged_parts()
    sources = {path: File(data) for path, data in source_files("init", program).items()}
    root = {program: File(parts.demo if program == "demo" else packaged_stress(), executable=True), **sources}
    command = [f"/{program}"]
    if program == "stress" and STRESS_MODULE in package.modules:
        path = f"lib/modules/{STRESS_MODULE}.ko"
        root[path] = File(decompress_module(package.modules[STRESS_MODULE]))
        command.append(f"module=/{path}")
    return program_image(
        name=f"debian-{program}",
        kernel=package.bzimage,
        kernel_release=package.release,
        init=parts.init,
        root=root,
        command=[*command, *arguments],
        modules=load_order(DRIVERS, package.modules),
        command_line=DEBIAN_COMMAND_LINE,
    )
