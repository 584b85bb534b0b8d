"""The command `enclavedbg eif build`, as a person types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enclavedbg.cli import main
from enclavedbg.eif import measure, read_eif
from enclavedbg.eif.cpio import read_newc
from tests.eif.build.images import Image, as_archive, docker_files, entry, tar


@pytest.fixture(autouse=True)
def no_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("root/bin").mkdir(parents=True)
    Path("root/bin/app").write_bytes(b"app")


def test_measurements_are_printed_as_nitro_cli_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eif", "build", "--root", "root", "--command", "/bin/app 'a b'", "--output", "o.eif"]) == 0
    captured = capsys.readouterr()
    values = measure(read_eif(Path("o.eif")))
    assert json.loads(captured.out) == {
        "Measurements": {
            "HashAlgorithm": "Sha384 { ... }",
            "PCR0": values.pcr0.hex(),
            "PCR1": values.pcr1.hex(),
            "PCR2": values.pcr2.hex(),
        }
    }
    assert "the kernel is the packaged demo's" in captured.err


def test_locale_and_hash_seed_change_nothing() -> None:
    Path("root/ü").write_bytes(b"")
    files = set()
    for number, locale in enumerate(
        ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
    ):
        arguments = [
            "--root",
            "root",
            "--command",
            "/ü é",
            "--env",
            "A=ü",
            "--cmdline",
            "ü",
            "--output",
            f"{number}.eif",
        ]
        subprocess.run(
            [sys.executable, "-m", "enclavedbg", "eif", "build", *(os.fsencode(word) for word in arguments)],
            env={**os.environ, **locale, "PYTHONHASHSEED": str(number), "TZ": f"X{number}"},
            check=True,
            capture_output=True,
        )
        files.add(Path(f"{number}.eif").read_bytes())
    assert len(files) == 1
    second = {e.name: bytes(e.data) for e in read_newc(read_eif(Path("0.eif")).ramdisks[1])}
    assert second["cmd"].decode() == "/ü\né\n" and "rootfs/ü" in second


def test_epoch_and_build_time(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["eif", "build", "--root", "root", "--command", "/bin/app", "--output"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert main([*arguments, "a.eif"]) == 0
    assert main([*arguments, "b.eif", "--build-time", "2026-01-01T00:00:00Z"]) == 0
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert main([*arguments, "c.eif"]) == 0
    times = []
    for name in ("a.eif", "b.eif", "c.eif"):
        image = read_eif(Path(name))
        assert image.metadata is not None
        build = image.metadata["BuildMetadata"]
        assert isinstance(build, dict)
        times.append((build["BuildTime"], {e.mtime for e in read_newc(image.ramdisks[1])}))
    assert times == [
        ("2023-11-14T22:13:20+00:00", {1700000000}),
        ("2026-01-01T00:00:00+00:00", {1700000000}),
        ("1970-01-01T00:00:00+00:00", {0}),
    ]
    first, second = (measure(read_eif(Path(name))) for name in ("a.eif", "b.eif"))
    assert first == second


def test_everything_at_once() -> None:
    as_archive(docker_files(Image([tar(entry("app", data=b"x"))])), Path("image.tar"))
    Path("init").write_bytes(b"#!/app")
    Path("nsm.ko").write_bytes(b"NSM")
    Path("meta.json").write_text('{"team": "t"}')
    Path("env").write_text("E=1\n")
    status = main(
        ["eif", "build", "--container", "image.tar", "--tag", "app:1.2", "--init", "init", "--nsm", "nsm.ko",
         "--metadata", "meta.json", "--env-file", "env", "--env", "F=2", "--cmdline", "quiet", "--name", "n",
         "--version", "v", "--arch", "x86_64", "--limit", "1M", "--output", "o.eif"]
    )  # fmt: skip
    assert status == 0
    image = read_eif(Path("o.eif"))
    assert image.cmdline == b"quiet"
    assert [e.name for e in read_newc(image.ramdisks[0])] == ["dev", "init", "nsm.ko"]
    assert {e.name: bytes(e.data) for e in read_newc(image.ramdisks[1])}["env"] == b"A=1\nB=x=y\nE=1\nF=2\n"
    assert image.metadata is not None
    assert (image.metadata["ImageName"], image.metadata["CustomMetadata"]) == ("n", {"team": "t"})


def test_a_replaced_image_may_be_its_own_source() -> None:
    arguments = ["eif", "build", "--root", "root", "--command", "/bin/app", "--output", "o.eif"]
    assert main(arguments) == 0
    before = Path("o.eif").read_bytes()
    assert main([*arguments, "--from", "o.eif"]) == 0
    assert Path("o.eif").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--output"),
        ("--output o.eif", "nothing to build of"),
        ("--output o.eif --root root", "add --command"),
        ("--output o.eif --root root --container c --command a", "not allowed with"),
        ("--output o.eif --ramdisk r --command a", "leave out --command"),
        ("--output o.eif --ramdisk r --tag x", "--tag"),
        ("--output o.eif --ramdisk r --keep-modes", "--keep-modes"),
        ("--output o.eif --ramdisk none", "cannot read the ramdisk"),
        ("--output o.eif --container none", "cannot read the container image"),
        ("--output o.eif --root none --command a", "not a folder"),
        ("--output o.eif --root root --command a --arch aarch64", "kernel is for x86_64"),
        ("--output no/o.eif --root root --command a", "cannot write"),
        ("--output root/o.eif --root root --command a", "lies in the root folder"),
        ("--output o.eif --root root --command a --env X", "not NAME=value"),
        ("--output o.eif --root root --command a --build-time x", "no time"),
        ("--output o.eif --root root --command a --from root/bin/app", "not an EIF"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(str(path) for path in Path().rglob("*"))
    assert main(["eif", "build", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_umask_decides_who_may_read_the_image() -> None:
    before = os.umask(0o027)
    try:
        assert main(["eif", "build", "--root", "root", "--command", "/bin/app", "--output", "o.eif"]) == 0
    finally:
        os.umask(before)
    assert Path("o.eif").stat().st_mode & 0o777 == 0o640
