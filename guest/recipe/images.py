"""Put the images together. Equal parts give equal bytes: nothing here looks at a clock, a user or a folder's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from enclavedbg.eif.cpio import read_newc
from enclavedbg.eif.metadata import build_metadata
from enclavedbg.eif.reader import read_eif
from enclavedbg.eif.writer import write_eif

from .errors import RecipeError
from .programs import source_files
from .ramdisk import MTIME, File, Module, application_ramdisk, bootstrap_ramdisk

DATA = Path(__file__).resolve().parent.parent.parent / "enclavedbg" / "data"
RECIPE_VERSION = "1"
COMMAND_LINE = b"reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on"
"""nitro-cli's, without the words about a keyboard controller, whose driver the demo kernel does not have."""
DEBIAN_COMMAND_LINE = (
    b"reboot=k panic=30 pci=off nomodules console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd "
    b"random.trust_cpu=on"
)
"""nitro-cli's, word for word."""
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
CRASH_MODULE = "lib/modules/lkdtm.ko"
"""The kernel's own module for going wrong on purpose; the demo program loads it when it is told to."""


@dataclass(frozen=True)
class Parts:
    """What a demo image is made of, besides the sources in the tree."""

    kernel: bytes
    kernel_release: str
    init: bytes
    demo: bytes
    crash_module: bytes


def demo_image(parts: Parts) -> bytes:
    """Return the demo EIF."""
    root = {
        "demo": File(parts.demo, executable=True),
        CRASH_MODULE: File(parts.crash_module),
        **{path: File(data) for path, data in source_files("init", "demo").items()},
    }
    return _image("enclavedbg-demo", parts, root, command=["/demo"])


def stress_image(parts: Parts, stress: bytes, arguments: Sequence[str] = ()) -> bytes:
    """Return an EIF with the demo's kernel whose program is stress, with the arguments given."""
    modules = {CRASH_MODULE: File(parts.crash_module)}
    return _check_image("stress", parts, stress, [f"module=/{CRASH_MODULE}", *arguments], modules)


def nsm_check_image(parts: Parts, program: bytes, arguments: Sequence[str] = ()) -> bytes:
    """Return an EIF with the demo's kernel whose program is nsm-check, with the arguments given."""
    return _check_image("nsm-check", parts, program, arguments)


def program_image(
    *,
    name: str,
    kernel: bytes,
    kernel_release: str,
    init: bytes,
    root: Mapping[str, File],
    command: Sequence[str],
    modules: Sequence[Module] = (),
    command_line: bytes = COMMAND_LINE,
) -> bytes:
    """Return an EIF of any kernel and program around our init."""
    return write_eif(
        kernel=kernel,
        cmdline=command_line,
        ramdisks=[
            bootstrap_ramdisk(init, modules),
            application_ramdisk(root, command=command, environment=ENVIRONMENT),
        ],
        metadata=build_metadata(
            name=name,
            version=RECIPE_VERSION,
            build_time=datetime.fromtimestamp(MTIME, UTC),
            build_tool="enclavedbg-guest",
            build_tool_version=RECIPE_VERSION,
            kernel_version=kernel_release,
        ),
    )


def _image(name: str, parts: Parts, root: Mapping[str, File], *, command: Sequence[str]) -> bytes:
    return program_image(
        name=name,
        kernel=parts.kernel,
        kernel_release=parts.kernel_release,
        init=parts.init,
        root=root,
        command=command,
    )


def _check_image(
    name: str, parts: Parts, program: bytes, arguments: Sequence[str], files: Mapping[str, File] | None = None
) -> bytes:
    """An image with a program of PROGRAMS in the place of demo, and its sources."""
    root = {
        name: File(program, executable=True),
        **{path: File(data) for path, data in source_files("init", name).items()},
        **(files or {}),
    }
    return _image(f"enclavedbg-{name}", parts, root, command=[f"/{name}", *arguments])


def packaged_parts(data: Path = DATA) -> Parts:
    """Return the parts of the packaged demo image, so that other images need no compiler.

    :raises RecipeError: the image has not the files it should have
    """
    image = read_eif(data / "demo.eif")
    files = {entry.name: bytes(entry.data) for ramdisk in image.ramdisks for entry in read_newc(ramdisk)}
    try:
        return Parts(
            kernel=bytes(image.kernel),
            kernel_release=kernel_release(bytes(image.kernel)),
            init=files["init"],
            demo=files["rootfs/demo"],
            crash_module=files[f"rootfs/{CRASH_MODULE}"],
        )
    except KeyError as missing:
        raise RecipeError(f"{data / 'demo.eif'} has no {missing}; make it again with guest/build-eif") from None


def packaged_stress(data: Path = DATA) -> bytes:
    """Return the packaged stress program."""
    return (data / "stress").read_bytes()


def packaged_nsm_check(data: Path = DATA) -> bytes:
    """Return the packaged nsm-check program."""
    return (data / "nsm-check").read_bytes()


def kernel_release(bzimage: bytes) -> str:
    """Return the version that a bzImage tells of itself (boot protocol, kernel_version at 0x20e).

    :raises RecipeError: the bytes are no bzImage
    """
    if bzimage[0x202:0x206] != b"HdrS":
        raise RecipeError(f"the kernel is no bzImage: {bzimage[0x202:0x206]!r} at 0x202, expected b'HdrS'")
    start = int.from_bytes(bzimage[0x20E:0x210], "little") + 0x200
    text = bzimage[start : start + 128].split(b"\0")[0].split(b" ")[0]
    if not text:
        raise RecipeError("the bzImage does not tell its version")
    return text.decode("ascii", "replace")
