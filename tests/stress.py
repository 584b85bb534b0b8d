"""Runs the stress image on the software CPU: what CI does in a short form, `make stress` for long and repeatedly.

    python -m tests.stress [--runs N] [--rounds N] [--spawns N] [--python]

The guest's program compares everything with known results and says `STRESS all ok`; anything else is a failure of
the CPU. `--python` keeps to the engine's Python path, without the native part.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from enclavedbg.errors import EnclaveDbgError
from enclavedbg.machine.enclave import Enclave, EnclaveConfig
from enclavedbg.machine.events import ConsoleLine, Record

GUEST = Path(__file__).resolve().parents[1] / "guest"
ALL_OK = "STRESS all ok"


@dataclass(frozen=True, slots=True)
class Result:
    """How one run went: the program's own lines, the verdict, and host seconds."""

    lines: tuple[str, ...]
    verdict: str
    exit_status: int
    seconds: float

    @property
    def held(self) -> bool:
        return self.exit_status == 0 and ALL_OK in self.lines


def image(arguments: list[str]) -> bytes:
    """The stress image with the demo's kernel; arguments are the program's `name=value`."""
    if str(GUEST) not in sys.path:
        sys.path.insert(0, str(GUEST))
    from recipe.images import packaged_parts, packaged_stress, stress_image

    return stress_image(packaged_parts(), packaged_stress(), arguments)


async def run(eif: bytes, *, native: bool = True, seconds: float = 600, echo: bool = False) -> Result:
    """Run an image to its end, or for `seconds` at most."""
    lines: list[str] = []

    def observe(record: Record) -> None:
        if isinstance(record.event, ConsoleLine) and record.event.text.startswith("STRESS"):
            lines.append(record.event.text)
            if echo:
                print(f"  {record.event.text}", flush=True)

    loop = asyncio.get_running_loop()
    began = time.monotonic()
    config = EnclaveConfig(eif, ephemeral_authority=True, native=native)
    enclave = Enclave(config, loop=loop, observe=observe)
    try:
        enclave.start()
        timer = loop.call_later(seconds, enclave.time_out, seconds)
        verdict = await enclave.wait_ended()
        timer.cancel()
    finally:
        await enclave.close()
    return Result(tuple(lines), verdict.line, verdict.exit_status, time.monotonic() - began)


def main() -> int:
    """Run as the command line says; 0 when every run held."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spawns", type=int, default=2000)
    parser.add_argument("--python", action="store_true")
    options = parser.parse_args()
    eif = image([f"rounds={options.rounds}", f"spawns={options.spawns}"])
    failed = 0
    for number in range(1, options.runs + 1):
        print(f"run {number} of {options.runs}", flush=True)
        result = asyncio.run(run(eif, native=not options.python, echo=True, seconds=3600))
        failed += not result.held
        print(f"  {'held' if result.held else 'FAILED'} in {result.seconds:.1f} s: {result.verdict}", flush=True)
    print(f"{options.runs - failed} of {options.runs} runs held")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EnclaveDbgError as error:
        sys.exit(f"stress: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
