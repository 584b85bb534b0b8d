"""Reads anybody's attestation document piece by piece, and says what is wrong with each.

A fault does not keep the rest from being read: the trailing byte is one line of a report, the missing field another.
Nothing here is trusted; `enclavedbg.nsm.verify` decides about that.

No COSE library stands behind this. cwt 3.3 (2026, MIT) wants cbor2 below 6, and takes an ES256 header, or none, for an
ES384 signature; pycose 1.1 (2023, BSD) cannot decode with cbor2 6. Both refuse Nitro's untagged form, let trailing
bytes, duplicate keys and indefinite arrays pass without a word, and damaged input leaves them as ValueError, TypeError
or IndexError: no fault could be named. What they would save is one CBOR array (Sig_structure) around `cryptography`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from enclavedbg.nsm.cbor import CborError, Tagged, TrailingBytesError, decode
from enclavedbg.nsm.document import (
    ALGORITHM_HEADER,
    COSE_SIGN1_TAG,
    DOCUMENT_LIMIT,
    ES384,
    PAYLOAD_LIMIT,
    SIGNATURE_SIZE,
    DecodedDocument,
)
from enclavedbg.nsm.fields import FIELDS, OPTIONAL, kind_of
from enclavedbg.nsm.findings import Check, DocumentError, Finding, Findings, Status

_NITRO_TPM = "nitrotpm_pcrs"
"""A field of documents that EC2 instances get through their NitroTPM, under the same root."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The four parts of a COSE_Sign1 as received (RFC 9052, section 4.2)."""

    tagged: bool
    protected: bytes
    unprotected: Mapping[Any, Any]
    payload: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read, and what is wrong with it.

    `fields` is the payload's map as it stands, `values` those of its fields that are of the right type and size (with
    `cabundle` as a tuple); both are empty, and `envelope` is None, where the bytes give none.
    """

    size: int
    findings: tuple[Finding, ...]
    envelope: Envelope | None = None
    header: Any = None
    fields: Mapping[Any, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def readable(self) -> bool:
        """Whether there is a payload with fields at all."""
        return self.envelope is not None and bool(self.fields)

    def document(self) -> DecodedDocument:
        """The document when nothing is wrong with its form; raises DocumentError with the first fault."""
        for finding in self.findings:
            if finding.status is Status.FAIL:
                raise DocumentError(finding.check, finding.reason)
        assert self.envelope is not None
        values = self.values
        return DecodedDocument(
            module_id=values["module_id"],
            digest=values["digest"],
            timestamp_ms=values["timestamp"],
            pcrs=values["pcrs"],
            certificate=values["certificate"],
            cabundle=values["cabundle"],
            public_key=values.get("public_key"),
            user_data=values.get("user_data"),
            nonce=values.get("nonce"),
            protected=self.envelope.protected,
            payload=self.envelope.payload,
            signature=self.envelope.signature,
        )


def decode_document(document: bytes) -> DecodedDocument:
    """Read a document, tagged or not; raises DocumentError when there is anything wrong with its form."""
    return read_document(document).document()


def read_document(document: bytes) -> Reading:
    """Read what can be read of any bytes."""
    reader = _Reader(document)
    reader.read()
    return Reading(
        len(document),
        reader.findings.in_order(),
        reader.envelope,
        reader.header,
        reader.fields,
        reader.values,
    )


class _Reader:
    """Works through one document; stops where nothing that follows could be read."""

    def __init__(self, document: bytes) -> None:
        self._document = document
        self.findings = Findings()
        self.envelope: Envelope | None = None
        self.header: Any = None
        self.fields: dict[Any, Any] = {}
        self.values: dict[str, Any] = {}

    def read(self) -> None:
        if len(self._document) > DOCUMENT_LIMIT:
            self._fail(Check.STRUCTURE, f"{len(self._document)} bytes, expected at most {DOCUMENT_LIMIT}")
            return
        try:
            item = self._cbor(self._document, "the document")
        except CborError:
            return
        self._open(item)
        if self.envelope is None:
            return
        self._read_header(self.envelope)
        self._read_payload(self.envelope.payload)
        self.findings.passed_unless_failed(Check.CBOR, "document, protected header and payload are one item each")
        self.findings.passed_unless_failed(Check.TRAILING_BYTES, "nothing follows any of the three")
        self.findings.passed_unless_failed(Check.DUPLICATE_KEYS, "no map holds a key twice")

    def _fail(self, check: Check, reason: str) -> None:
        self.findings.failed(check, reason)

    def _cbor(self, data: bytes, what: str) -> Any:
        def note(error: CborError) -> None:
            check = Check.TRAILING_BYTES if isinstance(error, TrailingBytesError) else Check.DUPLICATE_KEYS
            self._fail(check, f"{what}: {error}")

        try:
            return decode(data, tolerate=note)
        except CborError as error:
            self._fail(Check.CBOR, f"{what}: {error}")
            raise

    # ---- the envelope ----

    def _open(self, item: Any) -> None:
        tagged = isinstance(item, Tagged) and item.tag == COSE_SIGN1_TAG
        parts = item.value if tagged else item
        if not isinstance(parts, list) or len(parts) != 4:
            found = f"an array of {len(parts)}" if isinstance(parts, list) else kind_of(parts)
            self._fail(Check.STRUCTURE, f"{found}, expected an array of 4, untagged or with tag 18 (COSE_Sign1)")
            return
        protected, unprotected, payload, signature = parts
        for name, part in (("protected header", protected), ("payload", payload), ("signature", signature)):
            if not isinstance(part, bytes):
                self._fail(Check.STRUCTURE, f"the {name} is {kind_of(part)}, expected a byte string")
        if not isinstance(unprotected, dict):
            self._fail(Check.STRUCTURE, f"the unprotected header is {kind_of(unprotected)}, expected a map")
        if self.findings.has_failed(Check.STRUCTURE):
            return
        if not 1 <= len(payload) <= PAYLOAD_LIMIT:
            self._fail(Check.STRUCTURE, f"a payload of {len(payload)} bytes, expected 1 to {PAYLOAD_LIMIT}")
        if len(signature) != SIGNATURE_SIZE:
            self._fail(
                Check.STRUCTURE, f"a signature of {len(signature)} bytes, expected {SIGNATURE_SIZE} (r and s of P-384)"
            )
        self.envelope = Envelope(tagged, protected, unprotected, payload, signature)
        form = "with tag 18" if tagged else "untagged"
        form += ", an unprotected header that is not empty" if unprotected else ""
        self.findings.passed_unless_failed(
            Check.STRUCTURE, f"{form}, payload of {len(payload)} bytes, signature of {len(signature)}"
        )

    def _read_header(self, envelope: Envelope) -> None:
        try:
            self.header = self._cbor(envelope.protected, "the protected header")
        except CborError:
            self._fail(Check.PROTECTED_HEADER, "it cannot be read, expected {1: -35} (ES384)")
            return
        header = self.header
        if isinstance(header, dict):
            for label in header.keys() & envelope.unprotected.keys():
                # RFC 9052, section 3: malformed, as two readers may go by one or the other.
                self._fail(Check.DUPLICATE_KEYS, f"the label {label!r:.40} stands in both headers")
        # True == 1 and -35.0 == -35 to Python; to COSE they are other things.
        alike = isinstance(header, dict) and set(header) == {ALGORITHM_HEADER}
        if alike and type(header[ALGORITHM_HEADER]) is int and header[ALGORITHM_HEADER] == ES384:
            self.findings.passed(Check.PROTECTED_HEADER, "{1: -35}, the algorithm is ES384")
        else:
            self._fail(Check.PROTECTED_HEADER, f"{header!r:.60}, expected {{1: -35}} (ES384)")

    # ---- the payload ----

    def _read_payload(self, payload: bytes) -> None:
        try:
            fields = self._cbor(payload, "the payload")
        except CborError:
            return
        if not isinstance(fields, dict):
            self._fail(Check.FIELDS, f"the payload is {kind_of(fields)}, expected a map")
            return
        self.fields = fields
        if _NITRO_TPM in fields:
            self._fail(Check.FIELDS, f"field {_NITRO_TPM}: this is an EC2 instance's NitroTPM document, no enclave's")
        for name, convert in FIELDS.items():
            self._field(name, convert)
        others = [key for key in fields if key not in FIELDS]
        known = f"{len(self.values)} fields of the right types and sizes"
        ignored = f"; unknown and ignored: {', '.join(f'{key!r:.30}' for key in others[:5])}" if others else ""
        self.findings.passed_unless_failed(Check.FIELDS, known + ignored)

    def _field(self, name: str, convert: Callable[[Any], Any]) -> None:
        if name not in self.fields:
            if name not in OPTIONAL:
                self._fail(Check.FIELDS, f"field {name} is missing")
            return
        try:
            self.values[name] = convert(self.fields[name])
        except ValueError as error:
            self._fail(Check.FIELDS, f"field {name}: {error}")
