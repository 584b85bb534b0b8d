"""What is fuzzed: bytes in, and nothing out but what the code promises. Any exception that leaves is a find."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec

from enclavedbg.eif.archives import Limits, read_ramdisk
from enclavedbg.eif.contents import open_contents
from enclavedbg.eif.describe import describe
from enclavedbg.eif.filesystem import read_filesystem
from enclavedbg.eif.format import CRC_OFFSET, HEADER_SIZE
from enclavedbg.eif.measure import measure, measure_file
from enclavedbg.eif.reader import read_eif
from enclavedbg.eif.sign import load_signing_key, sign_eif
from enclavedbg.eif.signature import read_signature, verify_signature
from enclavedbg.eif.source import open_source
from enclavedbg.eif.walk import Reader, walk_eif
from enclavedbg.errors import EifError, NsmError
from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.encoding import document_bytes
from enclavedbg.nsm.keypolicy import PolicyError, evaluate, parse_policy
from enclavedbg.nsm.module import SecureModule
from enclavedbg.nsm.record import report_record
from enclavedbg.nsm.tree import document_tree, tree_lines
from enclavedbg.nsm.verify import verify
from tests.eif.signing import certificate_pem, key_pem

SEEDS = Path(__file__).with_name("seeds")
LIMITS = Limits(unpacked=1 << 20, entries=500, archives=50, text=1 << 16)
"""Small, so that a bomb that gets past them shows as a hang or as memory."""

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_AUTHORITY = Authority(None, now=lambda: _NOW, random_bytes=os.urandom)
_KEY = ec.generate_private_key(ec.SECP256R1())
_SIGNING = load_signing_key(key_pem(_KEY), certificate_pem(_KEY))


def image(data: bytes) -> None:
    """The lenient and the strict reader, measuring and describing; where the strict one reads, all agree."""
    for file in (data, with_crc(data)):
        with open_source(file) as source:
            with contextlib.suppress(EifError):
                json.dumps(describe(source).as_json(), ensure_ascii=False).encode()
            with contextlib.suppress(EifError):
                found = read_eif(file)
                walk = walk_eif(source)
                measured = measure_file(source, walk)
                assert measured.crc_matches and measured.measurements == measure(found)
                assert walk.agree and not [p for p in walk.problems if Reader.FORMAT in p.stops]


def sign(data: bytes) -> None:
    """What was signed has no fault that the signer could have made or kept."""
    out = io.BytesIO()
    with open_source(with_crc(data)) as source:
        try:
            signed = sign_eif(source, out, key=_SIGNING)
        except EifError:
            return
    with open_source(out.getvalue()) as source:
        walk = walk_eif(source)
        assert walk.agree and not [p for p in walk.problems if Reader.FORMAT in p.stops]
        measured = measure_file(source, walk)
        assert measured.crc_matches and measured.measurements == signed.measurements


def signature(data: bytes) -> None:
    """A Signature section's CBOR, certificate and COSE."""
    with contextlib.suppress(EifError):
        verify_signature(read_signature(data), bytes(48))


def files(data: bytes) -> None:
    """An image's ramdisks as one file system."""
    with contextlib.suppress(EifError):
        open_contents(with_crc(data)).filesystem(limits=LIMITS)


def ramdisk(data: bytes) -> None:
    """One ramdisk: archives, compressed or not, its entries and all their contents."""
    with contextlib.suppress(EifError):
        found = read_ramdisk(data, limits=LIMITS)
        assert found.unpacked <= LIMITS.unpacked + len(data)
        for entry in found.entries[:20]:
            assert sum(len(piece) for piece in found.contents(entry)) == entry.size
    with contextlib.suppress(EifError):
        read_filesystem([data, data], limits=LIMITS)


def request(data: bytes) -> None:
    """A request to the secure module: an answer that is legal CBOR in its shortest form, and fits."""
    module = SecureModule(
        authority=_AUTHORITY, measurements={}, module_id="i-fuzz", now=lambda: _NOW, random_bytes=bytes
    )
    answer = module.handle(data, 0x3000)
    assert answer is not None and cbor2.dumps(cbor2.loads(answer)) == answer


def document(data: bytes) -> None:
    """An attestation document, in any form: a report, shown as tree and JSON."""
    with contextlib.suppress(NsmError):
        data = document_bytes(data)
    report = verify(data)
    json.dumps(report_record(report)).encode()
    shown = [text for line in tree_lines(document_tree(report.reading)) for text in line]
    assert all(text.isprintable() for text in shown)


def policy(data: bytes) -> None:
    """A key policy, evaluated."""
    with contextlib.suppress(PolicyError):
        role = "arn:aws:iam::111122223333:role/r"
        result = evaluate(parse_policy(data), {0: bytes(48), 4: b"\x04" * 48}, principal=role)
        assert result.verdict and "\n" not in result.verdict


def with_crc(data: bytes) -> bytes:
    """The bytes with the CRC that they would need, which no mutation finds by chance."""
    crc = zlib.crc32(data[HEADER_SIZE:], zlib.crc32(data[:CRC_OFFSET]))
    return data[:CRC_OFFSET] + crc.to_bytes(4, "big") + data[HEADER_SIZE:] if len(data) >= HEADER_SIZE else data


TARGETS: dict[str, Callable[[bytes], None]] = {
    "image": image,
    "sign": sign,
    "signature": signature,
    "files": files,
    "ramdisk": ramdisk,
    "request": request,
    "document": document,
    "policy": policy,
}


def seeds(target: str) -> list[Path]:
    """The seed files of a target."""
    folder = {"sign": "image", "files": "image"}.get(target, target)
    return sorted((SEEDS / folder).iterdir())
