"""What boots an image: kernel, command line and first ramdisk, from files, from another image, or the packaged ones."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from enclavedbg.eif.build.contents import Contents, InMemory, read_input
from enclavedbg.eif.build.ramdisk import bootstrap_ramdisk
from enclavedbg.eif.cpio import read_newc
from enclavedbg.eif.ramdisk import decompress
from enclavedbg.eif.reader import EifImage, read_eif
from enclavedbg.errors import EifError

ARCHITECTURES = ("x86_64", "aarch64")
COMMAND_LINES = {
    "x86_64": "reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp "
    "i8042.dumbkbd random.trust_cpu=on",
    "aarch64": "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on root=/dev/ram0",
}
"""Those of nitro-cli, for a kernel that comes without one."""
INIT_SEARCH_LIMIT = 256 << 20
CONFIG_LIMIT = 4 << 20

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
_CONFIG_TITLE = re.compile(r"# ([A-Za-z]+)/\S+ ([0-9][^ -]*)")
_RELEASE = re.compile(rb"Linux version ([0-9][!-~]{0,63}) ")


@dataclass(frozen=True, slots=True)
class Boot:
    """The parts of an image that are not the application, and what its metadata says of the kernel.

    `ramdisk` is the first one, None when there is no need of it; `notes` are sentences on what was chosen.
    """

    kernel: memoryview
    cmdline: bytes
    ramdisk: Contents | None
    architecture: str
    operating_system: str
    kernel_version: str
    image_name: str | None
    notes: tuple[str, ...] = ()


def gather_boot(
    *,
    kernel: Path | None = None,
    cmdline: str | None = None,
    init: Path | None = None,
    nsm: Path | None = None,
    source: Path | None = None,
    kernel_config: Path | None = None,
    architecture: str | None = None,
    with_ramdisk: bool = True,
    mtime: int = 0,
) -> Boot:
    """Files named, else the parts of the image `source`, else those of the packaged demo image.

    A kernel file without a command line gets nitro-cli's, one without an init the packaged init. `init` or `nsm`
    make a new first ramdisk. `kernel_config` is the .config whose third line names the kernel for the metadata.
    Raises EifError for what cannot be read or is for another architecture than `architecture`.
    """
    notes: list[str] = []
    base = None
    if source is not None:
        base = read_eif(source)
    elif kernel is None:
        base = packaged_image()
    image = memoryview(b"")
    if kernel is not None:
        image = read_input(kernel, what="the kernel")
    elif base is not None:
        image = base.kernel
    architecture = _architecture(image, base, architecture)
    line = cmdline.strip().encode("utf-8", "surrogateescape") if cmdline is not None else None
    if line is None:
        line = base.cmdline if base is not None else COMMAND_LINES[architecture].encode()
    if source is None and kernel is None:
        notes.append(f"the kernel is the packaged demo's, Linux {kernel_release(image)}: name another with --kernel")
    elif cmdline is None and base is None:
        notes.append("the kernel's command line is nitro-cli's: name another with --cmdline")
    ramdisk: Contents | None = None
    if with_ramdisk:
        ramdisk = _first_ramdisk(base, init, nsm, architecture, notes, mtime=mtime)
    system, version = _kernel_name(kernel_config, image, base if kernel is None else None)
    # The same string in every locale.
    name = os.fsencode(kernel.name).decode("utf-8", "surrogateescape") if kernel is not None else None
    if source is not None and base is not None and base.metadata is not None:
        stated = base.metadata.get("ImageName")
        name = stated if isinstance(stated, str) else name
    return Boot(image, line, ramdisk, architecture, system, version, name, tuple(notes))


def packaged_image() -> EifImage:
    """The demo image inside the package; raises EifError when the installation lacks it."""
    return read_eif(Path(str(resources.files("enclavedbg") / "data" / "demo.eif")))


def kernel_architecture(kernel: memoryview) -> str | None:
    """`x86_64` for a bzImage, `aarch64` for an arm64 Image, None for anything else."""
    if bytes(kernel[0x202:0x206]) == b"HdrS":
        return "x86_64"
    return "aarch64" if bytes(kernel[0x38:0x3C]) == b"ARM\x64" else None


def kernel_release(kernel: memoryview) -> str | None:
    """The release that a kernel tells of itself, such as `6.6.79`; None when it tells none.

    A bzImage has it in its setup (Documentation/arch/x86/boot.rst, kernel_version), an uncompressed Image in its
    banner.
    """
    match kernel_architecture(kernel):
        case "x86_64":
            start = int.from_bytes(kernel[0x20E:0x210], "little") + 0x200
            text = bytes(kernel[start : start + 64]).split(b"\0")[0].split(b" ")[0]
        case "aarch64":
            banner = _RELEASE.search(kernel)
            text = banner[1] if banner else b""
        case _:
            return None
    return text.decode("ascii") if re.fullmatch(rb"[0-9][!-~]*", text) else None


def _architecture(kernel: memoryview, base: EifImage | None, wanted: str | None) -> str:
    found = kernel_architecture(kernel) or (base.architecture if base is not None else None)
    if wanted is not None and found is not None and found != wanted:
        raise EifError(f"the kernel is for {found}, the image for {wanted}; name another with --kernel or --from")
    return wanted or found or ARCHITECTURES[0]


def _first_ramdisk(
    base: EifImage | None, init: Path | None, nsm: Path | None, architecture: str, notes: list[str], *, mtime: int
) -> Contents:
    if init is None and nsm is None and base is not None:
        if not base.ramdisks:
            raise EifError("the image to take the first ramdisk from has none; name an init with --init")
        return InMemory(base.ramdisks[0])
    if init is not None:
        program = read_input(init, what="the init")
    else:
        program = _init_of(base if base is not None else packaged_image())
        if base is None:
            notes.append("init is the packaged demo's: name another with --init")
    machine = _ELF_MACHINES.get(int.from_bytes(program[18:20], "little")) if bytes(program[:4]) == b"\x7fELF" else None
    if machine is not None and machine != architecture:
        raise EifError(f"init is a program for {machine}, the image is for {architecture}; name another with --init")
    driver = None if nsm is None else InMemory(read_input(nsm, what="the NSM driver"))
    return bootstrap_ramdisk(InMemory(program), nsm=driver, mtime=mtime)


def _init_of(image: EifImage) -> memoryview:
    if image.ramdisks:
        for entry in read_newc(decompress(image.ramdisks[0], limit=INIT_SEARCH_LIMIT)):
            if entry.name.removeprefix("./").lstrip("/") == "init" and entry.is_file:
                return memoryview(entry.data)
    raise EifError("the first ramdisk of the image has no file init; name one with --init")


def _kernel_name(config: Path | None, kernel: memoryview, base: EifImage | None) -> tuple[str, str]:
    """Operating system and version in the form of nitro-cli's metadata: `Linux`, `6.6.79`."""
    if config is not None:
        text = str(read_input(config, what="the kernel's configuration", limit=CONFIG_LIMIT), "utf-8", "replace")
        title = next((match for line in text.split("\n")[2:3] if (match := _CONFIG_TITLE.match(line))), None)
        if title is None:
            raise EifError(f"{config} does not name its kernel in the third line; name a kernel's .config")
        return title[1], title[2]
    release = kernel_release(kernel)
    if release is not None:
        return "Linux", release.partition("-")[0]
    stated = base.metadata.get("BuildMetadata") if base is not None and base.metadata else None
    if isinstance(stated, Mapping):
        system, version = stated.get("OperatingSystem"), stated.get("KernelVersion")
        if isinstance(system, str) and isinstance(version, str):
            return system, version
    return "Linux", "Unknown"
