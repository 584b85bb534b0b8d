"""A sound image in nitro-cli's layout, made in code, and the means to spoil one thing of it."""

from __future__ import annotations

import gzip
import stat
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from enclavedbg.eif import build_metadata, write_eif
from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.lint import Finding, lint
from tests.machine.boot.kernels import bzimage, elf

NOW = datetime(2026, 7, 5, tzinfo=UTC)
RELEASE = "6.6.79"
CMDLINE = b"reboot=k panic=30 pci=off nomodules console=ttyS0"
OPTIONS = (
    "VIRTIO_VSOCKETS VIRTIO_MMIO VIRTIO_MMIO_CMDLINE_DEVICES BLK_DEV_INITRD BINFMT_ELF DEVTMPFS TMPFS PROC_FS SYSFS "
    "UNIX98_PTYS CGROUPS MODULES SERIAL_8250_CONSOLE RD_GZIP IA32_EMULATION COMPAT"
)
CONFIG = dict.fromkeys(OPTIONS.split(), "y") | {"NSM": "m"}
STRINGS = b"\0vmw_vsock_virtio_transport\0virtio-mmio\0virtio_mmio.device\0nsm-hwrng\0"

DIRECTORY = stat.S_IFDIR | 0o755
LINKER = "/lib64/ld-linux-x86-64.so.2"
Files = dict[str, CpioEntry | bytes | None]


