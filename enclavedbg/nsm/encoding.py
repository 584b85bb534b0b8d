"""The forms in which people hand documents and values around: bytes, base64, hex, text."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re

from enclavedbg.errors import NsmError
from enclavedbg.nsm.cbor import CborError, decode

_HEX = re.compile(rb"(?:0x)?((?:[0-9a-f]{2})+)", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_SPACE = re.compile(rb"\s+")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]*")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Byte order marks: what PowerShell's > writes begins with one, and no document does."""
_NO_HEX = re.compile(rb"[^0-9a-fA-F]")
_BEGINNINGS = (b"84", b"d2", b"D2", b"0x")
"""Of a document in hex."""


def document_bytes(data: bytes) -> bytes:
    """A document as bytes, from itself, from hex or base64 text, or from the secure module's answer that holds it.

    Raises NsmError when it is text in none of these forms, or nothing at all.
    """
    if not data:
        raise NsmError("no document: the input is empty")
    data = _without_mark(data)
    if data.lstrip()[:1] in (b"{", b"[", b'"'):
        raise NsmError("JSON, not a document: give what is in its field, e.g. jq -r .Recipient.AttestationDocument")
    # Text, unless a byte says otherwise: a real document begins with 84 or d2, which no text does.
    raw = _from_text(data) if _TEXT.fullmatch(data) else data
    return _unwrapped(raw)


def _without_mark(data: bytes) -> bytes:
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            with contextlib.suppress(UnicodeError):
                return data.decode(encoding).encode("ascii")
    return data


def _from_text(data: bytes) -> bytes:
    text = _SPACE.sub(b"", data)
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1].decode())
    odd = _NO_HEX.search(text, 2)
    if text[:2] in _BEGINNINGS and len(_NO_HEX.findall(text)) <= 1 + len(text) // 50:
        found = f"its character {odd.start() + 1} is {chr(text[odd.start()])!r}" if odd else "its last digit is missing"
        raise NsmError(f"a document in hex that is damaged: {found}")
    if _BASE64.fullmatch(text):
        standard = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            decoded = base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
        except binascii.Error as error:
            raise NsmError("not a document: expected COSE_Sign1 bytes, or those in whole base64 or hex") from error
        if len(decoded) > 4 and _BASE64.fullmatch(_SPACE.sub(b"", decoded)):
            raise NsmError("base64 that holds base64 or hex again, not a document: decode it once")
        return decoded
    raise NsmError("not a document: expected COSE_Sign1 bytes, or those in base64 or hex")


def _unwrapped(raw: bytes) -> bytes:
    """Programs that dump what /dev/nsm answered give {"Attestation": {"document": ...}}."""
    if raw[:1] not in (b"\xa1", b"\xbf"):
        return raw
    try:
        item = decode(raw)
    except CborError:
        return raw
    match item:
        case {"Attestation": {"document": bytes() as document}}:
            return document
        case {"Error": str(name)}:
            raise NsmError(f"no document: the secure module's answer is the error {name!r:.40}")
    return raw


def value_bytes(text: str) -> bytes:
    """The bytes that a person means: `hex:00ff`, `0x00ff`, `base64:AP8=`, or the text itself (`text:` says so).

    Raises NsmError when what follows a prefix is not of that form.
    """
    prefix, colon, rest = text.partition(":")
    if text[:2].lower() == "0x":
        prefix, colon, rest = "hex", ":", text[2:]
    expected = "text"
    try:
        match prefix if colon else "":
            case "hex":
                expected = "pairs of hex digits"
                return bytes.fromhex(rest)
            case "base64":
                expected = "whole base64"
                return base64.b64decode(rest, validate=True)
            case "text":
                text = rest
        # What was no UTF-8 on the command line stays the bytes that it was.
        return text.encode("utf-8", "surrogateescape")
    except ValueError as error:
        raise NsmError(f"{text[:40]!r}: expected {expected} there; text:... takes it as it stands") from error
