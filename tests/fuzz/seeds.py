"""Makes the files in seeds/: `python -m tests.fuzz.seeds`. Small ones, so that a mutation has something to hit."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import stat
from base64 import b64encode
from pathlib import Path

import zstandard

from enclavedbg.eif.cpio import CpioEntry, write_newc
from enclavedbg.eif.reader import read_eif
from enclavedbg.eif.writer import assemble
from enclavedbg.nsm.document import MapEncoding
from enclavedbg.nsm.wire import (
    Attestation,
    DescribeNSM,
    DescribePCR,
    ExtendPCR,
    GetRandom,
    LockPCR,
    LockPCRs,
    Request,
    encode_request,
)
from tests.eif.test_compression import lz4_legacy
from tests.nsm.real import SIGNED_2022
from tests.nsm.support import make_module

VECTORS = Path(__file__).parents[1] / "eif" / "vectors"
FIRST = write_newc(
    [
        CpioEntry("dev", stat.S_IFDIR | 0o755),
        CpioEntry("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1)),
        CpioEntry("init", stat.S_IFREG | 0o755, b"\x7fELF, more or less"),
    ]
)
SECOND = write_newc(
    [
        CpioEntry("cmd", stat.S_IFREG | 0o644, b"/app\n"),
        CpioEntry("env", stat.S_IFREG | 0o644, b"A=b\n"),
        CpioEntry("rootfs", stat.S_IFDIR | 0o755),
        CpioEntry("rootfs/app", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
        CpioEntry("rootfs/link", stat.S_IFLNK | 0o777, b"../../etc/passwd"),
        CpioEntry("rootfs/../up", stat.S_IFREG | 0o644, b"out"),
    ]
)


def ramdisks() -> dict[str, bytes]:
    """Each compression, and several archives behind each other."""
    return {
        "plain": FIRST,
        "gzip": gzip.compress(SECOND, mtime=0),
        "xz": lzma.compress(SECOND, check=lzma.CHECK_CRC32),
        "lzma": lzma.compress(SECOND, format=lzma.FORMAT_ALONE),
        "bzip2": bz2.compress(SECOND),
        "zstd": zstandard.ZstdCompressor().compress(SECOND),
        "lz4": lz4_legacy(SECOND),
        "two": FIRST + bytes(64) + SECOND,
        "mixed": FIRST + gzip.compress(SECOND, mtime=0) + bytes(3) + gzip.compress(FIRST, mtime=0),
    }


def images() -> dict[str, bytes]:
    """The vectors, and images whose ramdisks can be listed."""
    found = {path.stem: path.read_bytes() for path in sorted(VECTORS.glob("*.eif"))}
    for name, second in ramdisks().items():
        found[f"files-{name}"] = assemble([(1, b"K"), (2, b"console=ttyS0"), (5, b"null"), (3, FIRST), (3, second)])
    return found


def signatures() -> dict[str, bytes]:
    """The Signature sections of the vectors."""
    found = {}
    for path in sorted(VECTORS.glob("*.eif")):
        if (section := read_eif(path).signature) is not None:
            found[path.stem] = section
    return found


def requests() -> dict[str, bytes]:
    """Every kind of request, and forms that our own encoder does not write."""
    made: dict[str, Request] = {
        "describe": DescribeNSM(),
        "random": GetRandom(),
        "pcr": DescribePCR(31),
        "extend": ExtendPCR(16, b"data"),
        "lock": LockPCR(16),
        "range": LockPCRs(20),
        "attest": Attestation(b"user", b"nonce", b"key"),
    }
    found = {name: encode_request(request) for name, request in made.items()}
    head = bytes.fromhex("bf69457874656e64504352bf65696e64657819001064646174615f4101")
    found["indefinite"] = head + b"\x42\2\3\xff\xff\xff"
    return found


def documents() -> dict[str, bytes]:
    """One from EC2, the same in base64, and one of ours with a map of indefinite length."""
    ours = make_module(map_encoding=MapEncoding.INDEFINITE).attest(nonce=b"n")
    return {"ec2": SIGNED_2022, "base64": b64encode(SIGNED_2022), "ours": ours}


def policies() -> dict[str, bytes]:
    """AWS's usual statements, and one with everything in it."""
    account = {"AWS": "arn:aws:iam::111122223333:root"}
    root = {"Effect": "Allow", "Principal": account, "Action": "kms:*", "Resource": "*"}
    enclave = root | {
        "Principal": {"AWS": ["arn:aws:iam::111122223333:role/r"]},
        "Condition": {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:ImageSha384": "00" * 48}},
    }
    everything = {
        "Sid": "x",
        "Effect": "Deny",
        "NotPrincipal": {"AWS": "*", "Service": ["s3.amazonaws.com"]},
        "NotAction": ["kms:De*", "kms:?"],
        "Condition": {
            "ForAnyValue:StringNotLikeIfExists": {"kms:RecipientAttestation:PCR4": ["a*", "b?"]},
            "Null": {"kms:RecipientAttestation:PCR8": True},
            "NumericLessThan": {"aws:MultiFactorAuthAge": 5},
        },
    }
    both = {"Version": "2012-10-17", "Id": "key", "Statement": [root, enclave, everything]}
    return {"usual": json.dumps({"Statement": enclave}).encode(), "everything": json.dumps(both).encode()}


def main() -> None:
    """Write all of them."""
    for target, made in (
        ("image", images()),
        ("ramdisk", ramdisks()),
        ("signature", signatures()),
        ("request", requests()),
        ("document", documents()),
        ("policy", policies()),
    ):
        folder = Path(__file__).with_name("seeds") / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in made.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
