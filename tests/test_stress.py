"""The stress image in its short form, on both paths of the software CPU; `make stress` is the long form."""

from __future__ import annotations

import asyncio

import pytest

from tests.stress import ALL_OK, image, run

pytestmark = pytest.mark.live


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_the_guest_computes_what_hardware_does(native: bool) -> None:
    result = asyncio.run(run(image(["rounds=1", "spawns=100"]), native=native, seconds=120))
    bad = [line for line in result.lines if " bad" in line]
    assert not bad
    assert ALL_OK in result.lines, result.verdict
    assert result.exit_status == 0
