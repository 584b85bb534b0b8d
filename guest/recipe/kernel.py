"""Build the demo image's kernel: fetch Debian's source package, unpack, configure, compile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .apt import Package, default_apt
from .errors import RecipeError
from .tools import need_programs, run, sha256

SOURCE = Package(
    "linux-source-6.12",
    version="6.12.95-1~bpo12+1",
    sha256="a7fe4673af74236c99dad9766eca714a198e50a07e5d659e63ec312ae6afccfe",
)
TARBALL = "usr/src/linux-source-6.12.tar.xz"
TARBALL_SHA256 = "c3d492fad8410e524fc5fb395b4873960591a39a00b04ef6f44c894d725dabce"

PROGRAMS = {
    "gcc": "gcc", "make": "make", "bc": "bc", "flex": "flex", "bison": "bison", "perl": "perl", "xz": "xz-utils",
    "zstd": "zstd", "pahole": "pahole", "cpio": "cpio", "dpkg-deb": "dpkg", "objcopy": "binutils",
}  # fmt: skip
HEADERS = {"/usr/include/gelf.h": "libelf-dev"}

# What would differ from one build to the next: Debian's build date of the source, and names that name nobody.
FIXED = {
    "KBUILD_BUILD_TIMESTAMP": "2026-07-05 00:00:00 UTC",
    "KBUILD_BUILD_USER": "enclavedbg",
    "KBUILD_BUILD_HOST": "enclavedbg",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
}
# The folder names that debug information gets instead of this machine's: the build id is a hash over it too.
PUBLIC_SOURCE = "/usr/src/linux-source-6.12"
PUBLIC_BUILD = "/usr/src/linux-build"


@dataclass(frozen=True)
class KernelBuild:
    """What a build gave: paths below its working folder, the version and the SHA-256 of the bzImage."""

    bzimage: Path
    vmlinux: Path
    modules: tuple[Path, ...]
    release: str
    digest: str


def build_kernel(work: Path, *, config: Path, jobs: int) -> KernelBuild:
    """Build bzImage, vmlinux and modules below ``work``.

    :raises RecipeError: a missing program, a source that is not the pinned one, or a failed build
    """
    source = prepare_source(work)
    build = work / "build"
    build.mkdir(exist_ok=True)
    shutil.copyfile(config, build / ".config")
    _make(source, build, "olddefconfig")
    _same_configuration(config, build / ".config")
    print(f"compiling in {build} with {jobs} jobs", flush=True)
    _make(source, build, f"-j{jobs}", "bzImage", "modules")
    release = (build / "include/config/kernel.release").read_text().strip()
    bzimage = build / "arch/x86/boot/bzImage"
    return KernelBuild(bzimage, build / "vmlinux", _strip_modules(build), release, sha256(bzimage))


def reconfigure(work: Path, *, fragment: Path, config: Path) -> None:
    """Write ``config`` anew: everything off that can be off, and what ``fragment`` names.

    :raises RecipeError: an option of the fragment cannot be had
    """
    source = prepare_source(work)
    build = work / "configure"
    build.mkdir(exist_ok=True)
    _make(source, build, f"KCONFIG_ALLCONFIG={fragment.resolve()}", "allnoconfig")
    made = set((build / ".config").read_text().splitlines())
    lost = [line for line in fragment.read_text().splitlines() if line.startswith("CONFIG_") and line not in made]
    if lost:
        raise RecipeError(f"the kernel's configuration does not take {', '.join(lost)}; see its dependencies")
    shutil.copyfile(build / ".config", config)
    print(f"{config} written")


def prepare_source(work: Path) -> Path:
    """Return the folder of the unpacked kernel source, fetched and checked."""
    need_programs(PROGRAMS)
    missing = [package for header, package in HEADERS.items() if not Path(header).exists()]
    if missing:
        raise RecipeError(f"headers are missing; install them: sudo apt-get install {' '.join(missing)}")
    work.mkdir(parents=True, exist_ok=True)
    source = work / "linux-source-6.12"
    complete = work / f"source-{TARBALL_SHA256[:16]}"
    if complete.exists():
        return source
    print(f"fetching {SOURCE.name} {SOURCE.version}", flush=True)
    package = default_apt().fetch(SOURCE)
    print(f"unpacking {package.name}", flush=True)
    run(["dpkg-deb", "-x", package, work / "package"])
    tarball = work / "package" / TARBALL
    if (digest := sha256(tarball)) != TARBALL_SHA256:
        raise RecipeError(f"{tarball} has SHA-256 {digest}, the recipe pins {TARBALL_SHA256}")
    shutil.rmtree(source, ignore_errors=True)
    run(["tar", "-x", "-f", tarball, "-C", work])
    shutil.rmtree(work / "package")
    complete.touch()
    return source


def _make(source: Path, build: Path, *words: str) -> None:
    maps = f"-fdebug-prefix-map={build.resolve()}={PUBLIC_BUILD} -fdebug-prefix-map={source.resolve()}={PUBLIC_SOURCE}"
    command = ["make", "-s", "-C", str(source), f"O={build.resolve()}", f"KCFLAGS={maps}", f"KAFLAGS={maps}", *words]
    log = build / "make.log"
    with log.open("ab") as file:
        done = subprocess.run(
            command, env={**os.environ, **FIXED}, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
        )
    if done.returncode != 0:
        raise RecipeError(f"make {' '.join(words)} failed with status {done.returncode}; its messages are in {log}")


def _same_configuration(wanted: Path, made: Path) -> None:
    """Check that olddefconfig changed nothing but what names the compiler."""

    def options(path: Path) -> set[str]:
        about_tools = re.compile(r"CONFIG_(CC|GCC|AS|LD|LLD|PAHOLE|CLANG|RUSTC|BINDGEN|TOOLS)_")
        return {
            line
            for line in path.read_text().splitlines()
            if re.match(r"(# )?CONFIG_", line) and not about_tools.search(line)
        }

    different = sorted(options(wanted) ^ options(made))
    if different:
        raise RecipeError(
            f"{wanted.name} does not fit this source and compiler, for example {different[0]!r}; "
            "build on Debian 12, or make it anew with --reconfigure"
        )


def _strip_modules(build: Path) -> tuple[Path, ...]:
    folder = build / "stripped"
    folder.mkdir(exist_ok=True)
    modules = []
    for line in (build / "modules.order").read_text().split():
        module = build / Path(line).with_suffix(".ko")
        run(["objcopy", "--strip-debug", module, folder / module.name])
        modules.append(folder / module.name)
    return tuple(modules)
