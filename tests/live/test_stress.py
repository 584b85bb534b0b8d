"""The stress image in its short form, on both kernels and both paths of the CPU; `make stress` is the long form."""

from __future__ import annotations

import asyncio

import pytest

from enclavedbg.machine.cpu.soft import native
from tests.live.debian import debian_eif
from tests.stress import ALL_OK, image, run

pytestmark = pytest.mark.live

NATIVE = pytest.param(
    True, id="native", marks=pytest.mark.skipif(native.load() is None, reason="the native part is not built")
)
PYTHON = pytest.param(False, id="python")
PARTS = {
    "sha", "integers", "floating", "rounding", "strings", "rewrite", "next", "alias", "protect", "exceptions",
    "spawn", "threads", "signals", "pipes", "memory", "files", "clock", "module",
}  # fmt: skip


def holds(eif: bytes, *, use_native: bool, rounds: int) -> None:
    """The program compares all that it does with known results; here it counts that nothing was left out."""
    result = asyncio.run(run(eif, native=use_native, seconds=180))
    assert [line for line in result.lines if " bad" in line] == []
    assert ALL_OK in result.lines, result.verdict
    done = [line.split()[1] for line in result.lines if " ok (round" in line]
    assert {part: done.count(part) for part in PARTS} == dict.fromkeys(PARTS, rounds)
    assert result.exit_status == 0


@pytest.mark.parametrize("use_native", [NATIVE, PYTHON])
def test_the_guest_computes_what_hardware_does(use_native: bool) -> None:
    rounds, spawns = (2, 1000) if use_native else (1, 100)
    holds(image([f"rounds={rounds}", f"spawns={spawns}"]), use_native=use_native, rounds=rounds)


@pytest.mark.debian
@pytest.mark.parametrize("use_native", [NATIVE, PYTHON])
def test_debians_kernel_computes_what_hardware_does(use_native: bool) -> None:
    holds(debian_eif("stress", "rounds=1", "spawns=100"), use_native=use_native, rounds=1)
