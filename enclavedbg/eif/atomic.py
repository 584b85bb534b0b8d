"""Writes a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from enclavedbg.errors import EifError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing and reading, that takes the name `path` when the block ends well.

    Until then it has a hidden temporary name in the same folder; when the block raises, it is removed and
    whatever was at `path` is untouched. A file that is replaced passes on its permissions, a symbolic link stays
    and what it points to is replaced. Raises EifError when the file cannot be written, also for an OSError of
    the block itself (a full disk).
    """
    try:
        target = Path(os.path.realpath(path))
        mode = _mode_to_keep(target)
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
        # Not tempfile: its files are private to the user, and an image should have what the umask gives.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            # Otherwise a crash of the machine soon after could leave the new name with nothing behind it.
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        # Gone already when all went well.
        with contextlib.suppress(OSError):
            temporary.unlink()


def _mode_to_keep(target: Path) -> int | None:
    """The permission bits of the file to be replaced, None when there is none."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise EifError(f"cannot write {target}: it is {what}; name a file")
    return stat.S_IMODE(status.st_mode)


def _refusal(path: Path, error: OSError | ValueError) -> EifError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return EifError(f"cannot write {path}: {reason}; check the folder, its permissions and its free space")
