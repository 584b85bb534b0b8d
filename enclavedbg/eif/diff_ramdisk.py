"""Two ramdisks compared, file by file and in how they were packed."""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enclavedbg.eif.archives import Archive, Entry, Limits, Ramdisk, read_ramdisk
from enclavedbg.eif.difference import Difference, Value
from enclavedbg.eif.records import kind_of, permissions
from enclavedbg.eif.streams import Release
from enclavedbg.errors import EifError

_Key = tuple[str, int]
"""A path, and which of the entries with this path it is."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two: its entries by path, in archive order, and the digest of each file."""

    ramdisk: Ramdisk
    digests: dict[int, bytes]
    entries: dict[_Key, Entry]


def diff_ramdisk(
    old: memoryview, new: memoryview, *, where: str, pcrs: tuple[int, ...], limits: Limits
) -> Iterator[Difference]:
    """What differs between two ramdisks that are not the same bytes; at least one difference, in archive order.

    One that cannot be read is compared as a whole. `where` and `pcrs` go into each Difference.
    """
    try:
        sides = _side(old, limits), _side(new, limits)
    except EifError as error:
        yield Difference(where, "content", f"{len(old)} bytes", f"{len(new)} bytes; {error}", pcrs)
        return
    found = False
    for aspect, before, after, path in _differences(*sides):
        found = True
        yield Difference(where, aspect, before, after, pcrs, path)
    if not found:
        at = first_difference(old, new)
        text = f"the same files with the same headers, written differently from byte {at:#x} of the ramdisk on"
        yield Difference(where, "encoding", f"{len(old)} bytes", f"{len(new)} bytes; {text}", pcrs)


def same_bytes(old: memoryview, new: memoryview) -> bool:
    """Whether both hold the same; much faster than comparing the views."""
    return len(old) == len(new) == first_difference(old, new)


def first_difference(old: memoryview, new: memoryview) -> int:
    """The first byte in which the two differ; the shorter one's length when it is the other's beginning."""
    step = 1 << 16
    length = min(len(old), len(new))
    releases = Release(old), Release(new)
    for start in range(0, length, step):
        one, other = bytes(old[start : start + step]), bytes(new[start : start + step])
        if one != other:
            return start + next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        for release in releases:
            release.passed(step)
    return length


def _side(data: memoryview, limits: Limits) -> _Side:
    digests: dict[int, bytes] = {}

    def digest(entry: Entry, contents: Iterator[memoryview]) -> None:
        if entry.size and not entry.is_symlink:
            running = hashlib.sha256()
            for piece in contents:
                running.update(piece)
            digests[entry.order] = running.digest()

    ramdisk = read_ramdisk(data, limits=limits, visit=digest)
    seen: Counter[str] = Counter()
    entries = {}
    for entry in ramdisk.entries:
        path = _path(entry.name)
        entries[path, seen[path]] = entry
        seen[path] += 1
    return _Side(ramdisk, digests, entries)


def _path(name: str) -> str:
    """`./a`, `/a` and `a` are the same file."""
    return "/" + "/".join(part for part in name.split("/") if part not in ("", "."))


_Found = tuple[str, Value, Value, str | None]


def _differences(old: _Side, new: _Side) -> Iterator[_Found]:
    yield from _packing(old.ramdisk, new.ramdisk)
    for key, entry in old.entries.items():
        if key not in new.entries:
            yield "removed", _summary(entry), None, key[0]
    for key, entry in new.entries.items():
        if key not in old.entries:
            yield "added", None, _summary(entry), key[0]
        else:
            yield from ((*found, key[0]) for found in _entry(old, new, key))
    yield from _sequence(old, new)


def _summary(entry: Entry) -> str:
    size = f", {entry.size} bytes" if entry.is_file else ""
    return f"{kind_of(entry.mode)}{size}"


