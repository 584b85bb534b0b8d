"""The secure module: documents per second against the signature that each of them needs, and explaining one."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384

from benchmarks.harness import Context, Sample
from benchmarks.process import Child, Failed
from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.module import SecureModule, make_instance_id, make_module_id
from enclavedbg.nsm.pcr import identity_registers
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.verify import verify
from enclavedbg.verbs.attest.explain import lines

RATE = "per second"
TIME = "time"
OPENSSL = "openssl speed ecdsap384"
CAPACITY = 0x3000
"""Bytes that Linux's driver offers for an answer."""
_BATCH = 200


def attest(context: Context) -> None:
    """An Attestation request with nonce, user data and key, decoded, signed and encoded; in this process."""
    module = _module()
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
    if shutil.which("openssl"):
        sides[OPENSSL] = _openssl_speed
    else:
        context.report.note(f"no openssl command, so nothing against `{OPENSSL}` (apt install openssl)")
    with _on_one_core():
        samples = context.in_turns(sides, rounds=7)
    context.add(samples, RATE, unit="/s")
    for peer in ("ES384 signatures alone", OPENSSL):
        context.report.ratio(RATE, "attestation documents", peer)


def _openssl_speed() -> Sample:
    """Signatures per second by the command, which works for a second on it, and another on verifying."""
    with Child(["openssl", "speed", "-mr", "-seconds", "1", "ecdsap384"]) as child:
        # +F4:number of the curve:bits:signatures per second:verifications per second
        return {RATE: float(child.match(r"^\+F4:\d+:384:([0-9.]+):")[1])}


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    """Keep this process and its children to the core it is on."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def explain(context: Context) -> None:
    """`attest explain` of one document: in this process, and as a whole command against one that only starts."""
    module = _module()
    document = module.attest(user_data=os.urandom(64), nonce=os.urandom(32), public_key=os.urandom(294))
    (context.folder / "document.bin").write_bytes(document)
    (context.folder / "root.der").write_bytes(module.authority.root())
    roots = [Root.of(module.authority.root())]
    command = [sys.executable, "-m", "enclavedbg", "attest", "explain"]

    def in_process() -> Sample:
        began = time.perf_counter()
        report = verify(document, roots=roots, now=_now())
        "\n".join(lines(report))
        took = time.perf_counter() - began
        if not report.valid:
            raise Failed(f"the document is refused: {report.failures[0]}")
        return {TIME: took}

    def whole() -> Sample:
        given = [str(context.folder / "document.bin"), "--root", str(context.folder / "root.der")]
        with Child([*command, *given]) as child:
            return {TIME: child.until("valid, under")["valid, under"]}

    def start() -> Sample:
        with Child([*command, "--help"]) as child:
            return {TIME: child.whole()[1]}

    sides = {"explain, in this process": in_process, "the whole command": whole, "the command with --help": start}
    samples = context.in_turns(sides, rounds=9)
    context.add(samples, TIME, targets={"explain, in this process": 0.15})
    context.report.ratio(TIME, "the whole command", "the command with --help")


def _module() -> SecureModule:
    instance_id = make_instance_id(os.urandom)
    registers = {index: os.urandom(48) for index in (0, 1, 2)} | identity_registers(instance_id=instance_id)
    module = SecureModule(
        authority=Authority(None, now=_now, random_bytes=os.urandom),
        measurements=registers,
        module_id=make_module_id(os.urandom, instance_id=instance_id),
        now=_now,
        random_bytes=os.urandom,
    )
    module.prepare()
    return module


def _now() -> datetime:
    return datetime.now(UTC)
