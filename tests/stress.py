"""Runs the stress image on the software CPU: what CI does in a short form, `make stress` for long and repeatedly.

    python -m tests.stress [--runs N] [--rounds N] [--spawns N] [--kernel demo|debian] [--path native|python]

Each run takes both kernels (Debian's where apt can fetch it) on both paths of the engine, and then guests of random
code (tests/live/fuzz.py), unless one kernel or path is named. The guest's program compares everything with known
results and says `STRESS all ok`; anything else is a failure of the CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
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


def image(arguments: list[str], *, kernel: str = "demo") -> bytes:
    """The stress image with the demo's or Debian's kernel; arguments are the program's `name=value`.

    Raises EnclaveDbgError when Debian's cannot be fetched.
    """
    if str(GUEST) not in sys.path:
        sys.path.insert(0, str(GUEST))
    from recipe.debian import debian_image, fetch_kernel
    from recipe.images import packaged_parts, packaged_stress, stress_image

    if kernel == "debian":
        return debian_image(fetch_kernel(), program="stress", arguments=arguments)
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


def _images(options: argparse.Namespace) -> Iterator[tuple[str, bool, bytes]]:
    """Kernel, whether on the native path, and image of each part of a run."""
    for kernel in [options.kernel] if options.kernel else ["demo", "debian"]:
        for path in [options.path] if options.path else ["native", "python"]:
            # Python alone takes five to ten times as long.
            share = 1 if path == "native" else 5
            arguments = [f"rounds={-(-options.rounds // share)}", f"spawns={-(-options.spawns // share)}"]
            try:
                yield kernel, path == "native", image(arguments, kernel=kernel)
            except EnclaveDbgError as error:
                if options.kernel:
                    raise
                print(f"{kernel} left out: {error}", flush=True)
                break


def _stress(options: argparse.Namespace, number: int) -> int:
    failed = 0
    for kernel, native, eif in _images(options):
        what = f"run {number} of {options.runs}, {kernel} kernel, {'native' if native else 'python'}"
        print(what, flush=True)
        result = asyncio.run(run(eif, native=native, echo=True, seconds=3600))
        failed += not result.held
        print(f"{what}: {'held' if result.held else 'FAILED'} in {result.seconds:.1f} s: {result.verdict}", flush=True)
    return failed


def _fuzz(options: argparse.Namespace, number: int) -> int:
    failed = 0
    for path in [options.path] if options.path else ["native", "python"]:
        first = 1_000_000 + number * options.guests
        command = [sys.executable, "-m", "tests.live.fuzz", path, str(first), str(options.guests)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        last = (done.stdout.splitlines() or ["nothing"])[-1]
        failed += done.returncode != 0
        how = last if done.returncode == 0 else f"FAILED in guest {last}"
        print(f"run {number} of {options.runs}, {options.guests} random guests, {path}: {how}", flush=True)
    return failed


def main() -> int:
    """Run as the command line says; 0 when every part of every run held."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress")
    parser.add_argument("--runs", type=int, default=3, help="how often all is done (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the guest's program (default: %(default)s)")
    parser.add_argument("--spawns", type=int, default=2000, help="processes per round (default: %(default)s)")
    parser.add_argument("--guests", type=int, default=1000, help="random guests per run (default: %(default)s)")
    parser.add_argument("--kernel", choices=("demo", "debian"), help="this kernel only")
    parser.add_argument("--path", choices=("native", "python"), help="this path of the software CPU only")
    options = parser.parse_args()
    failed = sum(_stress(options, n) + _fuzz(options, n) for n in range(1, options.runs + 1))
    print(f"{failed} parts FAILED" if failed else f"all of {options.runs} runs held")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EnclaveDbgError as error:
        sys.exit(f"stress: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
