"""The fuzz targets, briefly: their seeds, mutations of these, and a few seconds of atheris where it is installed."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import TARGETS as NAMES
from tests.fuzz.targets import TARGETS, seeds

MUTATIONS = 40
INTERESTING = [bytes(1), b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff" * 8, b"0" * 8, b"F" * 8, b"TRAILER!!!", b"../"]


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: bits, bytes that matter, cuts, pieces copied elsewhere."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(changed) + 1)
        match dice.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                piece = dice.choice(INTERESTING)
                changed[at : at + len(piece)] = piece
            case 2:
                del changed[at : at + dice.randint(1, 40)]
            case 3:
                start = dice.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + dice.randint(1, 200)]
            case _:
                changed[at : at + 1] = dice.randbytes(1)
    return bytes(changed)


def test_every_target_is_known_and_has_seeds() -> None:
    assert tuple(TARGETS) == NAMES
    assert all(len(seeds(name)) >= 2 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_their_mutations(name: str) -> None:
    dice = random.Random(name)
    for seed in seeds(name):
        data = seed.read_bytes()
        TARGETS[name](data)
        for _ in range(MUTATIONS):
            TARGETS[name](mutate(data, dice))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (make fuzz does)")
@pytest.mark.parametrize("name", NAMES)
def test_a_little_of_atheris(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", name, "--runs", "5000", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "nothing failed" in done.stdout
