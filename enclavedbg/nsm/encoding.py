"""The forms in which people hand documents and values around: bytes, base64, hex, text."""

from __future__ import annotations

import base64
import binascii
import re

from enclavedbg.errors import NsmError
from enclavedbg.nsm.cbor import CborError, decode

_HEX = re.compile(rb"(?:0x)?((?:[0-9a-f]{2})+)", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
_SPACE = re.compile(rb"\s+")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]*")


def document_bytes(data: bytes) -> bytes:
    """A document as bytes, from itself, from hex or base64 text, or from the secure module's answer that holds it.

    Raises NsmError when it is text in none of these forms, or nothing at all.
    """
    if not data:
        raise NsmError("no document: the input is empty")
    # Text, unless a byte says otherwise: a real document begins with 84 or d2, which no text does.
    raw = _from_text(data) if _TEXT.fullmatch(data) else data
    return _unwrapped(raw)


def _from_text(data: bytes) -> bytes:
    text = _SPACE.sub(b"", data)
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1].decode())
    if _BASE64.fullmatch(text):
        standard = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
        except binascii.Error as error:
            raise NsmError(f"a document in base64 that is damaged ({str(error).lower()})") from error
    raise NsmError("not a document: expected COSE_Sign1 bytes, or those in base64 or hex")


def _unwrapped(raw: bytes) -> bytes:
    """Programs that dump what /dev/nsm answered give {"Attestation": {"document": ...}}."""
    if raw[:1] not in (b"\xa1", b"\xbf"):
        return raw
    try:
        match decode(raw):
            case {"Attestation": {"document": bytes() as document}}:
                return document
    except CborError:
        pass
    return raw


def value_bytes(text: str) -> bytes:
    """The bytes that a person means: `hex:00ff`, `0x00ff`, `base64:AP8=`, or the text itself (`text:` says so).

    Raises NsmError when what follows a prefix is not of that form.
    """
    prefix, colon, rest = text.partition(":")
    if text[:2].lower() == "0x":
        prefix, colon, rest = "hex", ":", text[2:]
    try:
        match prefix if colon else "":
            case "hex":
                return bytes.fromhex(rest)
            case "base64":
                return base64.b64decode(rest, validate=True)
            case "text":
                return rest.encode()
    except ValueError as error:
        reason = str(error).lower()
        raise NsmError(f"{text[:40]!r} is not {prefix} ({reason}); text:... takes it as it stands") from error
    return text.encode()
