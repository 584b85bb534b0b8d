"""`python -m benchmarks [NAME ...]`: measure, print, and with --record append to a file."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from benchmarks import attest, boot, debugger, echo, eif, footprint, host, output
from benchmarks.harness import Context, Progress, Report
from benchmarks.process import Failed
from enclavedbg.errors import EnclaveDbgError

BENCHMARKS: dict[str, tuple[str, Callable[[Context], None]]] = {
    "boot": ("the demo image, against QEMU", boot.boot_demo),
    "boot-debian": ("Debian's cloud kernel, against QEMU", boot.boot_debian),
    "stress": ("the CPU at work, with and without the native part, against QEMU", boot.stress),
    "memory": ("the process's memory besides the guest's RAM", footprint.memory),
    "gdb": ("from connecting to a backtrace with names", debugger.gdb),
    "attest": ("the secure module's documents, against bare signatures", attest.attest),
    "explain": ("a document explained, against the start of the command", attest.explain),
    "eif-measure": ("measurements of a 1 GiB image, against bare SHA-384", eif.measure),
    "eif-ls": ("files of a 300 MB gzip ramdisk, against zlib", eif.listing),
    "vsock": ("echo through the guest, against a plain echo server", echo.vsock),
}


def _terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    listing = "\n".join(f"  {name:12} {what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"benchmarks, all by default:\n{listing}",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure")
    parser.add_argument("--rounds", type=int, help="turns of each, instead of what it takes by itself")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append the results to a file of JSON lines")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected 1 or more")
    return options


def _measure(name: str, rounds: int | None) -> tuple[Report, bool]:
    """One benchmark's report, and whether it could be made."""
    what, run = BENCHMARKS[name]
    report = Report(f"{name}: {what}")
    progress = Progress(name)
    try:
        with tempfile.TemporaryDirectory(prefix="enclavedbg-bench-") as folder:
            run(Context(Path(folder), report, progress, rounds))
    except (Failed, EnclaveDbgError, OSError) as error:
        report.note(f"failed: {error}")
        return report, False
    finally:
        progress.close()
    return report, True


def main() -> int:
    """0 when all that can be measured here was."""
    options = _parse()
    signal.signal(signal.SIGTERM, _terminated)
    began = time.monotonic()
    machine = host.describe()
    when = datetime.now(UTC)
    print(f"{when:%Y-%m-%d %H:%M} UTC; " + "; ".join(f"{name} {value}" for name, value in machine.items()))
    print("Each figure is a median, with the smallest and the largest value; ratios are taken turn by turn.")
    failed = False
    for name in options.names or BENCHMARKS:
        report, complete = _measure(name, options.rounds)
        failed |= not complete
        print("\n" + "\n".join(output.lines(report)), flush=True)
        if options.record is not None:
            output.record(options.record, report, machine=machine, when=when)
    print(f"\nmeasured in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
