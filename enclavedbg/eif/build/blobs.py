"""The files of a container image, in a folder or in an archive: found by their names, checked by their digests."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from enclavedbg.eif.build.contents import read_input
from enclavedbg.eif.build.image import parse_json
from enclavedbg.eif.build.tarball import Member, read_members, uncompressed
from enclavedbg.eif.build.tree import split_path
from enclavedbg.errors import EifError

DOCUMENT_LIMIT = 4 << 20
"""Bytes of a manifest or configuration, as in containerd."""
LINK_LIMIT = 10

_DIGEST = re.compile("(sha256):[0-9a-f]{64}|(sha384):[0-9a-f]{96}|(sha512):[0-9a-f]{128}")


class Blobs(Protocol):
    """Where the files of a container image are; `name` is what errors call it."""

    @property
    def name(self) -> str: ...

    def find(self, path: str) -> memoryview | None:
        """The file at a path, None when there is none. Raises EifError when it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class FolderBlobs:
    """An OCI image layout in a folder."""

    folder: Path
    name: str

    def find(self, path: str) -> memoryview | None:
        file = self.folder.joinpath(*split_path(path))
        # Neither raises for a name that is too long.
        return read_input(file, what="the file") if os.path.lexists(file) else None


@dataclass(frozen=True, slots=True)
class ArchiveBlobs:
    """An OCI image layout or what `docker save` writes, in a tar archive."""

    members: dict[str, Member]
    name: str

    def find(self, path: str) -> memoryview | None:
        for _ in range(LINK_LIMIT):
            path = "/".join(split_path(path))
            member = self.members.get(path)
            if member is None:
                return None
            match member.kind:
                case "file":
                    return member.data
                case "link":
                    path = member.target
                case "symlink":  # docker's, where two layers are equal
                    path = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.target))
                case _:
                    break
        raise EifError(f"{self.name}: {path[:80]!r} is no file; save the image again")


def open_blobs(path: Path, *, limit: int) -> Blobs:
    """The files of the image in a folder or archive (plain, gzip, zstd), of at most `limit` bytes unpacked."""
    name = path.name or str(path)
    if os.path.isdir(path):
        return FolderBlobs(path, name)
    data = uncompressed(read_input(path, what="the container image"), limit=limit, what=name)
    members = {"/".join(split_path(member.name)): member for member in read_members(data, what=name)}
    return ArchiveBlobs(members, name)


def read_document(blobs: Blobs, path: str, *, digest: str | None = None) -> dict[str, object]:
    """A JSON object in a file, with its digest checked if one is given. Raises EifError, also when it is missing."""
    return as_object(parse_document(blobs, find(blobs, path, digest=digest), path), what=path)


def parse_document(blobs: Blobs, data: memoryview, path: str) -> object:
    """The JSON value in a file's bytes; raises EifError."""
    if len(data) > DOCUMENT_LIMIT:
        raise EifError(f"{blobs.name}: {path} has {len(data)} bytes, at most {DOCUMENT_LIMIT} are read")
    return parse_json(data, what=f"{blobs.name}: {path}")


def find(blobs: Blobs, path: str, *, digest: str | None = None) -> memoryview:
    """A file that must be there, and have its digest. Raises EifError."""
    data = blobs.find(path)
    if data is None:
        raise EifError(f"{blobs.name} has no file {path[:100]!r}; save or copy the image again, whole")
    if digest is not None:
        check_digest(data, digest, what=f"{blobs.name}: {path}")
    return data


def blob_path(digest: str) -> str:
    """Where an OCI image layout has the blob with a digest. Raises EifError for what is no digest that we know."""
    if not _DIGEST.fullmatch(digest):
        raise EifError(f"{digest[:80]!r} is no digest; expected sha256: and 64 lower-case hex digits, or sha512:")
    return "blobs/" + digest.replace(":", "/")


def check_digest(data: memoryview, digest: str, *, what: str) -> None:
    """Raise EifError unless the data has the digest (`sha256:...`)."""
    blob_path(digest)
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm, data).hexdigest()
    if found != expected:
        raise EifError(f"{what} has {algorithm} {found}, expected {expected}; it is damaged, fetch it again")


def as_object(value: object, *, what: str) -> dict[str, object]:
    """The value as a JSON object, or EifError."""
    if not isinstance(value, dict):
        raise EifError(f"{what} is a JSON {type(value).__name__}, expected an object; save the image again")
    return value


def objects(value: object, *, what: str) -> list[dict[str, object]]:
    """The value as an array of JSON objects, None as an empty one, or EifError."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise EifError(f"{what} is a JSON {type(value).__name__}, expected an array; save the image again")
    return [as_object(item, what=what) for item in value]


def strings(value: object, *, what: str) -> list[str]:
    """The value as an array of strings, None as an empty one, or EifError."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise EifError(f"{what} is not an array of strings; save the image again")
    return value


def string(value: object, *, what: str) -> str:
    """The value as a string, or EifError."""
    if not isinstance(value, str):
        raise EifError(f"{what} is {type(value).__name__}, expected a string; save the image again")
    return value
