"""Whole images: their bytes, what they say of themselves, and nothing left behind when it fails."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from enclavedbg.eif import build_metadata, measure, read_eif
from enclavedbg.eif.build import (
    About,
    Boot,
    build_from_container,
    build_from_folder,
    build_from_parts,
    gather_boot,
    read_container,
    write_image,
)
from enclavedbg.eif.build.contents import InFile, InMemory
from enclavedbg.eif.build.image import parse_build_time, parse_json, read_custom_metadata, source_date_epoch
from enclavedbg.eif.cpio import read_newc
from enclavedbg.errors import EifError
from tests.eif.build.images import Image, as_archive, as_folder, docker_files, entry, oci_files, tar

LAYER = tar(entry("app", data=b"program", mode=0o755, owner=(3, 4)))
VECTOR = build_metadata(
    name="t",
    version="1",
    build_time=datetime(2024, 1, 1, tzinfo=UTC),
    build_tool="x",
    build_tool_version="0",
    kernel_version="6.6.79",
)


@pytest.fixture(scope="module")
def boot() -> Boot:
    return gather_boot()


def test_reference_vector_byte_for_byte(tmp_path: Path) -> None:
    """The file and PCR0 that were worked out from the format's description, with hashlib and zlib alone."""
    output = tmp_path / "o.eif"
    measurements = write_image(
        output,
        kernel=InMemory(b"KERNEL"),
        cmdline=b"console=ttyS0",
        ramdisks=[InMemory(b"RAMDISK0"), InMemory(memoryview(b"RAMDISK1"))],
        metadata=VECTOR,
    )
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert digest == "49e4d9bf50aa4a8618d332738c7e16c34bd375d2763d451e5621ed587b9c1ecc"
    content = hashlib.sha384(b"KERNELconsole=ttyS0RAMDISK0RAMDISK1").digest()
    assert measurements.pcr0 == hashlib.sha384(bytes(48) + content).digest()


def test_folder(tmp_path: Path, boot: Boot) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "app").write_bytes(b"x")
    about = About(build_time=datetime(2024, 1, 1, tzinfo=UTC), custom={"b": 1, "a": 2}, mtime=99)
    built = build_from_folder(
        tmp_path / "o.eif", root, boot=boot, command=["/bin/app", "-v"], environment={"A": "1"}, about=about
    )
    image = read_eif(tmp_path / "o.eif")
    assert measure(image) == built.measurements
    assert image.metadata is not None
    assert (image.metadata["ImageName"], image.metadata["ImageVersion"]) == ("app", "1.0")
    assert image.metadata["CustomMetadata"] == {"a": 2, "b": 1}
    second = {e.name: e for e in read_newc(image.ramdisks[1])}
    assert (bytes(second["cmd"].data), bytes(second["env"].data)) == (b"/bin/app\n-v\n", b"A=1\n")
    assert second["rootfs/app"].mtime == 99
    with pytest.raises(EifError, match="lies in the root folder"):
        build_from_folder(root / "o.eif", root, boot=boot, command=["a"], environment={})
    assert sorted(path.name for path in root.iterdir()) == ["app"]


def test_container_in_any_form_gives_the_same_measurements(tmp_path: Path, boot: Boot) -> None:
    paths = [
        as_archive(docker_files(Image([LAYER])), tmp_path / "a.tar"),
        as_folder(oci_files(Image([LAYER])), tmp_path / "layout"),
        as_archive(oci_files(Image([LAYER]), compression="+zstd"), tmp_path / "b.tar"),
    ]
    outputs = [tmp_path / f"{number}.eif" for number in range(3)]
    for path, output in zip(paths, outputs, strict=True):
        build_from_container(output, read_container(path), boot=boot)
    assert len({output.read_bytes() for output in outputs}) == 1
    image = read_eif(outputs[0])
    assert image.metadata is not None
    assert image.metadata["ImageName"] == "app"
    assert image.metadata["ImageVersion"] == hashlib.sha256(Image([LAYER]).config).hexdigest()
    build = image.metadata["BuildMetadata"]
    assert isinstance(build, dict) and build["BuildTime"] == "2024-05-06T07:08:09.123456+00:00"
    entries = {e.name: e for e in read_newc(image.ramdisks[1])}
    assert (entries["rootfs/app"].uid, entries["rootfs/app"].gid, entries["rootfs/app"].mtime) == (3, 4, 0)
    assert bytes(entries["cmd"].data) == b"/app\n-v\n"
    assert bytes(entries["env"].data) == b"A=1\nB=x=y\n"


