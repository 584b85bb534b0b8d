"""The catalogue of forgeries: each is a function that makes one, with what is wrong and the check that must see it.

Unless the fault lies in root, chain or signature, each is correctly signed under the development root, so a verifier
that trusts this root must find the fault itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import cbor2

from enclavedbg.nsm.certificates import LEVELS
from enclavedbg.nsm.document import (
    CERTIFICATE_LIMIT,
    COSE_SIGN1_TAG,
    FIELD_LIMIT,
    PROTECTED,
    envelope,
    indefinite,
)
from enclavedbg.nsm.findings import Check
from enclavedbg.nsm.forge.original import Claims, Original, changed
from enclavedbg.nsm.pcr import DEBUG_ZEROED, IMAGE_REGISTERS, ZERO, identity_registers

Maker = Callable[[Original], bytes]

_ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
_ECDSA_SHA384 = bytes.fromhex("06082a8648ce3d040303")
"""Object identifiers in DER (RFC 5758)."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """A document that must be refused. `wrong` says what is wrong with it, `check` which check must fail."""

    name: str
    wrong: str
    check: Check
    document: bytes


GENUINE: dict[str, tuple[str, Maker]] = {
    "genuine": ("a document as modules made it until 2024", lambda original: original.document()),
    "genuine-indefinite": (
        "a document as modules make it now: the payload's map is of indefinite length",
        lambda original: original.sign(indefinite(cbor2.dumps(original.fields()))),
    ),
    "genuine-tagged": (
        "with tag 18, as AWS's guide has it",
        lambda original: bytes([0xC0 | COSE_SIGN1_TAG]) + original.document(),
    ),
    "genuine-absent": (
        "optional fields that are null are absent instead, as AWS's guide has it",
        lambda original: original.sign(cbor2.dumps({k: v for k, v in original.fields().items() if v is not None})),
    ),
}
"""What must be accepted, since a verifier that refuses everything passes no test: what each is, and its maker."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a forgery; `published` tells whether AWS publishes the rule that it breaks.

    A verifier that keeps to what is published may take the others, which go against what all real documents have.
    """

    wrong: str
    check: Check
    make: Maker
    published: bool


FORGERIES: dict[str, Recipe] = {}
"""The recipes by name."""


def forge(original: Original) -> Iterator[Forgery]:
    """Every forgery of the catalogue, one after the other."""
    for name, recipe in FORGERIES.items():
        yield Forgery(name, recipe.wrong, recipe.check, recipe.make(original))


def _forgery(name: str, wrong: str, check: Check, *, published: bool = True) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        FORGERIES[name] = Recipe(wrong, check, make, published)
        return make

    return register


# ---- certificates ----


@_forgery("expired-leaf", "the leaf certificate expired an hour before the document's time", Check.VALIDITY)
def _expired_leaf(original: Original) -> bytes:
    chain = original.make_chain()
    chain[-1] = original.issue(LEVELS[-1], issuer=chain[-2], at=original.claims.at - timedelta(hours=4))
    return original.document(chain)


@_forgery("early-leaf", "the leaf certificate is not valid until an hour after the document's time", Check.VALIDITY)
def _early_leaf(original: Original) -> bytes:
    chain = original.make_chain()
    chain[-1] = original.issue(LEVELS[-1], issuer=chain[-2], at=original.claims.at + timedelta(hours=1))
    return original.document(chain)


@_forgery("expired-intermediate", "the leaf's issuer expired an hour before the document's time", Check.VALIDITY)
def _expired_intermediate(original: Original) -> bytes:
    chain = original.make_chain()
    earlier = original.claims.at - timedelta(hours=25)
    chain[3] = original.issue(LEVELS[3], issuer=chain[2], at=earlier, key=chain[3].key)
    return original.document(chain)


@_forgery("wrong-root", "the whole chain is under another root of the same name", Check.ROOT)
def _wrong_root(original: Original) -> bytes:
    return original.document(original.make_chain(root=original.other_root()))


@_forgery(
    "borrowed-root", "the trusted root stands in front of a chain that another root signed", Check.CHAIN_SIGNATURES
)
def _borrowed_root(original: Original) -> bytes:
    chain = original.make_chain(root=original.other_root())
    return original.document(chain, cabundle=[link.der for link in (original.root, *chain[1:-1])])


@_forgery("reordered-chain", "two intermediate certificates have changed places", Check.CHAIN_NAMES)
def _reordered_chain(original: Original) -> bytes:
    root, regional, zonal, instance = (link.der for link in original.chain[:-1])
    return original.document(cabundle=[root, zonal, regional, instance])


@_forgery("reversed-chain", "the bundle begins with the lowest certificate and ends with the root", Check.ROOT)
def _reversed_chain(original: Original) -> bytes:
    return original.document(cabundle=[link.der for link in reversed(original.chain[:-1])])


@_forgery("missing-intermediate", "the certificate that issued the leaf is not in the bundle", Check.CHAIN_NAMES)
def _missing_intermediate(original: Original) -> bytes:
    return original.document(cabundle=[link.der for link in original.chain[:-2]])


def _spoilt(name: str, level: str, wrong: str, **changes: Any) -> None:
    """A document whose chain has another certificate of one kind, correctly signed."""
    register = _forgery(name, wrong, Check.CONSTRAINTS)
    register(lambda original: original.document(original.make_chain(spoil={level: changed(**changes)})))


_spoilt("non-ca-issuer", "instance", "the certificate that issued the leaf is not a CA's", ca=False, path_length=None)
_spoilt("no-cert-sign", "zonal", "the zonal certificate may not sign certificates (key usage)", may_sign=False)
_spoilt("no-digital-signature", "leaf", "the leaf certificate may not sign documents (key usage)", may_sign=False)
_spoilt("path-too-long", "regional", "the regional certificate allows no CA below it, and there are two", path_length=0)
_spoilt(
    "unknown-extension",
    "leaf",
    "the leaf certificate has a critical extension that nobody knows",
    unknown_critical=True,
)
_spoilt("ca-leaf", "leaf", "the certificate that signs the document is a CA's", ca=True)


@_forgery("damaged-certificate", "a byte in the leaf certificate's signature is altered", Check.CHAIN_SIGNATURES)
def _damaged_certificate(original: Original) -> bytes:
    leaf = bytearray(original.chain[-1].der)
    leaf[-1] ^= 1
    return original.document(certificate=bytes(leaf))


@_forgery(
    "certificate-algorithm", "the leaf's outer signature algorithm says SHA-256, the inner SHA-384", Check.CERTIFICATES
)
def _certificate_algorithm(original: Original) -> bytes:
    head, _, tail = original.chain[-1].der.rpartition(_ECDSA_SHA384)
    return original.document(certificate=head + _ECDSA_SHA256 + tail)


# ---- signature and header ----


@_forgery("altered-pcr", "one bit of PCR0 was changed after the document was signed", Check.SIGNATURE)
def _altered_pcr(original: Original) -> bytes:
    pcr0 = original.claims.pcrs[0]
    return original.document().replace(pcr0, bytes([pcr0[0] ^ 1]) + pcr0[1:])


@_forgery("altered-signature", "one bit of the signature is changed", Check.SIGNATURE)
def _altered_signature(original: Original) -> bytes:
    document = original.document()
    return document[:-1] + bytes([document[-1] ^ 1])


@_forgery("other-signer", "signed with a key other than the leaf certificate's", Check.SIGNATURE)
def _other_signer(original: Original) -> bytes:
    payload = cbor2.dumps(original.fields())
    return envelope(payload, original.issue(LEVELS[-1], issuer=original.chain[-2]).sign)


@_forgery("short-signature", "the signature has 95 bytes", Check.STRUCTURE)
def _short_signature(original: Original) -> bytes:
    protected, unprotected, payload, signature = cbor2.loads(original.document())
    return cbor2.dumps([protected, unprotected, payload, signature[:-1]])


@_forgery(
    "other-algorithm", "the protected header says ES256; the signature is ES384 all the same", Check.PROTECTED_HEADER
)
def _other_algorithm(original: Original) -> bytes:
    return original.sign(cbor2.dumps(original.fields()), protected=cbor2.dumps({1: -7}))


@_forgery("no-algorithm", "the protected header is an empty map", Check.PROTECTED_HEADER)
def _no_algorithm(original: Original) -> bytes:
    return original.sign(cbor2.dumps(original.fields()), protected=cbor2.dumps({}))


@_forgery(
    "unprotected-algorithm", "the algorithm stands in the unprotected header alone, unsigned", Check.PROTECTED_HEADER
)
def _unprotected_algorithm(original: Original) -> bytes:
    protected, _, payload, signature = cbor2.loads(_no_algorithm(original))
    return cbor2.dumps([protected, {1: -35}, payload, signature])


# ---- encoding ----


@_forgery("trailing-byte", "a zero byte follows the document", Check.TRAILING_BYTES)
def _trailing_byte(original: Original) -> bytes:
    return original.document() + b"\x00"


@_forgery("trailing-byte-in-payload", "a zero byte follows the payload's map, and is signed", Check.TRAILING_BYTES)
def _trailing_byte_in_payload(original: Original) -> bytes:
    return original.sign(cbor2.dumps(original.fields()) + b"\x00")


@_forgery(
    "duplicate-key", "the payload holds `pcrs` twice, once with the registers of another image", Check.DUPLICATE_KEYS
)
def _duplicate_key(original: Original) -> bytes:
    payload = cbor2.dumps(original.fields())
    again = cbor2.dumps("pcrs") + cbor2.dumps(_other_image(original.claims))
    return original.sign(bytes([payload[0] + 1]) + payload[1:] + again)


@_forgery("duplicate-header", "the protected header holds the algorithm twice", Check.DUPLICATE_KEYS)
def _duplicate_header(original: Original) -> bytes:
    return original.sign(cbor2.dumps(original.fields()), protected=b"\xa2" + PROTECTED[1:] * 2)


# ---- what the document says ----


def _other_image(claims: Claims) -> dict[int, bytes]:
    other = {index: hashlib.sha384(b"another image %d" % index).digest() for index in IMAGE_REGISTERS}
    return dict(claims.pcrs) | other


@_forgery("other-image", "a genuine document of another image: PCR0, PCR1 and PCR2 are others", Check.PCRS)
def _other_pcrs(original: Original) -> bytes:
    return original.document(pcrs=_other_image(original.claims))


@_forgery("debug-pcrs", "a genuine document of a debug-mode enclave: the image's registers are zero", Check.DEBUG_MODE)
def _debug_pcrs(original: Original) -> bytes:
    return original.document(pcrs=dict(original.claims.pcrs) | dict.fromkeys(DEBUG_ZEROED, ZERO))


@_forgery("other-instance", "PCR4 measures another instance than the module id names", Check.MODULE_ID, published=False)
def _other_instance(original: Original) -> bytes:
    other = identity_registers(instance_id="i-0fedcba9876543210")
    return original.document(pcrs=dict(original.claims.pcrs) | other)


@_forgery("wrong-nonce", "a genuine document made for another nonce: a replay", Check.NONCE)
def _wrong_nonce(original: Original) -> bytes:
    return original.document(nonce=hashlib.sha256(original.claims.nonce).digest())


@_forgery("no-nonce", "a genuine document made without a nonce: it can be replayed for ever", Check.NONCE)
def _no_nonce(original: Original) -> bytes:
    return original.document(nonce=None)


@_forgery("wrong-user-data", "a genuine document with other user data", Check.USER_DATA)
def _wrong_user_data(original: Original) -> bytes:
    return original.document(user_data=hashlib.sha256(original.claims.user_data or b"").digest())


@_forgery(
    "missing-pcr0", "the registers begin with PCR1: nothing says which image ran", Check.DEBUG_MODE, published=False
)
def _missing_pcr0(original: Original) -> bytes:
    return original.document(pcrs={i: value for i, value in original.claims.pcrs.items() if i != 0})


# ---- fields of the wrong size, type or number ----


def _field(name: str, wrong: str, **changes: Any) -> None:
    """A document with other fields, correctly signed."""
    _forgery(name, wrong, Check.FIELDS)(lambda original: original.document(**changes))


def _missing(name: str) -> None:
    register = _forgery(f"missing-{name.replace('_', '-')}", f"the field {name} is missing", Check.FIELDS)
    register(lambda original: original.without(name))


_field("empty-module-id", "the module id is an empty text", module_id="")
_field("empty-certificate", "the certificate is an empty byte string", certificate=b"")
_field("empty-cabundle", "the bundle holds no certificate", cabundle=[])
_field("empty-pcrs", "there are no registers", pcrs={})
_field("empty-public-key", "the public key is an empty byte string, not null", public_key=b"")
_field("zero-timestamp", "the timestamp is 0", timestamp=0)
_field("oversized-nonce", f"the nonce has {FIELD_LIMIT + 1} bytes", nonce=bytes(FIELD_LIMIT + 1))
_field("oversized-user-data", f"the user data has {FIELD_LIMIT + 1} bytes", user_data=bytes(FIELD_LIMIT + 1))
_field("oversized-public-key", f"the public key has {FIELD_LIMIT + 1} bytes", public_key=bytes(FIELD_LIMIT + 1))
_field(
    "oversized-certificate",
    f"the certificate field has {CERTIFICATE_LIMIT + 1} bytes",
    certificate=bytes(CERTIFICATE_LIMIT + 1),
)
_field("other-digest", "the digest is SHA256", digest="SHA256")
_field("short-pcr", "PCR0 has 47 bytes", pcrs={0: bytes(47)})
_field("pcr-out-of-range", "there is a register 32", pcrs={32: bytes(48)})
_field("text-nonce", "the nonce is a text, not bytes", nonce="a text")
_field("null-pcrs", "the registers are null", pcrs=None)
for _name in ("module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"):
    _missing(_name)
