"""A bzImage of x86_64: its setup header, and the kernel proper that it carries compressed.

Source: Linux Documentation/arch/x86/boot.rst. The payload is unpacked here, on the host, and entered directly:
the image's own unpacker would take seconds on a software CPU.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from enclavedbg.eif.compression import detect, unpack
from enclavedbg.errors import EifError

HEADER_OFFSET = 0x1F1
"""Of the setup header, both in the file and in boot_params."""
OLDEST_PROTOCOL = 0x20C
"""The boot protocol that brought xloadflags (Linux 3.8)."""
XLF_KERNEL_64 = 1 << 0
UNPACKED_MAX = 1 << 30
"""No kernel is that large; a header may claim more."""

ELF_MAGIC = b"\x7fELF"
ARM64_MAGIC = b"ARMd"
BUILD_BZIMAGE = "build the image with a bzImage for x86_64"


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The fields of the setup header that a loader uses; `raw` is the whole header from HEADER_OFFSET.

    `initrd_addr_max` is the last byte that a ramdisk may occupy, `cmdline_size` excludes the terminating NUL,
    `init_size` is the memory in bytes that the kernel needs from `pref_address` before it can manage its own.
    """

    raw: bytes
    version: int
    initrd_addr_max: int
    cmdline_size: int
    payload_offset: int
    payload_length: int
    pref_address: int
    init_size: int
    kernel_version: str


@dataclass(frozen=True, slots=True)
class BzImage:
    """A checked bzImage; `payload` is a view of the compressed kernel, `compression` the name of its format."""

    header: SetupHeader
    payload: memoryview
    compression: str


@dataclass(frozen=True, slots=True)
class UnpackedKernel:
    """The kernel proper, an ELF file, and the format that it was packed in."""

    elf: bytes
    compression: str


def parse_bzimage(kernel: bytes | memoryview) -> BzImage:
    """Check a Kernel section and find its payload; raises EifError for all that is not a 64-bit bzImage."""
    view = memoryview(kernel).toreadonly().cast("B")
    _check_kind(view)
    header_end = 0x202 + view[0x201]
    setup_size = ((view[HEADER_OFFSET] or 4) + 1) * 512
    (version,) = struct.unpack_from("<H", view, 0x206)
    if version < OLDEST_PROTOCOL:
        raise EifError(
            f"the kernel has boot protocol {version >> 8}.{version & 0xFF:02}, at least 2.12 (Linux 3.8) is needed; "
            "build the image with a newer kernel"
        )
    if header_end < 0x268 or setup_size > len(view):
        raise EifError(f"the kernel's setup header is cut short; {BUILD_BZIMAGE}")
    (xloadflags,) = struct.unpack_from("<H", view, 0x236)
    if not xloadflags & XLF_KERNEL_64:
        raise EifError(f"the kernel has no 64-bit entry point, it is a 32-bit one; {BUILD_BZIMAGE}")
    initrd_addr_max, cmdline_size = struct.unpack_from("<I", view, 0x22C)[0], struct.unpack_from("<I", view, 0x238)[0]
    payload_offset, payload_length = struct.unpack_from("<II", view, 0x248)
    pref_address, init_size = struct.unpack_from("<QI", view, 0x258)
    start = setup_size + payload_offset
    if payload_length < 4 or start + payload_length > len(view):
        raise EifError(
            f"the kernel's payload ends at {start + payload_length:#x}, the kernel at {len(view):#x}: it is truncated; "
            f"{BUILD_BZIMAGE}"
        )
    header = SetupHeader(
        raw=bytes(view[HEADER_OFFSET:header_end]),
        version=version,
        initrd_addr_max=initrd_addr_max,
        cmdline_size=cmdline_size,
        payload_offset=payload_offset,
        payload_length=payload_length,
        pref_address=pref_address,
        init_size=init_size,
        kernel_version=_kernel_version(view),
    )
    payload = view[start : start + payload_length]
    plain = bytes(payload[:4]) == ELF_MAGIC
    return BzImage(header, payload, "none" if plain else detect(payload) or "unknown")


def _check_kind(view: memoryview) -> None:
    """Tell a bzImage from all that people put in its place."""
    if bytes(view[0x38:0x3C]) == ARM64_MAGIC:
        raise EifError(f"the kernel is an arm64 Image, expected one for x86_64; {BUILD_BZIMAGE}")
    if bytes(view[:4]) == ELF_MAGIC:
        raise EifError("the kernel is an ELF file (vmlinux), an enclave boots a bzImage; use arch/x86/boot/bzImage")
    if len(view) < 0x268 or bytes(view[0x202:0x206]) != b"HdrS" or bytes(view[0x1FE:0x200]) != b"\x55\xaa":
        raise EifError(
            f"the kernel is no bzImage: {len(view)} bytes that begin with {bytes(view[:8])!r} and no HdrS at 0x202; "
            f"{BUILD_BZIMAGE}"
        )


def _kernel_version(view: memoryview) -> str:
    """The version text that the header points to, or "" where there is none."""
    (pointer,) = struct.unpack_from("<H", view, 0x20E)
    if not pointer:
        return ""
    text = bytes(view[pointer + 0x200 : pointer + 0x200 + 256]).partition(b"\0")[0]
    return "".join(c if c.isprintable() else "?" for c in text.decode("utf-8", "replace"))


def unpack_kernel(image: BzImage) -> UnpackedKernel:
    """The ELF file in a bzImage, unpacked up to the kernel's own init_size; raises EifError."""
    limit = min(image.header.init_size, UNPACKED_MAX)
    if image.compression == "none":
        return UnpackedKernel(bytes(image.payload), "none")
    # All formats but gzip, which has it itself, carry the unpacked size behind their stream.
    stream = image.payload if image.compression == "gzip" else image.payload[:-4]
    try:
        unpacked = unpack(stream, limit=limit)
    except EifError as error:
        raise EifError(f"the kernel's payload: {error}") from error
    if unpacked.data[:4] != ELF_MAGIC:
        raise EifError(
            f"the kernel's payload unpacks to {unpacked.data[:4]!r}..., expected an ELF file; {BUILD_BZIMAGE}"
        )
    return UnpackedKernel(unpacked.data, unpacked.format)
