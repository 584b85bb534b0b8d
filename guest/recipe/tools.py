"""Running other programs, and telling a person which one is missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import RecipeError


def cache_directory(name: str) -> Path:
    """Return (and make) the folder for downloaded and built things that can be had again."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "enclavedbg" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def need_programs(packages: Mapping[str, str]) -> None:
    """Raise RecipeError unless every program (key) is there; the value is Debian's package of it."""
    missing = sorted({package for program, package in packages.items() if shutil.which(program) is None})
    if missing:
        raise RecipeError(f"programs are missing; install them: sudo apt-get install {' '.join(missing)}")


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    error: type[RecipeError] = RecipeError,
) -> str:
    """Run a program to its end and return its output.

    :param environment: added to this process's own
    :raises RecipeError: (or ``error``) with the last line that the program said, on standard error first
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **(environment or {})},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as missing:
        raise error(f"the program {command[0]} is not installed") from missing
    if done.returncode != 0:
        said = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()] or ["no message"]
        raise error(f"{Path(command[0]).name} failed with status {done.returncode}: {said[-1]}")
    return done.stdout