def _entry(old: _Side, new: _Side, key: _Key) -> Iterator[tuple[str, Value, Value]]:
    """What differs between two entries of the same path."""
    one, other = old.entries[key], new.entries[key]
    digest_one, digest_other = old.digests.get(one.order), new.digests.get(other.order)
    if stat.S_IFMT(one.mode) != stat.S_IFMT(other.mode):
        yield "type", kind_of(one.mode), kind_of(other.mode)
    if digest_one != digest_other:
        yield "content", _content(one, digest_one), _content(other, digest_other)
    pairs: tuple[tuple[str, Value, Value], ...] = (
        ("mode", permissions(one.mode), permissions(other.mode)),
        ("owner", f"{one.uid}:{one.gid}", f"{other.uid}:{other.gid}"),
        ("mtime", one.mtime, other.mtime),
        ("target", one.target or None, other.target or None),
        ("device", "{},{}".format(*one.rdev), "{},{}".format(*other.rdev)),
        ("links", one.nlink, other.nlink),
        ("name", one.name, other.name),
    )
    yield from (pair for pair in pairs if pair[1] != pair[2])


def _content(entry: Entry, digest: bytes | None) -> str:
    return f"{entry.size} bytes" + ("" if digest is None else f", SHA-256 {digest.hex()}")


def _sequence(old: _Side, new: _Side) -> Iterator[_Found]:
    """In which order the entries come that both have, and how their inodes are numbered."""
    before = [key for key in old.entries if key in new.entries]
    after = [key for key in new.entries if key in old.entries]
    for one, other in zip(before, after, strict=True):
        if one != other:
            yield "order", f"{one[0]} comes first", f"{other[0]} comes first", None
            break
    inodes = [(old.entries[key], new.entries[key]) for key in before]
    changed = [(one, other) for one, other in inodes if (one.ino, one.dev) != (other.ino, other.dev)]
    if changed:
        first, second = changed[0]
        text = f"in {len(changed)} of {len(inodes)} entries, first {_path(first.name)}"
        yield "inodes", f"{first.ino} on {_device(first)}", f"{second.ino} on {_device(second)}, {text}", None


def _device(entry: Entry) -> str:
    return f"device {entry.dev[0]},{entry.dev[1]}"


def _packing(old: Ramdisk, new: Ramdisk) -> Iterator[_Found]:
    """How many archives there are, how each is compressed, and the zero bytes around them."""
    if len(old.archives) != len(new.archives):
        yield "archives", len(old.archives), len(new.archives), None
        return
    for number, (one, other) in enumerate(zip(old.archives, new.archives, strict=True)):
        path = f"archive {number}" if len(old.archives) > 1 else None
        if one.compression != other.compression:
            yield "compression", one.compression or "none", other.compression or "none", path
        elif one.parameters != other.parameters:
            keys = sorted(k for k in one.parameters | other.parameters if _differ(one, other, k))
            yield "parameters", _parameters(one, keys), _parameters(other, keys), path
        if one.trailers != other.trailers:
            yield "trailer", one.trailers, other.trailers, path
        if one.checksummed != other.checksummed:
            yield "encoding", _format(one), _format(other), path
    gaps = _gaps(old), _gaps(new)
    if gaps[0] != gaps[1]:
        yield "padding", _gap_text(gaps[0]), _gap_text(gaps[1]), None


def _differ(one: Archive, other: Archive, key: str) -> bool:
    """Whether a parameter differs that is not just a consequence of other contents."""
    return key not in ("content_size", "first_block") and one.parameters.get(key) != other.parameters.get(key)


def _parameters(archive: Archive, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {archive.parameters.get(key, '-')}" for key in keys)


def _format(archive: Archive) -> str:
    return "cpio with checksums" if archive.checksummed else "cpio without checksums"


def _gaps(ramdisk: Ramdisk) -> list[int]:
    """Zero bytes before each archive and after the last."""
    gaps = []
    position = 0
    for archive in ramdisk.archives:
        gaps.append(archive.offset - position)
        position = archive.offset + archive.size
    return [*gaps, len(ramdisk.data) - position]


def _gap_text(gaps: Sequence[int]) -> str:
    return " and ".join(str(gap) for gap in gaps) + " zero bytes around the archives"
