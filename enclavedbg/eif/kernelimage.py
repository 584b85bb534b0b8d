"""What a Kernel section says of itself without being run: kind, release, configuration, telltale strings.

Source: Linux Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst, kernel/configs.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from enclavedbg.eif.bzimage import ARM64_MAGIC, parse_bzimage, unpack_kernel
from enclavedbg.eif.compression import detect, unpack
from enclavedbg.errors import EifError

CONFIG_START = b"IKCFG_ST"
CONFIG_LIMIT = 8 << 20
"""Bytes of a configuration; they have some 200 kB."""
CONFIG_TRIES = 8
ARM64_HEADER = struct.Struct("<IIQQQ")
"""code0, code1, text_offset, image_size, flags."""
ARM64_HEADER_SIZE = 64
ARM64_CMDLINE_SIZE = 2048
ARM64_BIG_ENDIAN = 1

_RELEASE = re.compile(rb"Linux version ([0-9][!-~]{0,90}) ")
_OPTION = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel looked into. `code` is the kernel proper, unpacked, or None in a format that is not unpacked here.

    `config` maps names without CONFIG_ to values as written, None when the kernel carries no configuration. `end` is
    the address up to which the kernel needs memory for itself; `cmdline_size` the longest command line in bytes,
    without its NUL; `text_offset` is an arm64 Image's, None on x86_64.
    """

    architecture: str
    release: str | None
    compression: str
    end: int
    cmdline_size: int
    text_offset: int | None
    big_endian: bool
    code: bytes | None
    config: Mapping[str, str] | None

    def option(self, name: str) -> str | None:
        """`y`, `m`, `n` or a value; None when there is no configuration to look in."""
        return None if self.config is None else self.config.get(name, "n")

    def contains(self, text: bytes) -> bool | None:
        """Whether the unpacked kernel has these bytes; None when it could not be unpacked."""
        return None if self.code is None else text in self.code


def kernel_kind(kernel: bytes | memoryview) -> str | None:
    """`x86_64` for what begins as a bzImage, `aarch64` for an arm64 Image, None for anything else."""
    if bytes(kernel[0x202:0x206]) == b"HdrS":
        return "x86_64"
    return "aarch64" if bytes(kernel[0x38:0x3C]) == ARM64_MAGIC else None


def read_kernel(kernel: bytes | memoryview, architecture: str = "x86_64") -> KernelImage:
    """Look into a Kernel section; `architecture` is what is expected when its first bytes do not say.

    Raises EifError for what no loader can start.
    """
    view = memoryview(kernel).toreadonly().cast("B")
    if (kernel_kind(view) or architecture) == "aarch64":
        return _read_arm64(view)
    return _read_x86(view)


def _read_x86(view: memoryview) -> KernelImage:
    image = parse_bzimage(view)
    code = None if image.compression == "lzo" else unpack_kernel(image).elf
    header = image.header
    release = header.kernel_version.partition(" ")[0]
    return KernelImage(
        architecture="x86_64",
        release=release or (None if code is None else _release(code)),
        compression=image.compression,
        end=header.pref_address + header.init_size,
        cmdline_size=header.cmdline_size,
        text_offset=None,
        big_endian=False,
        code=code,
        config=None if code is None else read_config(code),
    )


def _read_arm64(view: memoryview) -> KernelImage:
    if kernel_kind(view) != "aarch64" or len(view) < ARM64_HEADER_SIZE:
        packed = detect(view)
        what = f"it is compressed with {packed}" if packed else f"it begins with {bytes(view[:8])!r}"
        raise EifError(
            f"the kernel is no arm64 Image: {what}, expected ARM\\x64 at byte 0x38; use arch/arm64/boot/Image, "
            "uncompressed"
        )
    _, _, text_offset, image_size, flags = ARM64_HEADER.unpack_from(view)
    code = bytes(view)
    return KernelImage(
        architecture="aarch64",
        release=_release(code),
        compression="none",
        end=text_offset + max(image_size, len(view)),
        cmdline_size=ARM64_CMDLINE_SIZE - 1,
        text_offset=text_offset,
        big_endian=bool(flags & ARM64_BIG_ENDIAN),
        code=code,
        config=read_config(code),
    )


def _release(code: bytes) -> str | None:
    found = _RELEASE.search(code)
    return found[1].decode("ascii") if found else None


def read_config(code: bytes) -> dict[str, str] | None:
    """The configuration that CONFIG_IKCONFIG puts into a kernel, by names without CONFIG_; None when there is none."""
    position = 0
    for _ in range(CONFIG_TRIES):
        position = code.find(CONFIG_START, position)
        if position < 0:
            return None
        position += len(CONFIG_START)
        if detect(code[position : position + 8]) == "gzip":
            try:
                text = unpack(memoryview(code)[position:], limit=CONFIG_LIMIT).data.decode("utf-8", "replace")
            except EifError:
                continue
            return {name: value.strip('"') for name, value in _OPTION.findall(text)}
    return None
