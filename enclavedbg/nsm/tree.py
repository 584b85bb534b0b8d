"""A document as a tree of names and values, for people: what it says, whether or not it may be believed.

Text out of a document is shown so that no terminal acts on it. User data, nonce and public key are shown whole: who
asks for this holds the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from enclavedbg.errors import NsmError
from enclavedbg.nsm.cbor import Simple, Tagged
from enclavedbg.nsm.document import time_of
from enclavedbg.nsm.fields import OPTIONAL, REQUIRED
from enclavedbg.nsm.findings import Status
from enclavedbg.nsm.reading import Reading

if TYPE_CHECKING:
    from enclavedbg.nsm.verify import Report

SHOWN_BYTES = 64
"""Of a byte string that is no known field."""

ROW_BYTES = 32
"""Of a longer value, on one line of hex."""


Style = Literal["", "dim", "name", "good", "bad"]

_STYLES: dict[Status, Style] = {Status.PASS: "good", Status.FAIL: "bad", Status.NOT_APPLICABLE: "dim"}


@dataclass(frozen=True, slots=True)
class Node:
    """A name with a value, or with nodes below it, or both."""

    name: str
    value: str = ""
    children: tuple[Node, ...] = ()


def document_tree(reading: Reading) -> Node:
    """What could be read of a document."""
    if reading.envelope is None:
        return Node("document", f"{reading.size} bytes, not an attestation document")
    envelope = reading.envelope
    form = "with tag 18" if envelope.tagged else "untagged"
    return Node(
        "document",
        f"COSE_Sign1 of {reading.size} bytes, {form}",
        (
            Node("protected header", f"{_item(reading.header)}{' (ES384)' if reading.header == {1: -35} else ''}"),
            Node("unprotected header", _item(envelope.unprotected)),
            Node("payload", f"{len(envelope.payload)} bytes, {_map_form(envelope.payload)}", tuple(_payload(reading))),
            Node("signature", f"{len(envelope.signature)} bytes (r, s)", _halves(envelope.signature)),
        ),
    )


def tree_lines(root: Node, *, ascii_only: bool = False) -> Iterator[tuple[str, str, str]]:
    """Each node as (guides, name, value), from the top down."""
    yield "", root.name, root.value
    yield from _below(root.children, "", ("|-- ", "`-- ", "|   ") if ascii_only else ("├─ ", "└─ ", "│  "))


def _below(nodes: Sequence[Node], prefix: str, guides: tuple[str, str, str]) -> Iterator[tuple[str, str, str]]:
    branch, last, line = guides
    for place, node in enumerate(nodes):
        ends = place == len(nodes) - 1
        yield prefix + (last if ends else branch), node.name, node.value
        yield from _below(node.children, prefix + (" " * len(line) if ends else line), guides)


def report_lines(report: Report, *, ascii_only: bool = False) -> Iterator[Sequence[tuple[Style, str]]]:
    """The tree, a line for each check, and the verdict: each line in pieces with how they are to look."""
    for guides, name, value in tree_lines(document_tree(report.reading), ascii_only=ascii_only):
        yield ("dim", guides), ("name", name), ("", f"  {value}" if value else "")
    yield ()
    width = max(len(finding.check.value) for finding in report.findings)
    for finding in report.findings:
        status, check = finding.status, finding.check.value
        yield (_STYLES[status], f"{status.value:4}"), ("", f"  {check:{width}}  {safe(finding.reason)}")
    yield ()
    yield (("good" if report.valid else "bad", report.verdict),)


# ---- the payload ----


def _map_form(payload: bytes) -> str:
    if payload[:1] == b"\xbf":
        return "a map of indefinite length"
    return "a map of definite length" if payload and payload[0] >> 5 == 5 else "not a map"


def _payload(reading: Reading) -> Iterator[Node]:
    """In the document's own order, each field as it can be understood."""
    for key, raw in reading.fields.items():
        name = key if isinstance(key, str) else repr(key)
        if name in reading.values:
            yield _field(name, reading.values[name])
        else:
            yield Node(safe(name), _item(raw))
    for name in (*REQUIRED, *OPTIONAL):
        if name not in reading.fields and reading.fields:
            yield Node(name, "absent")


