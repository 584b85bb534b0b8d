"""The secure module: documents per second, against the signature that each of them needs."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from benchmarks.harness import Context, Sample
from benchmarks.process import Failed
from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.module import SecureModule, make_module_id

RATE = "per second"
CAPACITY = 0x3000
"""Bytes that Linux's driver offers for an answer."""
_BATCH = 200


def attest(context: Context) -> None:
    """An Attestation request with nonce, user data and key, decoded, signed and encoded; in this process."""
    module = SecureModule(
        authority=Authority(None, now=_now, random_bytes=os.urandom),
        measurements={index: os.urandom(48) for index in (0, 1, 2)},
        module_id=make_module_id(os.urandom),
        now=_now,
        random_bytes=os.urandom,
    )
    module.prepare()
    fields = {"user_data": os.urandom(64), "nonce": os.urandom(32), "public_key": os.urandom(294)}
    request = cbor2.dumps({"Attestation": fields})
    small = cbor2.dumps("GetRandom")
    document = cbor2.loads(module.handle(request, CAPACITY))
    if "Attestation" not in document:
        raise Failed(f"the module answered {document!r}")
    # What is signed is the document without its signature, but for a few bytes.
    message = os.urandom(len(document["Attestation"]["document"]) - 96)
    key = ec.generate_private_key(ec.SECP384R1())

    def documents() -> Sample:
        began = time.perf_counter()
        for _ in range(_BATCH):
            module.handle(request, CAPACITY)
        return {RATE: _BATCH / (time.perf_counter() - began)}

    def signatures() -> Sample:
        began = time.perf_counter()
        for _ in range(_BATCH):
            key.sign(message, ec.ECDSA(SHA384()))
        return {RATE: _BATCH / (time.perf_counter() - began)}

    def random() -> Sample:
        began = time.perf_counter()
        for _ in range(10 * _BATCH):
            module.handle(small, CAPACITY)
        return {RATE: 10 * _BATCH / (time.perf_counter() - began)}

    sides = {"attestation documents": documents, "ES384 signatures alone": signatures, "GetRandom requests": random}
    context.add(context.in_turns(sides, rounds=7), RATE, unit="/s")
    context.report.ratio(RATE, "attestation documents", "ES384 signatures alone")


def _now() -> datetime:
    return datetime.now(UTC)