def program(
    *,
    machine: int = 62,
    bits: int = 64,
    kind: int = 2,
    interpreter: str | None = None,
    needed: Sequence[str] = (),
    soname: str | None = None,
    rpath: str | None = None,
    runpath: str | None = None,
    tail: bytes = b"",
) -> bytes:
    """An ELF file with the headers that the kernel and the dynamic linker read, and no code."""
    header, entry, start = (64, 56, 0x40_0000) if bits == 64 else (52, 32, 0x804_8000)
    strings = b"\0"
    tags: list[tuple[int, int]] = []
    for tag, texts in ((1, needed), (14, [soname]), (15, [rpath]), (29, [runpath])):
        for text in filter(None, texts):
            tags.append((tag, len(strings)))
            strings += text.encode() + b"\0"
    count = 2 + (interpreter is not None)
    name_at = header + entry * count
    name = b"" if interpreter is None else interpreter.encode() + b"\0"
    strings_at = name_at + len(name)
    dynamic_at = strings_at + len(strings)
    tags += [(5, start + strings_at), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ" if bits == 64 else "<II", *tag) for tag in tags)
    size = dynamic_at + len(dynamic)
    segments = [(1, 0, size), (2, dynamic_at, len(dynamic))]
    if interpreter is not None:
        segments.append((3, name_at, len(name)))
    headers = b""
    for segment, at, length in segments:
        if bits == 64:
            headers += struct.pack("<IIQQQQQQ", segment, 5, at, start + at, start + at, length, length, 8)
        else:
            headers += struct.pack("<IIIIIIII", segment, at, start + at, start + at, length, length, 5, 4)
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    rest = struct.pack("<HHI", kind, machine, 1)
    rest += struct.pack(
        "<QQQIHHHHHH" if bits == 64 else "<IIIIHHHHHH", start, header, 0, 0, header, entry, count, 0, 0, 0
    )
    return ident + rest + headers + name + strings + dynamic + tail


def module(*, release: str = RELEASE, machine: int = 62, extra: str = "", tail: bytes = b"") -> bytes:
    """A kernel module as far as lint looks."""
    return program(machine=machine, kind=1, tail=f"\0vermagic={release} SMP mod_unload {extra}\0".encode() + tail)


def config_bytes(options: Mapping[str, str]) -> bytes:
    text = "".join(f"CONFIG_{name}={value}\n" for name, value in options.items())
    return b"IKCFG_ST" + gzip.compress(text.encode(), mtime=0) + b"IKCFG_ED"


def kernel(config: Mapping[str, str] | None = CONFIG, *, strings: bytes = STRINGS, **changes: int) -> bytes:
    """A bzImage that carries a configuration (None: not) and the strings of its drivers."""
    code = strings + (b"" if config is None else config_bytes(config))
    payload = gzip.compress(elf([(0x100_0000, code, len(code))]), mtime=0)
    return bzimage(payload, name=f"{RELEASE} (someone) #1".encode(), **changes)


def arm64(*, text_offset: int = 0x20_0000, flags: int = 0, config: Mapping[str, str] = CONFIG) -> bytes:
    """An arm64 Image."""
    head = struct.pack("<IIQQQ", 0, 0, text_offset, 0x10_0000, flags) + bytes(24) + b"ARM\x64" + bytes(4)
    return head + f"\0Linux version {RELEASE} (x) #1\n".encode() + STRINGS + config_bytes(config)


def bootstrap(machine: int = 62) -> Files:
    """The first ramdisk of a sound image."""
    return {
        "dev": None,
        "init": program(machine=machine, tail=b"/proc/cgroups\0"),
        "nsm.ko": module(machine=machine),
    }


def application() -> Files:
    """The second: a program with an interpreter, libraries in several places, and symbolic links on the way."""
    return {
        "cmd": b"/app/run\n-v\n",
        "env": b"PATH=/usr/local/bin:/bin\nLD_LIBRARY_PATH=/opt/lib\n",
        "rootfs": None,
        **{f"rootfs/{name}": None for name in ("dev", "proc", "run", "sys", "tmp", "app", "usr", "opt", "opt/lib")},
        "rootfs/usr/bin": None,
        "rootfs/usr/lib": None,
        "rootfs/usr/lib64": None,
        "rootfs/lib": link("usr/lib"),
        "rootfs/lib64": link("/usr/lib64"),
        "rootfs/bin": link("usr/bin"),
        "rootfs/usr/bin/sh": program(),
        "rootfs/app/run": program(interpreter=LINKER, needed=["liba.so.1", "libc.so.6"], runpath="$ORIGIN/../app/lib"),
        "rootfs/app/lib": None,
        "rootfs/app/lib/liba.so.1": program(kind=3, needed=["libb.so.2", "libc.so.6"], soname="liba.so.1"),
        "rootfs/opt/lib/libb.so.2": program(kind=3, soname="libb.so.2"),
        f"rootfs/usr{LINKER}": program(kind=3),
        "rootfs/usr/lib64/libc.so.6": program(kind=3),
    }


def link(target: str) -> CpioEntry:
    return CpioEntry("", stat.S_IFLNK | 0o777, data=target.encode())


def plain(data: bytes) -> CpioEntry:
    """A file that is not executable."""
    return CpioEntry("", stat.S_IFREG | 0o644, data=data)


def ramdisk(files: Mapping[str, CpioEntry | bytes | None]) -> bytes:
    """A cpio archive: folders are None, programs bytes."""
    entries = []
    for name, value in files.items():
        if value is None:
            entries.append(CpioEntry(name, DIRECTORY))
        elif isinstance(value, bytes):
            entries.append(CpioEntry(name, stat.S_IFREG | 0o755, data=value))
        else:
            entries.append(CpioEntry(name, value.mode, data=value.data))
    return write_newc(entries)


def metadata(version: str = RELEASE) -> dict[str, object]:
    return build_metadata(name="t", version="1", build_time=NOW, kernel_version=version)


def image(
    *,
    boot: Files | None = None,
    app: Files | None = None,
    drop: Sequence[str] = (),
    cmdline: bytes = CMDLINE,
    kernel_data: bytes | None = None,
    ramdisks: Sequence[bytes] | None = None,
    architecture: str = "x86_64",
    kernel_version: str = RELEASE,
    signature: bytes | None = None,
) -> bytes:
    """The sound image with `boot` and `app` put over its files, without the paths in `drop`."""
    machine = 62 if architecture == "x86_64" else 183
    parts = [bootstrap(machine) | (boot or {}), application() | (app or {})]
    made = [ramdisk({name: value for name, value in files.items() if name not in drop}) for files in parts]
    return write_eif(
        kernel=kernel() if kernel_data is None else kernel_data,
        cmdline=cmdline,
        ramdisks=made if ramdisks is None else ramdisks,
        metadata=metadata(kernel_version),
        architecture=architecture,
        signature=signature,
    )


def findings(data: bytes, *, memory: int | None = 256 << 20, now: datetime = NOW) -> dict[str, Finding]:
    """By id; memory is given, so that nothing is said about it."""
    return {finding.id: finding for finding in lint(data, memory=memory, now=now).findings}


def ids(data: bytes, *, memory: int | None = 256 << 20, now: datetime = NOW) -> list[str]:
    return sorted(finding.id for finding in lint(data, memory=memory, now=now).findings)
