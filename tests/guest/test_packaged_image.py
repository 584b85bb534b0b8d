"""The packaged demo image is the one that the recipe recorded, and the tree is the one it was made from."""

from __future__ import annotations

from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from recipe.errors import RecipeError
from recipe.images import (
    COMMAND_LINE,
    DATA,
    Parts,
    demo_image,
    kernel_release,
    nsm_check_image,
    packaged_nsm_check,
    packaged_parts,
    packaged_stress,
    stress_image,
)
from recipe.programs import PROGRAMS, Toolchain, available, compile_program, source_files, toolchain
from recipe.record import digest, input_digests, make_record, read_record

from enclavedbg.eif.cpio import read_newc
from enclavedbg.eif.measure import measure
from enclavedbg.eif.reader import EifImage, read_eif

MAX_PACKAGE_DATA = 12_000_000


@pytest.fixture(scope="module")
def image() -> EifImage:
    return read_eif(DATA / "demo.eif")  # raises for a wrong CRC, size or order


@pytest.fixture(scope="module")
def parts() -> Parts:
    return packaged_parts()


def test_measurements_are_those_recorded(image: EifImage) -> None:
    record, values = read_record(), measure(image)
    assert record["PCR0"] == values.pcr0.hex()
    assert record["PCR1"] == values.pcr1.hex()
    assert record["PCR2"] == values.pcr2.hex()
    assert record["sha256"] == digest(bytes(image.data))
    assert record["size"] == image.size


def test_inputs_are_those_of_the_tree() -> None:
    # A difference here: make the image again (guest/build-eif; guest/build-kernel first, if kernel.config changed).
    assert read_record()["inputs"] == input_digests()


def test_the_same_parts_give_the_same_bytes(image: EifImage, parts: Parts) -> None:
    assert demo_image(parts) == bytes(image.data)


def test_record_is_what_the_recipe_writes(image: EifImage, parts: Parts) -> None:
    record = read_record()
    tools = record["toolchain"]
    assert isinstance(tools, dict)
    made = make_record(
        bytes(image.data), parts, stress=packaged_stress(), nsm_check=packaged_nsm_check(), tools=Toolchain(**tools)
    )
    assert made == record


def test_kernel_is_in_the_package_on_its_own_too(image: EifImage, parts: Parts) -> None:
    assert (DATA / "demo-bzImage").read_bytes() == bytes(image.kernel)
    assert (DATA / "lkdtm.ko").read_bytes() == parts.crash_module
    assert parts.kernel_release == "6.12.95-enclavedbg"


def test_layout_is_nitro_clis(image: EifImage) -> None:
    assert image.cmdline == COMMAND_LINE
    bootstrap, application = (read_newc(ramdisk) for ramdisk in image.ramdisks)
    assert [entry.name for entry in bootstrap] == ["dev", "init"]
    files = {entry.name: bytes(entry.data) for entry in application}
    assert files["cmd"] == b"/demo\n"
    assert files["env"].startswith(b"PATH=")
    assert {"rootfs/dev", "rootfs/proc", "rootfs/run", "rootfs/sys", "rootfs/tmp", "rootfs/var"} <= files.keys()
    for entry in (*bootstrap, *application):
        assert (entry.uid, entry.gid) == (0, 0)
        parent = entry.name.rpartition("/")[0]
        assert not parent or parent in files or parent == "rootfs"


def test_programs_find_their_sources_in_the_ramdisk(image: EifImage) -> None:
    """Debug information names /usr/src/enclavedbg, where the second ramdisk has the files of this tree."""
    files = {
        entry.name: bytes(entry.data) for ramdisk in image.ramdisks for entry in read_newc(ramdisk) if entry.is_file
    }
    for path, source in source_files("init", "demo").items():
        assert files[f"rootfs/{path}"] == source
    for path, program in (("init", "init"), ("rootfs/demo", "demo")):
        units = _compilation_units(files[path])
        for source in PROGRAMS[program]:
            assert ("/usr/src/enclavedbg", source) in units


