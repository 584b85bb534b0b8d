"""The demo as a person or a CI job starts it: a process of its own, from outside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enclavedbg.demo import image_path
from enclavedbg.eif import measure, read_eif

pytestmark = pytest.mark.live

COMMAND = [sys.executable, "-m", "enclavedbg", "demo"]


def tour(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_every_step_of_the_tour_holds() -> None:
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb: apt install gdb")
    done = tour()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("All 6 steps held")
    for index, value in measure(read_eif(image_path())).as_mapping().items():
        assert f"PCR{index}: {value.hex()}" in done.stdout
    stages = re.findall(r"^ +\d+\.\d{3} s  ([a-z-]+):", done.stdout, re.M)
    assert stages[0] == "eif-read" and stages[-1] == "heartbeat"
    assert re.search(r"#0 +0x[0-9a-f]{16} in __x64_sys_poll\n +#1 .* do_syscall_64", done.stdout)
    assert "from connect to a backtrace with names" in done.stdout


def test_a_missing_gdb_is_said_with_the_cure_and_fails_the_tour(tmp_path: Path) -> None:
    done = tour(PATH=str(tmp_path))
    assert done.returncode == 1
    assert "gdb is missing; install it: apt install gdb" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(re.findall("^   held: ", done.stdout, re.M)) == 5


def test_a_damaged_demo_image_fails_the_tour_at_once(tmp_path: Path) -> None:
    """What the tour says is checked: the same steps on an image that is not the recorded one must not hold."""
    broken = bytearray(image_path().read_bytes())
    broken[len(broken) // 2] ^= 1
    copy = tmp_path / "demo.eif"
    copy.write_bytes(broken)
    code = (
        "import sys, enclavedbg.demo as demo; from pathlib import Path;"
        f"demo.image_path = lambda: Path({str(copy)!r});"
        "from enclavedbg.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("enclavedbg: ") and "Traceback" not in done.stderr
