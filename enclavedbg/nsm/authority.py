"""The development authority: signs attestation documents as Nitro's does, under a root of its own.

The root is kept in a state folder, so that a verifier can be given it once, or made afresh. Intermediate
certificates and leaf are made anew in every run and renewed before they expire.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from enclavedbg.errors import NsmError

if TYPE_CHECKING:
    # Loading cryptography takes longer than all else in a start; nothing needs it before the first document.
    from enclavedbg.nsm.certificates import Level, Link

log = logging.getLogger(__name__)

FILE_NAME = "authority.pem"
RENEWAL_MARGIN = timedelta(minutes=10)
"""A leaf with less than this left is replaced, so that who gets a document has time to check it."""


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's things outlive a run: $XDG_STATE_HOME/enclavedbg, by default under ~/.local/state."""
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path(environ.get("HOME", "~")).expanduser() / ".local/state"
    return base / "enclavedbg"


def default_folder(environ: Mapping[str, str]) -> Path:
    """Where the authority is kept, in the user's state folder."""
    return state_folder(environ) / "authority"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs one document: DER of the leaf, and of those above it from the root down (`cabundle`)."""

    certificate: bytes
    cabundle: tuple[bytes, ...]
    sign: Callable[[bytes], bytes]
    """ES384 over its argument, as 96 bytes r || s."""


class Authority:
    """A chain of certificates that is made when first needed. Safe for several threads.

    `folder` keeps the root between runs; None makes a root that ends with this object. `now` gives aware
    datetimes and `random_bytes` keys, serial numbers and names. With `repeatable`, signatures depend on nothing
    else: with the same times and bytes all certificates and documents are the same.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        now: Callable[[], datetime],
        random_bytes: Callable[[int], bytes],
        repeatable: bool = False,
    ) -> None:
        self.folder = folder
        self._now = now
        self._random_bytes = random_bytes
        self._repeatable = repeatable
        self._lock = threading.Lock()
        self._chain: list[Link] = []
        self._module_id: str | None = None

    def root(self) -> bytes:
        """The root certificate in DER: what a verifier pins. Raises NsmError when it cannot be had."""
        with self._lock:
            return self._root().der

    def root_link(self) -> Link:
        """The root with its private key: for who issues other certificates under it. Raises NsmError likewise."""
        with self._lock:
            return self._root()

    def credentials(self, module_id: str) -> Credentials:
        """What signs a document of module `module_id` now; renews what is about to expire.

        Raises NsmError when the root cannot be kept or read.
        """
        with self._lock:
            if module_id != self._module_id:
                del self._chain[1:]
                self._module_id = module_id
            leaf = self._ensure(4, RENEWAL_MARGIN, module_id)
            return Credentials(leaf.der, tuple(link.der for link in self._chain[:-1]), leaf.sign)

    def _ensure(self, depth: int, remaining: timedelta, module_id: str) -> Link:
        """The certificate of a level with at least `remaining` of its life left, remade if need be.

        A new certificate needs an issuer that outlives it, so renewal goes up the chain as far as it must.
        """
        from enclavedbg.nsm.certificates import LEVELS, issue, private_key

        if depth == 0:
            return self._root()
        now = self._now()
        if depth < len(self._chain):
            kept = self._chain[depth]
            # The clock may have been set back: then it is not valid yet.
            if kept.not_before <= now <= kept.not_after - remaining:
                return kept
        level = LEVELS[depth]
        issuer = self._ensure(depth - 1, min(level.lifetime, LEVELS[depth - 1].lifetime / 2), module_id)
        del self._chain[depth:]
        identity, serial = self._identity(level, module_id, now)
        link = issue(
            level,
            issuer=issuer,
            identity=identity,
            serial=serial,
            now=now,
            key=private_key(self._random_bytes),
            repeatable=self._repeatable,
        )
        self._chain.append(link)
        log.debug("issued a %s certificate, valid until %s", level.name, link.not_after)
        return link

    def _identity(self, level: Level, module_id: str, now: datetime) -> tuple[str, int]:
        """What a level's subject is named after, and its serial number.

        A real leaf's serial is the enclave's slot id and the time of issue in seconds, 8 bytes each.
        """
        from enclavedbg.nsm.certificates import random_serial

        instance, _, slot = module_id.partition("-enc")
        if level.name == "leaf":
            with contextlib.suppress(ValueError):
                return module_id, (int(slot, 16) & (1 << 64) - 1) << 64 | int(now.timestamp())
            return module_id, random_serial(self._random_bytes)
        identity = instance if level.name == "instance" else self._random_bytes(8).hex()
        return identity, random_serial(self._random_bytes)

    def _root(self) -> Link:
        """The root, made or read on first use."""
        if not self._chain:
            self._chain.append(self._make_root() if self.folder is None else self._kept_root(self.folder))
        return self._chain[0]

    def _make_root(self) -> Link:
        from enclavedbg.nsm.certificates import ROOT, issue, private_key, random_serial

        return issue(
            ROOT,
            issuer=None,
            identity="",
            serial=random_serial(self._random_bytes),
            now=self._now(),
            key=private_key(self._random_bytes),
            repeatable=self._repeatable,
        )

    def _kept_root(self, folder: Path) -> Link:
        from enclavedbg.nsm.certificates import from_pem, to_pem

        path = folder / FILE_NAME
        pem = kept_pem(folder)
        try:
            if pem is None:
                log.info("making a new development authority in %s", folder)
                pem = _write_once(path, to_pem(self._make_root()))
        except OSError as error:
            raise _cannot_keep(folder, error) from error
        cure = "move the file away and a new authority is made, whose root verifiers must then be given"
        try:
            link = from_pem(pem)
        except NsmError as error:
            raise NsmError(f"{path} holds {error}; {cure}") from error
        if not link.certificate.not_valid_before_utc <= self._now() < link.not_after - timedelta(days=30):
            raise NsmError(
                f"{path} is valid from {link.certificate.not_valid_before_utc:%Y-%m-%d} to {link.not_after:%Y-%m-%d}, "
                f"and the clock says {self._now().astimezone(UTC):%Y-%m-%d}; set the clock, or {cure}"
            )
        return link


def kept_pem(folder: Path) -> bytes | None:
    """Certificate and private key of the authority kept in a folder, None when there is none; raises NsmError."""
    try:
        return _read_private(folder / FILE_NAME)
    except OSError as error:
        raise _cannot_keep(folder, error) from error


def _cannot_keep(folder: Path, error: OSError) -> NsmError:
    return NsmError(
        f"the development authority cannot be kept in {folder}: {error.strerror}; "
        "make the folder writable, or set XDG_STATE_HOME"
    )


def _read_private(path: Path) -> bytes | None:
    """Content of a file that only its owner may read, None when there is none."""
    try:
        # Not to wait for whoever would write into a pipe of that name.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise NsmError(f"{path} is no regular file, and is to hold the development authority; move it away")
            if mode & 0o077:
                raise NsmError(f"{path} holds a private key and others may read it; run: chmod 600 {path}")
            return os.read(descriptor, 64 * 1024)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None


def _write_once(path: Path, content: bytes) -> bytes:
    """Put a file in place whole, with owner-only access, unless one is there; returns what is there then.

    Two runs may start at the same time: the link decides which of the two roots stays.
    """
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            log.debug("another run made %s first", path)
        except OSError:
            # No hard links here (FAT, some network mounts): the later run wins, still with a whole file.
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    found = _read_private(path)
    if found is None:
        raise NsmError(f"{path} vanished while it was made; try again")
    return found