def test_own_command_and_more_environment(tmp_path: Path, boot: Boot) -> None:
    container = read_container(as_archive(docker_files(Image([LAYER])), tmp_path / "a.tar"))
    build_from_container(
        tmp_path / "o.eif", container, boot=boot, command=["/sh"], environment={"A": "2", "C": "3"},
        about=About(name="n", version="v"),
    )  # fmt: skip
    image = read_eif(tmp_path / "o.eif")
    entries = {e.name: bytes(e.data) for e in read_newc(image.ramdisks[1])}
    assert (entries["cmd"], entries["env"]) == (b"/sh\n", b"A=2\nB=x=y\nC=3\n")
    assert image.metadata is not None and image.metadata["ImageName"] == "n"


def test_parts(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"KERNEL")
    (tmp_path / "r0").write_bytes(b"RAMDISK0")
    (tmp_path / "r1").write_bytes(b"RAMDISK1")
    boot = gather_boot(kernel=tmp_path / "kernel", cmdline="console=ttyS0", with_ramdisk=False)
    build_from_parts(tmp_path / "o.eif", boot=boot, ramdisks=[tmp_path / "r0", tmp_path / "r1"])
    image = read_eif(tmp_path / "o.eif")
    assert [bytes(ramdisk) for ramdisk in image.ramdisks] == [b"RAMDISK0", b"RAMDISK1"]
    assert image.metadata is not None and image.metadata["ImageName"] == "kernel"
    build_from_parts(tmp_path / "p.eif", boot=gather_boot(source=tmp_path / "o.eif"), ramdisks=[tmp_path / "r1"])
    assert (tmp_path / "p.eif").read_bytes() == (tmp_path / "o.eif").read_bytes()
    odd = replace(boot, image_name="\ud800")
    build_from_parts(tmp_path / "p.eif", boot=odd, ramdisks=[tmp_path / "r0"])
    assert (read_eif(tmp_path / "p.eif").metadata or {})["ImageName"] == "enclave"
    with pytest.raises(EifError, match="needs a ramdisk"):
        build_from_parts(tmp_path / "q.eif", boot=boot, ramdisks=[])
    with pytest.raises(EifError, match="join some"):
        build_from_parts(tmp_path / "q.eif", boot=boot, ramdisks=[tmp_path / "r0"] * 30)
    assert not (tmp_path / "q.eif").exists()


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"12345")
    output = tmp_path / "o.eif"
    output.write_bytes(b"before")
    for contents, message in ((InFile(tmp_path / "r", 4), "changed"), (InFile(tmp_path / "none", 4), "cannot read")):
        with pytest.raises(EifError, match=message):
            write_image(output, kernel=InMemory(b"K"), cmdline=b"", ramdisks=[contents], metadata=VECTOR)
    for change in ({"cmdline": b"\0"}, {"architecture": "vax"}, {"metadata": {"a": "x" * (5 << 20)}}):
        arguments: dict[str, object] = {"cmdline": b"", "metadata": VECTOR, **change}
        with pytest.raises(EifError):
            write_image(output, kernel=InMemory(b"K"), ramdisks=[], **arguments)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.eif", "r"]
    assert output.read_bytes() == b"before"


def test_times() -> None:
    assert source_date_epoch({}) is source_date_epoch({"SOURCE_DATE_EPOCH": ""}) is None
    assert source_date_epoch({"SOURCE_DATE_EPOCH": "1700000000"}) == 1700000000
    for text in ("x", "-1", "1.5", "4294967296", "99999999999999999999", "²"):
        with pytest.raises(EifError, match="SOURCE_DATE_EPOCH"):
            source_date_epoch({"SOURCE_DATE_EPOCH": text})
    assert parse_build_time("2026-07-05T14:00:00+02:00") == datetime(2026, 7, 5, 12, tzinfo=UTC)
    for text in ("2026-07-05", "2026-07-05T12:00:00", "now", "0001-01-01T00:00:00+12:00"):
        with pytest.raises(EifError, match=r"no time with a zone|out of range"):
            parse_build_time(text)


def test_custom_metadata(tmp_path: Path, boot: Boot) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(b'{"a": "' + b"x" * 4087 + b'"}')
    assert path.stat().st_size == 4096 and read_custom_metadata(path) == {"a": "x" * 4087}
    for data, message in ((b" " * 4097, "at most 4096"), (b"{", "not JSON"), (b"[1e999,NaN]", "not JSON")):
        path.write_bytes(data)
        with pytest.raises(EifError, match=message):
            read_custom_metadata(path)
    assert parse_json(b"[1]", what="x") == [1]
    (tmp_path / "root").mkdir()
    built = build_from_folder(tmp_path / "o.eif", tmp_path / "root", boot=boot, command=["a"], environment={},
                              about=About(custom=[1]))  # fmt: skip
    assert any("describe-eif fails" in note for note in built.notes)
