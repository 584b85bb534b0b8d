"""An image that `enclavedbg eif build` made boots, and its program runs as the image says."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclavedbg.cli import main
from enclavedbg.eif import read_eif
from enclavedbg.eif.cpio import read_newc
from enclavedbg.machine.verdict import Outcome
from tests.eif.build.images import Image, as_archive, docker_files, entry, tar
from tests.live.driver import DEMO, READY, play, running

pytestmark = pytest.mark.live


def demo_program() -> bytes:
    entries = read_newc(read_eif(DEMO).ramdisks[1])
    return next(bytes(e.data) for e in entries if e.name == "rootfs/demo")


def boots_and_ends(image: Path, program: str) -> None:
    async def scene() -> None:
        async with running(eif=image) as run:
            await run.until_console(READY)
            await run.once("vsock.heartbeat")
            assert await run.command("exit 3") == b"ok\n"
            verdict = await run.verdict()
            assert verdict.outcome is Outcome.CLEAN
            assert verdict.line == f"the enclave ended: init: {program} exited with status 3"

    play(scene)


def test_from_a_folder(tmp_path: Path) -> None:
    program = tmp_path / "root/usr/bin/demo"
    program.parent.mkdir(parents=True)
    program.write_bytes(demo_program())
    program.chmod(0o755)
    output = tmp_path / "o.eif"
    assert main(["eif", "build", "--root", str(tmp_path / "root"), "--command", "demo", "--output", str(output)]) == 0
    boots_and_ends(output, "demo")


def test_from_a_container_image_with_hard_links_and_links_between_layers(tmp_path: Path) -> None:
    lower = tar(
        entry("usr/bin", "folder"),
        entry("bin", "symlink", target="usr/bin"),
        entry("usr/bin/first", data=demo_program(), mode=0o755),
        entry("usr/bin/other", "link", target="usr/bin/first"),
    )
    upper = tar(entry("bin/.wh.first"), entry("bin/zz", "link", target="bin/other"))
    image = Image([lower, upper], run={"Cmd": ["/bin/zz"], "Env": ["PATH=/bin"]})
    archive = as_archive(docker_files(image), tmp_path / "image.tar")
    output = tmp_path / "o.eif"
    assert main(["eif", "build", "--container", str(archive), "--output", str(output)]) == 0
    boots_and_ends(output, "/bin/zz")
