"""`python -m tests.fuzz [TARGET ...] [--seconds N | --runs N]`: fuzz with atheris, one process for each target.

What is found on the way is kept in .fuzz/TARGET and used the next time; an input that fails is put into .fuzz as
TARGET-crash-..., and given as an argument (`python -m tests.fuzz TARGET --input FILE`) it fails again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".fuzz"
TARGETS = ("image", "sign", "signature", "files", "ramdisk", "request", "document", "policy")


def fuzz(target: str, limits: list[str], folder: Path) -> None:
    """Fuzz one target in this process; atheris ends it, with a status of its own when an input failed."""
    import atheris

    with atheris.instrument_imports(include=["enclavedbg.eif", "enclavedbg.nsm"]):
        from tests.fuzz import targets

    found = folder / target
    found.mkdir(parents=True, exist_ok=True)
    seeds = targets.seeds(target)[0].parent
    run = targets.TARGETS[target]
    options = ["-max_len=16384", "-timeout=20", "-rss_limit_mb=1500", *limits, "-print_final_stats=1"]
    options.append(f"-artifact_prefix={folder}/{target}-")
    atheris.Setup([sys.argv[0], *options, str(found), str(seeds)], lambda data: run(bytes(data)))
    atheris.Fuzz()


def main() -> int:
    """0 when nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: 600)")
    parser.add_argument("--runs", type=int, help="so many inputs instead, the same each time")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what was found (default: .fuzz)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run the target on this file alone")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {unknown.pop()!r}; there are {', '.join(TARGETS)}")
    names = options.targets or TARGETS
    if options.input is not None:
        from tests.fuzz import targets

        for name in names:
            targets.TARGETS[name](options.input.read_bytes())
        return 0
    if options.runs is None:
        limits, limit = [f"-max_total_time={options.seconds}"], f"for {options.seconds} s"
    else:
        limits, limit = [f"-runs={options.runs}", "-seed=1"], f"with {options.runs} inputs"
    if options.here:
        fuzz(names[0], limits, options.folder)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed: pip install 'enclavedbg[fuzz]', or make fuzz", file=sys.stderr)
        return 2
    passed_on = ["--folder", str(options.folder)]
    passed_on += ["--seconds", str(options.seconds)] if options.runs is None else ["--runs", str(options.runs)]
    failed = []
    for name in names:
        print(f"fuzzing {name} {limit}", flush=True)
        if subprocess.call([sys.executable, "-m", "tests.fuzz", name, "--here", *passed_on]):
            failed.append(name)
    print(f"failed: {', '.join(failed)}; the inputs are in {options.folder}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