def _field(name: str, value: Any) -> Node:
    match name:
        case "timestamp":
            return Node(name, f"{value} ({time_of(value):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC)")
        case "pcrs":
            return Node(name, f"{len(value)} registers", tuple(_registers(value)))
        case "certificate":
            return _certificate("certificate", value, note="the leaf, whose key signed this document")
        case "cabundle":
            chain = (_certificate(f"[{n}]", der, note="root" if n == 0 else "") for n, der in enumerate(value))
            return Node(name, f"{len(value)} certificates, root first", tuple(chain))
        case "public_key" if value is not None:
            return Node(name, f"{len(value)} bytes: {_key(value)}", _dump(value))
        case "user_data" | "nonce" if value is not None:
            text = _text(value)
            return Node(name, f"{len(value)} bytes{f': {text}' if text else ''}", _dump(value))
    return Node(name, "null" if value is None else safe(str(value)))


def _registers(pcrs: Mapping[int, bytes]) -> Iterator[Node]:
    for index, value in pcrs.items():
        if any(value):
            yield Node(f"PCR{index}", value.hex())
    zeros = sorted(index for index, value in pcrs.items() if not any(value))
    if zeros:
        yield Node("zero", f"PCR{', '.join(_runs(zeros))}")


def _runs(numbers: Sequence[int]) -> list[str]:
    """`3, 5-7` from 3, 5, 6, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _certificate(name: str, der: bytes, *, note: str) -> Node:
    from enclavedbg.nsm.x509read import summarise

    size = f"{len(der)} bytes{f', {note}' if note else ''}"
    try:
        found = summarise(der)
    except NsmError as error:
        return Node(name, f"{size}: {error}")
    constraints = (
        "no CA"
        if not found.ca
        else "CA" + (f", path length {found.path_length}" if found.path_length is not None else "")
    )
    return Node(
        name,
        size,
        (
            Node("subject", safe(found.subject)),
            Node("issuer", "itself" if found.issuer == found.subject else safe(found.issuer)),
            Node("valid", f"{found.not_before:%Y-%m-%d %H:%M:%S} to {found.not_after:%Y-%m-%d %H:%M:%S} UTC"),
            Node("key", f"{found.key}, {constraints}, {', '.join(found.usage) or 'no key usage'}"),
            Node("serial", found.serial),
            Node("SHA-256", found.fingerprint.hex()),
        ),
    )


def _key(value: bytes) -> str:
    """What a public key is. KMS takes RSA of 2048 bits or more, as SubjectPublicKeyInfo in DER."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    from enclavedbg.nsm.x509read import read_public_key

    match key := read_public_key(value):
        case None:
            return "no key in DER (SubjectPublicKeyInfo)"
        case rsa.RSAPublicKey():
            return f"RSA, {key.key_size} bits"
        case ec.EllipticCurvePublicKey():
            return f"elliptic curve {key.curve.name}"
    return type(key).__name__


def _halves(signature: bytes) -> tuple[Node, ...]:
    half = len(signature) // 2
    if half != 48:
        return _dump(signature)
    return Node("r", signature[:half].hex()), Node("s", signature[half:].hex())


# ---- values ----


def safe(text: str) -> str:
    """A text with what a terminal would act on made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(value: bytes) -> str:
    """A value as text, where it is one."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return ""
    return f'"{safe(text)}"' if text and sum(c.isprintable() for c in text) > 0.9 * len(text) else ""


def _dump(value: bytes) -> tuple[Node, ...]:
    """All bytes in hex, over as many lines as they take."""
    return tuple(
        Node(f"{start:#06x}" if len(value) > ROW_BYTES else "hex", value[start : start + ROW_BYTES].hex())
        for start in range(0, len(value), ROW_BYTES)
    )


def _item(value: Any) -> str:
    """Any decoded item in CBOR's diagnostic notation (RFC 8949, section 8), shortened."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case bytes():
            shown = value[:SHOWN_BYTES].hex()
            return f"h'{shown}{'...' if len(value) > SHOWN_BYTES else ''}' ({len(value)} bytes)"
        case str():
            return f'"{safe(value[:SHOWN_BYTES])}"'
        case list():
            return f"[{', '.join(_item(item) for item in value[:8])}{', ...' if len(value) > 8 else ''}]"
        case dict():
            some = [f"{_item(key)}: {_item(item)}" for key, item in list(value.items())[:8]]
            return f"{{{', '.join(some)}{', ...' if len(value) > 8 else ''}}}"
        case Tagged(tag=tag, value=inner):
            return f"{tag}({_item(inner)})"
        case Simple(value=number):
            return f"simple({number})"
    return str(value)