def test_programs_tell_nothing_of_the_machine_that_made_them(parts: Parts) -> None:
    for program in (parts.init, parts.demo, packaged_stress(), packaged_nsm_check()):
        assert {directory for directory, name in _compilation_units(program) if name in _own_sources()} == {
            "/usr/src/enclavedbg"
        }
        assert b"/home/" not in program
        assert b"/root/" not in program


def test_programs_are_static(parts: Parts) -> None:
    for program in (parts.init, parts.demo, packaged_stress(), packaged_nsm_check()):
        assert not any(segment["p_type"] == "PT_INTERP" for segment in _elf(program).iter_segments())


def test_stress_image_has_the_demo_kernel_and_its_arguments(parts: Parts) -> None:
    image = read_eif(stress_image(parts, packaged_stress(), ["rounds=2", "spawns=1000"]))
    assert bytes(image.kernel) == parts.kernel
    files = {entry.name: bytes(entry.data) for entry in read_newc(image.ramdisks[1])}
    assert files["cmd"] == b"/stress\nmodule=/lib/modules/lkdtm.ko\nrounds=2\nspawns=1000\n"
    assert files["rootfs/stress"] == packaged_stress()


def test_nsm_check_image_has_the_demo_kernel_and_its_arguments(parts: Parts) -> None:
    image = read_eif(nsm_check_image(parts, packaged_nsm_check(), ["debug=1"]))
    assert bytes(image.kernel) == parts.kernel
    files = {entry.name: bytes(entry.data) for entry in read_newc(image.ramdisks[1])}
    assert files["cmd"] == b"/nsm-check\ndebug=1\n"
    assert files["rootfs/nsm-check"] == packaged_nsm_check()
    for path, source in source_files("init", "nsm-check").items():
        assert files[f"rootfs/{path}"] == source


def test_package_data_stays_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < MAX_PACKAGE_DATA


def test_kernel_configuration_has_what_a_debugger_and_an_enclave_need() -> None:
    lines = set((DATA.parent.parent / "guest/kernel.config").read_text().splitlines())
    for option in ("NSM", "VIRTIO_VSOCKETS", "VIRTIO_MMIO_CMDLINE_DEVICES", "KALLSYMS_ALL", "DEBUG_INFO_BTF",
                   "IKCONFIG_PROC", "UNWINDER_ORC", "SERIAL_8250_CONSOLE", "DEVTMPFS", "MODULES"):  # fmt: skip
        assert f"CONFIG_{option}=y" in lines
    for option in ("SMP", "PCI", "ACPI", "RANDOMIZE_BASE", "HYPERVISOR_GUEST", "MODULE_SIG", "SERIO"):
        assert f"CONFIG_{option}=y" not in lines


def test_kernel_release_of_what_is_no_kernel() -> None:

    with pytest.raises(RecipeError, match="no bzImage"):
        kernel_release(bytes(1024))


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_compiling_again_gives_the_recorded_program(name: str, tmp_path: Path) -> None:
    record = read_record()
    if not available():
        pytest.skip("musl-gcc is not installed (sudo apt-get install musl-tools)")
    here, recorded = toolchain(), record["toolchain"]
    if asdict(here) != recorded:
        pytest.skip(f"another compiler than the recorded one: {here}")
    built = record["built"]
    assert isinstance(built, dict)
    assert digest(compile_program(name, tmp_path / name)) == built[name]


def _elf(program: bytes) -> ELFFile:
    return ELFFile(BytesIO(program))


def _own_sources() -> set[str]:
    return {source for sources in PROGRAMS.values() for source in sources}


def _compilation_units(program: bytes) -> set[tuple[str, str]]:
    """Return (directory, name) of every compilation unit with debug information."""
    units = set()
    for unit in _elf(program).get_dwarf_info().iter_CUs():
        attributes = unit.get_top_DIE().attributes
        if "DW_AT_name" in attributes and "DW_AT_comp_dir" in attributes:
            units.add((attributes["DW_AT_comp_dir"].value.decode(), attributes["DW_AT_name"].value.decode()))
    return units
