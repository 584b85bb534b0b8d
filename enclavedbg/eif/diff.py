"""Why two images have other PCRs, or that they have not: section by section, then file by file.

Which registers a section goes into is said in the README of aws-nitro-enclaves-image-format; a Difference names
one only when the register really has another value in the other image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from enclavedbg.eif.archives import DEFAULT_LIMITS, Limits
from enclavedbg.eif.contents import Contents, Section
from enclavedbg.eif.diff_ramdisk import diff_ramdisk, first_difference, same_bytes
from enclavedbg.eif.difference import Difference
from enclavedbg.eif.format import SectionType
from enclavedbg.eif.measure import Measurements, measure_file
from enclavedbg.eif.reader import METADATA_MAX_SIZE
from enclavedbg.eif.source import open_source

CMDLINE_SHOWN = 65536
"""Bytes of a command line that a Difference holds; Linux takes 2048 or 4096."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two images compared; `moved` are the PCRs with other values, PCR8 also when only one image is signed."""

    differences: tuple[Difference, ...]
    old: Measurements
    new: Measurements

    @property
    def moved(self) -> tuple[int, ...]:
        """PCRs that are not the same."""
        return _moved(self.old, self.new)

    @property
    def same(self) -> bool:
        """Whether the files are equal, byte for byte."""
        return not self.differences

    @property
    def same_measured(self) -> bool:
        """Whether an enclave of one cannot be told from one of the other by its PCRs."""
        return not self.moved


def diff(old: Contents, new: Contents, *, limits: Limits = DEFAULT_LIMITS) -> Comparison:
    """Compare two images. Raises EifError for an image that cannot be measured.

    Ramdisks with equal bytes are not looked into; of others, both are gone through once, file by file.
    """
    before, after = _measure(old), _measure(new)
    moved = _moved(before, after)
    found = [
        replace(difference, pcrs=tuple(pcr for pcr in difference.pcrs if pcr in moved))
        for difference in _differences(old, new, limits)
    ]
    if not found and not same_bytes(old.data, new.data):
        at = first_difference(old.data, new.data)
        found = [Difference("file", "content", f"{len(old.data)} bytes", f"{len(new.data)} bytes, from {at:#x} on")]
    return Comparison(tuple(found), before, after)


def _measure(image: Contents) -> Measurements:
    # From the file where there is one: through the mapping all of it would count as our memory.
    with open_source(image.origin) as source:
        return measure_file(source, image.walk).measurements


def _moved(old: Measurements, new: Measurements) -> tuple[int, ...]:
    before, after = old.as_mapping(), new.as_mapping()
    return tuple(pcr for pcr in sorted(before | after) if before.get(pcr) != after.get(pcr))


def _differences(old: Contents, new: Contents, limits: Limits) -> Iterator[Difference]:
    yield from _header(old, new)
    yield from _sections(old, new)
    others = {section.name: section for section in new.sections}
    for section in old.sections:
        other = others.get(section.name)
        if other is not None and not same_bytes(section.data, other.data):
            yield from _section(section, other, limits)


def _header(old: Contents, new: Contents) -> Iterator[Difference]:
    one, other = old.walk.header, new.walk.header
    pairs = (
        ("version", one.version, other.version),
        ("flags", one.flags, other.flags),
        ("default_memory", one.default_memory, other.default_memory),
        ("default_cpus", one.default_cpus, other.default_cpus),
        ("reserved", one.reserved, other.reserved),
        ("unused", one.unused, other.unused),
    )
    for name, before, after in pairs:
        if before != after:
            yield Difference("header", name, before, after)


def _sections(old: Contents, new: Contents) -> Iterator[Difference]:
    """Which sections there are, and in which order."""
    before, after = ({section.name: section for section in image.sections} for image in (old, new))
    for name, section in before.items():
        if name not in after:
            yield Difference(name, "removed", f"{section.size} bytes", None, section.pcrs)
    for name, section in after.items():
        if name not in before:
            yield Difference(name, "added", None, f"{section.size} bytes", section.pcrs)
    one, other = [name for name in before if name in after], [name for name in after if name in before]
    if one != other:
        measured = [[name for name in names if before[name].is_measured] for names in (one, other)]
        pcrs = (0, 1, 2) if measured[0] != measured[1] else ()
        yield Difference("sections", "order", ", ".join(one), ", ".join(other), pcrs)


def _section(old: Section, new: Section, limits: Limits) -> Iterator[Difference]:
    match old.type:
        case SectionType.RAMDISK:
            yield from diff_ramdisk(old.data, new.data, where=old.name, pcrs=old.pcrs, limits=limits)
        case SectionType.CMDLINE:
            yield Difference(old.name, "content", _cmdline(old), _cmdline(new), old.pcrs)
        case SectionType.METADATA:
            yield from _metadata(old, new)
        case SectionType.SIGNATURE:
            yield from _signature(old, new)
        case _:
            yield _whole(old, new)


def _cmdline(section: Section) -> str:
    return bytes(section.data[:CMDLINE_SHOWN]).decode("utf-8", "backslashreplace")


def _whole(old: Section, new: Section) -> Difference:
    at = first_difference(old.data, new.data)
    return Difference(old.name, "content", f"{old.size} bytes", f"{new.size} bytes, from byte {at:#x} on", old.pcrs)


def _signature(old: Section, new: Section) -> Iterator[Difference]:
    """Only the certificate is measured; a signature is another each time it is made."""
    from enclavedbg.eif.signature import read_signature

    one, other = read_signature(old.data), read_signature(new.data)
    if one.certificate != other.certificate:
        yield Difference(old.name, "certificate", _name(one.certificate), _name(other.certificate), old.pcrs)
    if one.cose != other.cose:
        yield Difference(old.name, "signature", f"{len(one.cose)} bytes", f"{len(other.cose)} bytes")
    if one == other:
        yield replace(_whole(old, new), aspect="encoding", pcrs=())


def _name(certificate: bytes) -> str:
    """A certificate's subject and serial number, or that it cannot be read."""
    from cryptography import x509

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        return f"{parsed.subject.rfc4514_string()}, serial number {parsed.serial_number:x}"
    except ValueError:
        return f"{len(certificate)} bytes that are no certificate"


def _metadata(old: Section, new: Section) -> Iterator[Difference]:
    """Member by member, as far as it is JSON."""
    if max(old.size, new.size) > METADATA_MAX_SIZE:
        yield _whole(old, new)
        return
    try:
        one, other = (dict(_members(json.loads(bytes(s.data).decode()))) for s in (old, new))
    except (ValueError, RecursionError):
        yield _whole(old, new)
        return
    found = False
    for path in one | other:
        if one.get(path) != other.get(path):
            found = True
            aspect = "added" if path not in one else "removed" if path not in other else "content"
            yield Difference(old.name, aspect, one.get(path), other.get(path), path=path)
    if not found:
        yield replace(_whole(old, new), aspect="encoding")


def _members(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value in JSON with its path, `BuildMetadata.BuildTime` or `Layers[2]`."""
    pending = [(prefix, value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, dict) and item:
            pending += [(f"{path}.{key}" if path else str(key), below) for key, below in reversed(item.items())]
        elif isinstance(item, list) and item:
            pending += [(f"{path}[{number}]", below) for number, below in reversed(list(enumerate(item)))]
        else:
            yield path, json.dumps(item, ensure_ascii=False)
