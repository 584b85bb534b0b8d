"""Every rule: silent on a sound image, and heard when one thing of it is spoilt."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import struct
from pathlib import Path

import pytest

from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.format import HEADER_SIZE, OFFSETS_AT, SIZES_AT, SectionType
from enclavedbg.eif.lint import CHECKS, GROUPS, Severity, catalogue, lint
from enclavedbg.eif.lint.header import _PROBLEMS
from enclavedbg.eif.writer import assemble, encode_metadata
from enclavedbg.errors import EifError
from tests.eif.lint.images import (
    CMDLINE,
    CONFIG,
    LINKER,
    STRINGS,
    Files,
    application,
    arm64,
    bootstrap,
    findings,
    ids,
    image,
    kernel,
    link,
    metadata,
    module,
    plain,
    program,
    ramdisk,
)
from tests.machine.boot.kernels import bzimage

ROOT = Path(__file__).parents[3]
SOUND = image()
K, C, R, S, M = SectionType
PARTS = [
    (K, kernel()),
    (C, CMDLINE),
    (M, encode_metadata(metadata())),
    (R, ramdisk(bootstrap())),
    (R, ramdisk(application())),
]


def without(option: str, value: str = "n") -> bytes:
    """A kernel with one option changed, and without strings that would tell otherwise."""
    return kernel(CONFIG | {option: value}, strings=b"")


def arm_image(kernel_data: bytes) -> bytes:
    """The sound image with programs for aarch64."""
    linker = "/lib/ld-linux-aarch64.so.1"
    app: Files = {
        "rootfs/app/run": program(machine=183, interpreter=linker, needed=["libc.so.6"]),
        f"rootfs/usr{linker}": program(machine=183, kind=3),
        "rootfs/usr/lib64/libc.so.6": program(machine=183, kind=3),
    }
    return image(kernel_data=kernel_data, architecture="aarch64", app=app)


def patched(at: int, value: bytes, file: bytes = SOUND) -> bytes:
    return file[:at] + value + file[at + len(value) :]


def test_a_sound_image_has_no_findings() -> None:
    assert ids(SOUND) == []
    assert ids(image(ramdisks=[gzip.compress(ramdisk(bootstrap() | application()))])) == []
    assert ids(image(app={"cmd": b"sh\n"})) == []
    assert ids(image(kernel_data=kernel(None))) == ["kernel-no-config"]
    assert ids(arm_image(arm64())) == ["file-aarch64"]


def test_the_demo_image_has_no_errors_and_no_warnings() -> None:
    report = lint(ROOT / "enclavedbg" / "data" / "demo.eif")
    assert [finding.id for finding in report.findings] == ["memory-needed"] and not report.has_errors
    assert lint(ROOT / "enclavedbg" / "data" / "demo.eif", memory=64 << 20).findings == ()


# A kernel inside a ramdisk, to which the table can lead.
HIDDEN = assemble([*PARTS[:3], (R, struct.pack(">HHQ", K, 0, 4) + b"EVIL"), PARTS[4]])

FILE = {
    "file-version": patched(4, b"\0\5"),
    "file-version-old": assemble([p for p in PARTS if p[0] is not M], version=3),
    "file-flags": patched(6, b"\0\2"),
    "file-reserved": patched(0x18, b"\0\1"),
    "file-section-count": patched(0x1A, b"\0\1"),
    "file-table-spare": patched(OFFSETS_AT + 8 * 20, b"\1"),
    "file-section-type": assemble([*PARTS, (9, b"")]),
    "file-truncated": SOUND[:-1],
    "file-too-many": SOUND + struct.pack(">HHQ", R, 0, 0) * 66_000,
    "file-table-offset": patched(OFFSETS_AT, b"\x7f"),
    "file-table-size": patched(SIZES_AT + 7, b"\7"),
    "file-table-truncated": SOUND[:-1],
    "file-overlap": patched(
        OFFSETS_AT, struct.pack(">Q", HIDDEN.index(b"EVIL") - 12), patched(SIZES_AT, struct.pack(">Q", 4), HIDDEN)
    ),
    "file-out-of-order": patched(
        OFFSETS_AT,
        b"".join(SOUND[OFFSETS_AT + 8 * i :][:8] for i in (0, 2, 1)),
        patched(SIZES_AT, b"".join(SOUND[SIZES_AT + 8 * i :][:8] for i in (0, 2, 1))),
    ),
    "file-gap": patched(
        0x1A,
        b"\0\2",
        patched(OFFSETS_AT + 8, SOUND[OFFSETS_AT + 16 :][:8], patched(SIZES_AT + 8, SOUND[SIZES_AT + 16 :][:8])),
    ),
    "file-section-flags": patched(HEADER_SIZE + 2, b"\0\1"),
    "file-unlisted": SOUND + b"tail",
    "file-views-differ": patched(0x1A, b"\0\4"),
    "file-no-kernel": assemble(PARTS[1:]),
    "file-second-kernel": assemble([*PARTS, PARTS[0]]),
    "file-no-cmdline": assemble([PARTS[0], *PARTS[2:]]),
    "file-second-cmdline": assemble([*PARTS, PARTS[1]]),
    "file-no-metadata": assemble([p for p in PARTS if p[0] is not M]),
    "file-second-metadata": assemble([*PARTS, PARTS[2]]),
    "file-metadata-early": assemble(PARTS, version=3),
    "file-second-signature": assemble([*PARTS, (S, b""), (S, b"")]),
    "file-no-ramdisk": assemble(PARTS[:3]),
    "file-ramdisk-early": assemble([PARTS[3], *PARTS[:3], PARTS[4]]),
    "file-signature-size": assemble([*PARTS, (S, bytes(32769))]),
    "file-trailing": SOUND + b"tail",
    "file-crc": patched(0x223, b"\0" if SOUND[0x223] else b"\1"),
    "file-architecture": assemble(PARTS, flags=1),
    "file-aarch64": arm_image(arm64()),
}

LINE = {
    "cmdline-empty": image(cmdline=b""),
    "cmdline-no-console": image(cmdline=b"reboot=k panic=30"),
    "cmdline-other-console": image(cmdline=CMDLINE + b" console=tty0"),
    "cmdline-no-panic": image(cmdline=b"reboot=k panic=0 console=ttyS0"),
    "cmdline-no-reboot": image(cmdline=b"reboot=t panic=1 console=ttyS0"),
    "cmdline-root": image(cmdline=CMDLINE + b" root=/dev/vda"),
    "cmdline-nomodule": image(cmdline=CMDLINE + b" nomodule"),
    "cmdline-initrd": image(cmdline=CMDLINE + b" initrdmem=1,2"),
    "cmdline-virtio-mmio": image(cmdline=CMDLINE + b" virtio_mmio.device=4K@0xd0000000:5"),
    "cmdline-double-dash": image(cmdline=CMDLINE + b" -- x"),
    "cmdline-quote": image(cmdline=CMDLINE + b' a="b c'),
    "cmdline-nul": assemble([PARTS[0], (C, CMDLINE + b"\0"), *PARTS[2:]]),
    "cmdline-characters": image(cmdline=CMDLINE + b" a=\xc3\xbc"),
    "cmdline-space": image(cmdline=CMDLINE + b"\n"),
    "cmdline-too-long": image(cmdline=CMDLINE + b" x" * 970),
    "cmdline-fatal-option": image(cmdline=CMDLINE + b" kgdbwait"),
    "cmdline-surprising-option": image(cmdline=CMDLINE + b" mem=64M"),
    "cmdline-option": image(cmdline=CMDLINE + b" quiet"),
}

APP = ramdisk(application())
RAMDISKS = {
    "ramdisk-unreadable": image(ramdisks=[ramdisk(bootstrap())[:-200], b"rubbish!"]),
    "ramdisk-empty": image(ramdisks=[ramdisk(bootstrap()), APP, ramdisk({})]),
    "ramdisk-compression": image(ramdisks=[ramdisk(bootstrap()), lzma.compress(APP)]),
    "ramdisk-misplaced": image(ramdisks=[gzip.compress(ramdisk(bootstrap())).ljust(4001, b"\0"), APP]),
    "ramdisk-passed-over": image(app={"rootfs/none/file": b""}),
    "ramdisk-no-trailer": image(ramdisks=[ramdisk(bootstrap()), APP[: APP.index(b"TRAILER!!!") - 110]]),
    "init-missing": image(drop=["init"]),
    "init-not-executable": image(boot={"init": plain(program())}),
    "init-no-program": image(boot={"init": b"echo"}),
    "init-architecture": image(boot={"init": program(machine=183)}),
    "init-interpreter": image(boot={"init": b"#!/bin/sh\n"}),
    "init-library": image(
        boot={"init": program(interpreter="/ld", needed=["libc.so.6"]), "ld": program(kind=3)},
    ),
}

APPLICATION = {
    "application-unknown": image(ramdisks=[ramdisk(bootstrap())]),
    "rootfs-missing": image(ramdisks=[ramdisk(bootstrap() | {"cmd": b"/x\n", "env": b"PATH=/\n"})]),
    "rootfs-mount-point": image(drop=["rootfs/proc"]),
    "cmd-missing": image(drop=["cmd"]),
    "env-missing": image(drop=["env"]),
    "application-file": image(app={"env": None}),
    "cmd-empty": image(app={"cmd": b""}),
    "application-blank-line": image(app={"cmd": b"/app/run\n\n-v\n"}),
    "application-carriage-return": image(app={"env": b"LD_LIBRARY_PATH=/opt/lib\nPATH=/bin\r\n"}),
    "application-nul": image(app={"cmd": b"/app/run\na\0b\n"}),
    "application-no-line-end": image(app={"cmd": b"/app/run"}),
    "application-too-long": image(app={"env": b"LD_LIBRARY_PATH=/opt/lib\nPATH=" + b"x" * (128 << 10) + b"\n"}),
    "cmd-relative": image(app={"cmd": b"./app/run\n"}),
    "env-no-equals": image(app={"env": b"LD_LIBRARY_PATH=/opt/lib\nPATH=/\nX\n"}),
    "env-duplicate": image(app={"env": b"PATH=/\nLD_LIBRARY_PATH=/opt/lib\nPATH=/bin\n"}),
    "env-no-path": image(app={"env": b"LD_LIBRARY_PATH=/opt/lib\n"}),
    "command-not-found": image(app={"cmd": b"/app/runs\n"}),
    "command-not-executable": image(app={"rootfs/app/run": plain(program())}),
    "command-no-program": image(app={"rootfs/app/run": b"echo hello\n"}),
    "command-architecture": image(app={"rootfs/app/run": program(machine=183)}),
    "command-interpreter": image(drop=[f"rootfs/usr{LINKER}"]),
    "command-library": image(drop=["rootfs/opt/lib/libb.so.2"]),
}

KERNELS = {
    "kernel-format": image(kernel_data=bytes(2000)),
    "kernel-not-unpacked": image(kernel_data=bzimage(b"\x89LZO\0\r\n\x1a\n" + bytes(90), name=b"6.6.79 x")),
    "kernel-no-config": image(kernel_data=kernel(None)),
    "kernel-text-offset": arm_image(arm64(text_offset=0)),
    "kernel-big-endian": arm_image(arm64(flags=1)),
    "kernel-no-vsock": image(kernel_data=without("VIRTIO_VSOCKETS", "m")),
    "kernel-no-virtio-mmio": image(kernel_data=without("VIRTIO_MMIO")),
    "kernel-no-nsm": image(drop=["nsm.ko"]),
    "kernel-no-mmio-cmdline": image(kernel_data=without("VIRTIO_MMIO_CMDLINE_DEVICES")),
    "kernel-option": image(kernel_data=without("DEVTMPFS")),
    "kernel-no-serial-console": image(kernel_data=without("SERIAL_8250_CONSOLE")),
    "module-format": image(boot={"nsm.ko": gzip.compress(module())}),
    "module-version": image(boot={"nsm.ko": module(release="4.14.256")}),
    "module-version-crc": image(boot={"nsm.ko": module(release="4.14.256", extra="modversions")}),
    "module-unsigned": image(kernel_data=kernel(CONFIG | {"MODULE_SIG_FORCE": "y"})),
    "module-missing": image(boot={"modules": b"/lib/vsock.ko\n"}),
    "metadata-unreadable": assemble([*PARTS[:2], (M, b"{}"), *PARTS[3:]]),
    "metadata-kernel": image(kernel_version="4.14.256"),
}

SPOILT = FILE | LINE | RAMDISKS | APPLICATION | KERNELS


@pytest.mark.parametrize("id", SPOILT)
def test_each_rule_is_heard(id: str) -> None:
    found = findings(SPOILT[id])
    assert id in found, sorted(found)
    finding = found[id]
    assert finding.message and finding.cure and "\n" not in finding.message + finding.cure
    assert finding.check is CHECKS[id]


# What the same fault also leads to.
ALSO = {
    "env-missing": ["command-library"],
    "application-file": ["command-library"],
    "ramdisk-misplaced": ["application-unknown"],
    "kernel-text-offset": ["file-aarch64"],
    "kernel-big-endian": ["file-aarch64"],
}


@pytest.mark.parametrize("id", LINE | RAMDISKS | APPLICATION | KERNELS)
def test_and_nothing_else_with_it(id: str) -> None:
    assert ids(SPOILT[id]) == sorted([id, *ALSO.get(id, [])])


def test_the_rest_is_tested_elsewhere() -> None:
    """Signature and memory have tests of their own; every other check has an image above."""
    others = {check.id for group in GROUPS if group.title in ("The signature", "Memory") for check in group.checks}
    assert CHECKS.keys() - SPOILT.keys() == others


def test_ids_are_unique_and_documented() -> None:
    assert len(CHECKS) == sum(len(group.checks) for group in GROUPS)
    assert (ROOT / "docs" / "lint.md").read_text() == catalogue()


def test_every_problem_of_the_walk_is_a_finding() -> None:
    """The ids as they stand in walk.py; a file with another magic is no EIF to lint."""
    text = (ROOT / "enclavedbg" / "eif" / "walk.py").read_text()
    named = set(re.findall(r'Problem\(\s*"([a-z-]+)"', text)) - {"magic"}
    assert len(named) > 15 and named <= _PROBLEMS.keys()


def test_what_is_no_eif_is_refused(tmp_path: Path) -> None:
    for data, what in ((program(), "ELF program"), (b"", "nothing in it"), (SOUND[:100], "100 bytes")):
        with pytest.raises(EifError, match=what):
            lint(data)
    with pytest.raises(EifError, match="Is a directory"):
        lint(tmp_path)


def test_severities_come_in_order() -> None:
    report = lint(image(cmdline=b"quiet", drop=["init"]))
    ranks = [finding.severity.rank for finding in report.findings]
    assert ranks == sorted(ranks) and report.has_errors
    assert report.count(Severity.NOTE) == 3 and report.count(Severity.ERROR) == 1


def test_drivers_are_known_by_strings_and_modules_without_a_configuration() -> None:
    bare = kernel(None, strings=b"")
    found = findings(image(kernel_data=bare))
    assert {"kernel-no-vsock", "kernel-no-virtio-mmio"} <= found.keys() and "kernel-no-nsm" not in found
    modules: dict[str, CpioEntry | bytes | None] = {
        f"{name}.ko": module() for name in ("vmw_vsock_virtio_transport", "virtio-mmio")
    }
    assert ids(image(kernel_data=bare, boot=modules)) == ["kernel-no-config", "kernel-no-mmio-cmdline"]
    modules["virtio-mmio.ko"] = module(tail=b"\0parmtype=device:x\0")
    assert ids(image(kernel_data=bare, boot=modules)) == ["kernel-no-config"]
    late = findings(image(kernel_data=bare, app={"rootfs/app/vmw_vsock_virtio_transport.ko": module()}))
    assert "in /rootfs comes too late" in late["kernel-no-vsock"].message
    assert ids(image(kernel_data=kernel(None, strings=STRINGS), drop=["nsm.ko"])) == ["kernel-no-config"]


def test_needs_of_this_init_only() -> None:
    no_cgroups = kernel(CONFIG | {"CGROUPS": "n"})
    assert ids(image(kernel_data=no_cgroups)) == ["kernel-option"]
    assert ids(image(kernel_data=no_cgroups, boot={"init": program()})) == []
    assert ids(image(kernel_data=kernel(CONFIG | {"MODULES": "n"}))) == ["kernel-option"]


def test_a_device_that_the_kernel_makes_itself_is_no_finding() -> None:
    entries = [CpioEntry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1))]
    assert ids(image(ramdisks=[ramdisk(bootstrap()), APP, write_newc(entries)])) == []


def test_links_lead_to_init() -> None:
    assert ids(image(boot={"init": link("sbin/start"), "sbin": None, "sbin/start": program()})) == []
    assert ids(image(boot={"init": link("sbin/start")})) == ["init-missing"]
    assert ids(image(boot={"start": program()}, drop=["init"], cmdline=CMDLINE + b" rdinit=/start")) == [
        "cmdline-option"
    ]


def test_a_table_that_leads_elsewhere_is_said_with_who_minds() -> None:
    found = findings(patched(SIZES_AT + 7, b"\7"))["file-table-size"]
    assert "QEMU refuses" in found.evidence and "describe-eif accepts" in found.evidence
    assert "nitro-cli refuses" in findings(SOUND[:-1])["file-truncated"].evidence
