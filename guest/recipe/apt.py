"""Fetch Debian packages without installing them, without root, and without touching the machine's own apt sources.

apt gets a configuration of its own, in the cache folder: one source (the wanted suite on the mirror that the machine
already uses), no installed packages, Debian's archive keys as the only trusted ones. So signatures are checked as
always, on any machine that has apt and the package debian-archive-keyring.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import FetchError
from .tools import cache_directory, run, sha256

DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITE = "bookworm-backports"


@dataclass(frozen=True)
class Package:
    """A package as the recipe pins it; without version or digest, whatever the suite has."""

    name: str
    version: str | None = None
    sha256: str | None = None


def own_mirror() -> str:
    """Return the Debian mirror of this machine's apt sources, or deb.debian.org where there is none."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return DEFAULT_MIRROR
    for uri in found.split():
        if re.search(r"/debian/?$", uri):
            return uri.rstrip("/")
    return DEFAULT_MIRROR


class Apt:
    """An apt of our own for one suite, with its state under ``root``."""

    def __init__(self, root: Path, *, suite: str = SUITE, mirror: str | None = None) -> None:
        self.root = root
        self.suite = suite
        self.mirror = mirror or own_mirror()
        self.downloads = root / "packages"
        self._updated = False

    def _options(self) -> list[str]:
        options = {
            "Dir": self.root / "apt",
            "Dir::Etc::sourcelist": self.root / "apt/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::status": self.root / "apt/status",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",  # no second user: the folder may be closed to it
            "Acquire::Languages": "none",
            "Acquire::Retries": "1",
        }
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the suite's package list, once per object."""
        if self._updated:
            return
        if not KEYRING.exists():
            raise FetchError(f"{KEYRING} is missing; install it: sudo apt-get install debian-archive-keyring")
        for folder in ("apt/var/lib/apt/lists/partial", "apt/var/cache/apt/archives/partial", "packages"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "apt/status").touch()
        source = f"deb [arch=amd64 signed-by={KEYRING}] {self.mirror} {self.suite} main\n"
        (self.root / "apt/sources.list").write_text(source)
        # Without "any" a mirror that does not answer is only a warning, and an old list would be used unnoticed.
        run(["apt-get", *self._options(), "-q", "--error-on=any", "update"], error=FetchError)
        self._updated = True

    def newest(self, pattern: str) -> str:
        """Return the package name matching the regular expression that has the highest version in it."""
        self.update()
        names = run(["apt-cache", *self._options(), "pkgnames", "linux-"], error=FetchError).split()
        matching = [name for name in names if re.fullmatch(pattern, name)]
        if not matching:
            raise FetchError(f"{self.suite} on {self.mirror} has no package that matches {pattern}")
        return max(matching, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    def fetch(self, package: Package) -> Path:
        """Return the path of the package's .deb, downloaded unless it is there already.

        :raises FetchError: no network, no such version, or another digest than the pinned one
        """
        self.downloads.mkdir(parents=True, exist_ok=True)
        found = self._downloaded(package)
        if found is None:
            self.update()
            wanted = package.name if package.version is None else f"{package.name}={package.version}"
            run(["apt-get", *self._options(), "-q", "download", wanted], directory=self.downloads, error=FetchError)
            found = self._downloaded(package)
        if found is None:
            raise FetchError(f"apt downloaded {package.name}, but not to {self.downloads}")
        if package.sha256 is not None and (digest := sha256(found)) != package.sha256:
            raise FetchError(f"{found} has SHA-256 {digest}, the recipe pins {package.sha256}; delete the file")
        return found

    def _downloaded(self, package: Package) -> Path | None:
        # apt writes the colon of an epoch as %3a; kernel packages have none, but + and ~ stay as they are.
        version = "*" if package.version is None else package.version.replace(":", "%3a")
        matches = sorted(self.downloads.glob(f"{package.name}_{version}_*.deb"))
        return matches[-1] if matches else None


def default_apt() -> Apt:
    """Return the apt in the user's cache folder."""
    return Apt(cache_directory("apt"))
