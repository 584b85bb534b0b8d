"""Which kernel, command line and init an image gets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from enclavedbg.eif import build_metadata, read_eif, write_eif
from enclavedbg.eif.build.boot import COMMAND_LINES, gather_boot, kernel_release, packaged_image
from enclavedbg.eif.build.contents import Contents
from enclavedbg.eif.cpio import CpioEntry, read_newc, write_newc
from enclavedbg.errors import EifError


def bzimage(release: bytes = b"6.6.79-x (me@here) #1") -> bytes:
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    data[0x300 : 0x300 + len(release)] = release
    return bytes(data)


def arm_image() -> bytes:
    data = bytearray(0x200)
    data[0x38:0x3C] = b"ARM\x64"
    return bytes(data) + b"Linux version 6.1.2-arm (me@here) #1"


def elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + bytes(40)


def files(ramdisk: Contents | None) -> dict[str, bytes]:
    assert ramdisk is not None
    return {e.name: bytes(e.data) for e in read_newc(b"".join(bytes(p) for p in ramdisk.pieces()))}


def other_image(path: Path, **changes: object) -> Path:
    parts: dict[str, object] = {
        "kernel": bzimage(),
        "cmdline": b"other",
        "ramdisks": [write_newc([CpioEntry("init", 0o100755, b"INIT")]), b"second"],
        "metadata": build_metadata(name="theirs", version="1", build_time=datetime(2024, 1, 1, tzinfo=UTC),
                                   operating_system="Plan9", kernel_version="4"),
        **changes,
    }  # fmt: skip
    path.write_bytes(write_eif(**parts))  # type: ignore[arg-type]
    return path


def test_the_packaged_parts_are_the_default_and_it_is_said() -> None:
    boot, demo = gather_boot(), packaged_image()
    assert (bytes(boot.kernel), boot.cmdline) == (bytes(demo.kernel), demo.cmdline)
    assert files(boot.ramdisk) == {e.name: bytes(e.data) for e in read_newc(demo.ramdisks[0])}
    assert (boot.architecture, boot.operating_system, boot.kernel_version) == ("x86_64", "Linux", "6.12.95")
    assert "packaged demo's, Linux 6.12.95-enclavedbg" in boot.notes[0]


def test_another_image(tmp_path: Path) -> None:
    source = other_image(tmp_path / "other.eif")
    boot = gather_boot(source=source)
    assert (bytes(boot.kernel), boot.cmdline) == (bzimage(), b"other")
    assert files(boot.ramdisk) == {"init": b"INIT"}
    assert (boot.kernel_version, boot.image_name, boot.notes) == ("6.6.79", "theirs", ())
    # What the metadata says of the kernel counts where it does not speak for itself.
    boot = gather_boot(source=other_image(tmp_path / "odd.eif", kernel=b"odd"))
    assert (boot.operating_system, boot.kernel_version) == ("Plan9", "4")
    (tmp_path / "nsm.ko").write_bytes(b"NSM")
    boot = gather_boot(source=source, cmdline=" mine \n", nsm=tmp_path / "nsm.ko")
    assert files(boot.ramdisk) == {"dev": b"", "init": b"INIT", "nsm.ko": b"NSM"}
    assert boot.cmdline == b"mine"


def test_files(tmp_path: Path) -> None:
    for name, data in (("bz", bzimage()), ("arm", arm_image()), ("i386", elf(62)), ("iarm", elf(183))):
        (tmp_path / name).write_bytes(data)
    boot = gather_boot(kernel=tmp_path / "bz", init=tmp_path / "i386")
    assert (boot.cmdline.decode(), boot.kernel_version) == (COMMAND_LINES["x86_64"], "6.6.79")
    boot = gather_boot(kernel=tmp_path / "arm", init=tmp_path / "iarm", cmdline="c")
    assert (boot.architecture, boot.kernel_version, boot.notes) == ("aarch64", "6.1.2", ())
    boot = gather_boot(kernel=tmp_path / "bz")
    assert files(boot.ramdisk)["init"].startswith(b"\x7fELF")
    assert any("init is the packaged demo's" in note for note in boot.notes)
    with pytest.raises(EifError, match="kernel is for x86_64, the image for aarch64"):
        gather_boot(kernel=tmp_path / "bz", architecture="aarch64")
    with pytest.raises(EifError, match="kernel is for x86_64, the image for aarch64"):
        gather_boot(architecture="aarch64")
    with pytest.raises(EifError, match="init is a program for aarch64"):
        gather_boot(kernel=tmp_path / "bz", init=tmp_path / "iarm")
    with pytest.raises(EifError, match="init is a program for x86_64"):
        gather_boot(kernel=tmp_path / "arm")
    with pytest.raises(EifError, match=r"cannot read the kernel .*none"):
        gather_boot(kernel=tmp_path / "none")
    with pytest.raises(EifError, match="not a regular file"):
        gather_boot(kernel=tmp_path)


def test_kernel_configuration_names_the_kernel_as_nitro_cli_has_it(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("#\n# made by hand\n# Linux/x86_64 4.14.256-209.484.amzn2.x86_64 Kernel Configuration\n#\n")
    boot = gather_boot(kernel_config=config)
    assert (boot.operating_system, boot.kernel_version) == ("Linux", "4.14.256")
    config.write_text("CONFIG_X=y\n")
    with pytest.raises(EifError, match="third line"):
        gather_boot(kernel_config=config)


def test_release_of_anything() -> None:
    assert kernel_release(memoryview(bzimage(b"6.1 x"))) == "6.1"
    assert kernel_release(memoryview(bzimage(b"\xff\xff"))) is None
    assert kernel_release(memoryview(arm_image()[:0x200])) is None
    assert kernel_release(memoryview(b"")) is None


def test_another_image_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(EifError, match="first ramdisk from has none"):
        gather_boot(source=other_image(tmp_path / "a", ramdisks=[]))
    (tmp_path / "nsm.ko").write_bytes(b"NSM")
    with pytest.raises(EifError, match="no file init"):
        gather_boot(source=other_image(tmp_path / "b", ramdisks=[write_newc([])]), nsm=tmp_path / "nsm.ko")
    assert read_eif(other_image(tmp_path / "c")).cmdline == b"other"
