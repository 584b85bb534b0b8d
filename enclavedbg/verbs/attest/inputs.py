"""What the verbs on documents have in common: files and standard input, values on the command line, who signs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from enclavedbg.eif.text import safe
from enclavedbg.errors import EifError, NsmError
from enclavedbg.machine.clock import Clock, entropy_source
from enclavedbg.nsm.authority import Authority, default_folder
from enclavedbg.nsm.encoding import document_bytes, value_bytes
from enclavedbg.options import UsageError

DOCUMENT_FILE_LIMIT = 1 << 20
"""Many times what a document, with its 12 KiB at most, has in base64 or hex."""

STDIN = Path("-")


def input_name(path: Path) -> str:
    """What to call a file, or standard input, in a message."""
    return "standard input" if path == STDIN else safe(str(path))


def read_input(path: Path, *, limit: int) -> bytes:
    """A file's content, or standard input's for `-`; raises NsmError when there is none or more than `limit` bytes."""
    name = input_name(path)
    if path == STDIN and sys.stdin is None:
        raise NsmError("cannot read standard input: it is closed; name a file instead")
    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise NsmError(f"cannot read {name}: there is no such file; check the name (- is standard input)") from error
    except OSError as error:
        raise NsmError(f"cannot read {name}: {error.strerror or error}") from error
    if len(data) > limit:
        raise NsmError(f"{name} has more than {limit} bytes; is it the right file?")
    return data


def read_document(path: Path) -> bytes:
    """An attestation document from a file or `-`, in binary, base64 or hex; raises NsmError naming the file."""
    data = read_input(path, limit=DOCUMENT_FILE_LIMIT)
    try:
        return document_bytes(data)
    except NsmError as error:
        raise NsmError(f"{input_name(path)}: {error}") from error


def parse_bytes(text: str) -> bytes:
    """A value on the command line: text, `hex:`, `base64:`, or `@FILE` for a file's content; raises NsmError."""
    if text.startswith("@"):
        return read_input(Path(text[1:]), limit=DOCUMENT_FILE_LIMIT)
    return value_bytes(text)


def parse_when(text: str) -> datetime:
    """For argparse: a time in UTC from ISO 8601 (in UTC unless it says otherwise), or `now`."""
    if text == "now":
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; expected e.g. 2026-11-27T10:00:00Z, 2026-11-27 or now"
        ) from None


def expected_registers(given: Sequence[tuple[int, bytes]], image: Path | None) -> dict[int, bytes]:
    """The registers of an image, and those named one by one; raises EifError, or UsageError when the two differ."""
    expected: dict[int, bytes] = {}
    if image is not None:
        from enclavedbg.eif.source import open_source
        from enclavedbg.verbs.eif.measure import measure_source

        with open_source(image) as source:
            try:
                expected |= measure_source(source).as_mapping()
            except EifError as error:
                # It is not the only file: say which.
                raise EifError(f"{input_name(image)}: {error}") from error
    for index, value in given:
        if expected.get(index, value) != value:
            raise UsageError(f"two values are expected of PCR{index}; name one")
        expected[index] = value
    return expected


def authority(seed: int | None, *, ephemeral: bool = False, at: datetime | None = None) -> Authority:
    """The authority of a seed, one for this process alone (made `at` a time), or the one that this user keeps."""
    from enclavedbg.machine.enclave import seeded_authority

    if seed is not None:
        return seeded_authority(seed)
    if ephemeral:
        return Authority(None, now=lambda: at or datetime.now(UTC), random_bytes=entropy_source())
    return Authority(default_folder(os.environ), now=Clock().host_now, random_bytes=entropy_source())
