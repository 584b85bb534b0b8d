"""The pieces that images are made of: ramdisks, module order, Debian packages, apt."""

from __future__ import annotations

import lzma
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe.apt import Apt, Package
from recipe.debian import (
    KERNEL_PATTERN,
    debian_image,
    decompress_module,
    dependencies,
    fetch_kernel,
    load_order,
    read_package,
)
from recipe.errors import FetchError, RecipeError
from recipe.ramdisk import File, Module, application_ramdisk, bootstrap_ramdisk
from recipe.tools import need_programs, run

from enclavedbg.eif.cpio import read_newc
from enclavedbg.eif.reader import read_eif


def make_module(name: str, *needs: str) -> bytes:
    """The smallest ELF file with a .modinfo section that a kernel module has."""
    info = b"name=" + name.encode() + b"\0depends=" + ",".join(needs).encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    offset_info, offset_names = 64, 64 + len(info)
    offset_sections = offset_names + len(names)
    ident = b"\x7fELF\2\1\1" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 1, 62, 1, 0, 0, offset_sections, 0, 64, 0, 0, 64, 3, 2)
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, offset_info, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, offset_names, len(names), 0, 0, 1, 0),
    ]
    return header + info + names + b"".join(sections)


def make_deb(folder: Path, files: dict[str, bytes]) -> Path:
    """A Debian package built by dpkg-deb itself."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: kernel\nVersion: 1\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n"
    )
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    deb = folder / "kernel.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
    return deb


def make_bzimage(release: str) -> bytes:
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    text = f"{release} (someone@somewhere) #1".encode()
    data[0x300 : 0x300 + len(text)] = text
    return bytes(data)


MODULES = {
    "virtio_mmio": make_module("virtio_mmio"),
    "vsock": make_module("vsock"),
    "vmw_vsock_virtio_transport_common": make_module("vmw_vsock_virtio_transport_common", "vsock"),
    "vmw_vsock_virtio_transport": make_module(
        "vmw_vsock_virtio_transport", "vmw_vsock_virtio_transport_common", "vsock"
    ),
    "nsm": make_module("nsm", "rng-core"),
    "rng_core": make_module("rng_core"),
    "unused": make_module("unused"),
}
needs_dpkg = pytest.mark.skipif(
    subprocess.run("command -v dpkg-deb", shell=True, capture_output=True, check=False).returncode != 0,
    reason="dpkg-deb is not installed: not a Debian machine",
)


# ---- ramdisks ----


def test_bootstrap_ramdisk_lists_modules_in_load_order() -> None:
    ramdisk = bootstrap_ramdisk(b"init", [Module("zeta", b"1"), Module("alpha", b"2")])
    files = {entry.name: entry for entry in read_newc(ramdisk)}
    assert bytes(files["modules"].data) == b"/lib/modules/zeta.ko\n/lib/modules/alpha.ko\n"
    assert bytes(files["lib/modules/zeta.ko"].data) == b"1"
    assert files["init"].mode == 0o100755


def test_application_ramdisk_has_command_and_environment_line_by_line() -> None:
    ramdisk = application_ramdisk({"a/b": File(b"x")}, command=["/a/b", "c d"], environment={"K": "v w", "L": ""})
    files = {entry.name: bytes(entry.data) for entry in read_newc(ramdisk)}
    assert files["cmd"] == b"/a/b\nc d\n"
    assert files["env"] == b"K=v w\nL=\n"
    assert files["rootfs/a/b"] == b"x"


names = st.text(alphabet="abcdef", min_size=1, max_size=4)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(max_examples=50)
@given(st.dictionaries(paths, st.binary(max_size=20), max_size=5), st.randoms())
def test_ramdisk_is_the_same_whatever_the_order_of_files(files: dict[str, bytes], random: object) -> None:
    # A file cannot be a folder too.
    files = {path: data for path, data in files.items() if not any(other.startswith(path + "/") for other in files)}
    forward = application_ramdisk({p: File(d) for p, d in files.items()}, command=["/x"], environment={})
    backward = application_ramdisk({p: File(files[p]) for p in reversed(files)}, command=["/x"], environment={})
    assert forward == backward
    assert len(forward) % 4 == 0  # ramdisks are joined without padding
    seen: set[str] = set()
    for entry in read_newc(forward):
        parent = entry.name.rpartition("/")[0]
        assert not parent or parent in seen  # the kernel makes no folders by itself
        seen.add(entry.name)


# ---- modules ----


def test_modules_come_after_what_they_need() -> None:
    order = [module.name for module in load_order(("virtio_mmio", "vmw_vsock_virtio_transport", "nsm"), MODULES)]
    assert sorted(order) == sorted(set(MODULES) - {"unused"})
    for before, after in (("vsock", "vmw_vsock_virtio_transport_common"), ("rng_core", "nsm"),
                          ("vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport")):  # fmt: skip
        assert order.index(before) < order.index(after)


def test_a_wanted_module_that_is_built_in_is_left_out() -> None:
    assert load_order(("nsm",), {}) == []


def test_a_needed_module_that_is_missing_is_an_error() -> None:
    with pytest.raises(RecipeError, match="nsm needs rng_core"):
        load_order(("nsm",), {"nsm": MODULES["nsm"]})


def test_modules_that_need_each_other_are_an_error() -> None:
    with pytest.raises(RecipeError, match="a -> b -> a"):
        load_order(("a",), {"a": make_module("a", "b"), "b": make_module("b", "a")})


def test_compressed_modules_are_decompressed() -> None:
    module = MODULES["nsm"]
    assert decompress_module(lzma.compress(module)) == module
    assert decompress_module(module) == module
    with pytest.raises(RecipeError, match="decompressed"):
        decompress_module(lzma.compress(module)[:-20])


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_anything_but_a_module_is_our_own_error(data: bytes) -> None:
    with pytest.raises(RecipeError):
        dependencies(data)


@settings(max_examples=100)
@given(st.integers(0, len(MODULES["nsm"]) - 1), st.integers(0, 255))
def test_a_damaged_module_is_our_own_error_or_still_a_module(position: int, value: int) -> None:
    damaged = bytearray(MODULES["nsm"])
    damaged[position] = value
    try:
        assert isinstance(dependencies(bytes(damaged)), list)
    except RecipeError as error:
        assert "module" in str(error)


# ---- packages ----


@needs_dpkg
def test_image_of_a_package(tmp_path: Path) -> None:
    kernel = make_bzimage("6.12.95+deb12-cloud-amd64")
    files = {"boot/vmlinuz-6.12.95+deb12-cloud-amd64": kernel, "boot/config-6.12.95": b"x"}
    for name, data in {**MODULES, "crc7": make_module("crc7")}.items():
        # As in the real package: names with - and _ mixed, some in another folder.
        files[f"lib/modules/6.12.95/kernel/{name.replace('rng_core', 'rng-core')}.ko.xz"] = lzma.compress(data)
    deb = make_deb(tmp_path, files)
    image = read_eif(debian_image(deb, program="stress", arguments=["rounds=2"]))
    assert bytes(image.kernel) == kernel
    assert b"i8042.noaux" in image.cmdline
    first, second = ({entry.name: bytes(entry.data) for entry in read_newc(disk)} for disk in image.ramdisks)
    loaded = first["modules"].decode().split()
    assert loaded[-2:] == ["/lib/modules/rng_core.ko", "/lib/modules/nsm.ko"]
    assert first["lib/modules/nsm.ko"] == MODULES["nsm"]
    assert second["cmd"] == b"/stress\nmodule=/lib/modules/crc7.ko\nrounds=2\n"
    assert read_package(deb).release == "6.12.95+deb12-cloud-amd64"


@needs_dpkg
def test_a_package_without_kernel(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no kernel package"):
        read_package(make_deb(tmp_path, {"usr/share/doc/kernel/README": b"x"}))


@needs_dpkg
def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"this is no package")
    with pytest.raises(RecipeError):
        read_package(tmp_path / "x.deb")


# ---- fetching ----


def test_a_package_that_was_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    apt = Apt(tmp_path, mirror="http://127.0.0.1:1/debian")
    apt.downloads.mkdir()
    deb = apt.downloads / "linux-image-6.12.95+deb12-cloud-amd64_6.12.95-1~bpo12+1_amd64.deb"
    deb.write_bytes(b"x")
    assert apt.fetch(Package("linux-image-6.12.95+deb12-cloud-amd64")) == deb
    with pytest.raises(FetchError, match="SHA-256"):
        apt.fetch(Package("linux-image-6.12.95+deb12-cloud-amd64", version="6.12.95-1~bpo12+1", sha256="00"))


def test_no_network_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_kernel(Apt(tmp_path, mirror="http://127.0.0.1:1/debian"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("linux-image-6.12.95+deb12-cloud-amd64", True),
        ("linux-image-6.12.90+deb12.1-cloud-amd64", True),
        ("linux-image-6.12.95+deb12-cloud-amd64-unsigned", False),
        ("linux-image-6.12.95+deb12-amd64", False),
        ("linux-image-6.1.0-30-cloud-amd64", False),
    ],
)
def test_which_packages_are_cloud_kernels(name: str, fits: bool) -> None:
    assert (re.fullmatch(KERNEL_PATTERN, name) is not None) is fits


def test_missing_programs_are_named_with_their_packages() -> None:
    with pytest.raises(RecipeError, match="apt-get install aa bb"):
        need_programs({"no-such-program-1": "bb", "no-such-program-2": "aa", "sh": "dash"})


def test_a_failed_program_is_told_by_its_last_line() -> None:
    with pytest.raises(RecipeError, match="sh failed with status 3: second"):
        run(["sh", "-c", "echo first; echo second >&2; exit 3"])
    with pytest.raises(RecipeError, match="not installed"):
        run(["no-such-program-1"])
