"""What the verbs on documents read: files or standard input, bounded, with errors in one line."""

from __future__ import annotations

import sys
from pathlib import Path

from enclavedbg.errors import NsmError
from enclavedbg.nsm.encoding import document_bytes, value_bytes

DOCUMENT_FILE_LIMIT = 1 << 20
"""A document has at most 12 KiB; base64 with line ends, or hex, no more than three times that."""

STDIN = Path("-")


def read_input(path: Path, *, limit: int) -> bytes:
    """A file's content, or standard input's for `-`; raises NsmError when there is none or more than `limit` bytes."""
    name = "standard input" if path == STDIN else str(path)
    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise NsmError(f"cannot read {name}: {error.strerror or error}") from error
    if len(data) > limit:
        raise NsmError(f"{name} has more than {limit} bytes; is it the right file?")
    return data


def read_document(path: Path) -> bytes:
    """An attestation document from a file or `-`, in binary, base64 or hex; raises NsmError naming the file."""
    name = "standard input" if path == STDIN else str(path)
    try:
        return document_bytes(read_input(path, limit=DOCUMENT_FILE_LIMIT))
    except NsmError as error:
        if str(error).startswith(("cannot read", name)):
            raise
        raise NsmError(f"{name}: {error}") from error


def parse_bytes(text: str) -> bytes:
    """A value on the command line: text, `hex:`, `base64:`, or `@FILE` for a file's content; raises NsmError."""
    if text.startswith("@"):
        return read_input(Path(text[1:]), limit=DOCUMENT_FILE_LIMIT)
    return value_bytes(text)
