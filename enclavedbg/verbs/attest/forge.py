"""`enclavedbg attest forge`: documents that a verifier must refuse, each with a manifest that says why."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enclavedbg.errors import NsmError
from enclavedbg.machine.clock import SEEDED_START, entropy_source
from enclavedbg.nsm.findings import Check
from enclavedbg.nsm.forge import FORGERIES, GENUINE, Claims, Original
from enclavedbg.nsm.module import make_instance_id, make_module_id
from enclavedbg.nsm.pcr import IMAGE_REGISTERS, PCR_COUNT, ZERO, identity_registers
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.verify import verify
from enclavedbg.options import UsageError, parse_seed
from enclavedbg.verbs.attest.inputs import authority, expected_registers, parse_bytes, parse_when
from enclavedbg.verbs.eif.text import count as counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FOLDER, what the genuine document says, who signs, --only, --list."""
    parser.description = (
        "Writes a folder of documents that a verifier must refuse, and some that it must accept, signed "
        "under the development root (root.pem): NAME.bin with NAME.json, which says what is wrong, which check must "
        "see it, and what the verifier is to be told to expect. Exit status: 0 written, 2 not."
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="made if need be; must hold nothing yet")
    parser.add_argument("--list", action="store_true", help="name the documents, and write nothing")
    parser.add_argument("--only", action="append", metavar="NAME", help="this one and those to accept; repeatable")
    said = parser.add_argument_group("what the genuine document says")
    said.add_argument("--eif", type=Path, metavar="FILE", help="the PCRs of this image; default: made up")
    for name, default in (("nonce", "32 random bytes"), ("user-data", "a text"), ("public-key", "null")):
        said.add_argument(f"--{name}", metavar="VALUE", help=f"text, hex:..., base64:... or @FILE; default: {default}")
    said.add_argument("--at", type=parse_when, metavar="TIME", help="when it is made; default: now")
    signer = parser.add_argument_group("who signs").add_mutually_exclusive_group()
    signer.add_argument("--seed", type=parse_seed, metavar="N", help="the authority of runs with --seed N")
    signer.add_argument("--ephemeral-authority", action="store_true", help="a root made for this alone")


def run(options: argparse.Namespace) -> int:
    """Write the folder, or list the names; 0."""
    if options.list:
        listed = {name: f"accept: {what}" for name, (what, _) in GENUINE.items()}
        listed |= {name: f"refuse: {forgery.wrong}" for name, forgery in FORGERIES.items()}
        width = max(map(len, listed))
        print("\n".join(f"{name:{width}}  {text}" for name, text in listed.items()))
        return 0
    if options.folder is None:
        raise UsageError("no folder; expected: enclavedbg attest forge FOLDER")
    names = _chosen(options.only)
    random_bytes = entropy_source(options.seed, "forge")
    claims = _claims(options, random_bytes)
    signer = authority(options.seed, ephemeral=options.ephemeral_authority, at=claims.at)
    makers = {name: make for name, (_, make) in GENUINE.items()} | {name: FORGERIES[name].make for name in names}
    try:
        original = Original(signer, claims, random_bytes)
        _check(original)
        documents = {name: make(original) for name, make in makers.items()}
    except (ValueError, OverflowError):
        raise UsageError(f"no certificates can be made for {claims.at:%Y-%m-%d}; name another time with --at") from None
    _make_folder(options.folder)
    try:
        (options.folder / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(original.root.der))
        for name, document in documents.items():
            _write(options.folder, name, document, manifest(claims, name))
    except OSError as error:
        raise NsmError(f"cannot write into {options.folder}: {error.strerror or error}") from error
    print(
        f"{counted(len(names), 'document')} to refuse and {len(GENUINE)} to accept, with manifests and root.pem, "
        f"in {options.folder}"
    )
    return 0


def _check(original: Original) -> None:
    """What is to be accepted must be valid; with too long a nonce, say, it is not."""
    report = verify(original.document(), roots=[Root.of(original.root.der)])
    for failure in report.failures:
        cure = "; --ephemeral-authority makes a root for that time" if failure.check is Check.VALIDITY else ""
        raise UsageError(f"a document like that would not be valid itself: {failure.reason}{cure}")


def _chosen(only: Sequence[str] | None) -> list[str]:
    for name in only or ():
        if name not in FORGERIES and name not in GENUINE:
            raise UsageError(f"there is no forgery {name!r}; enclavedbg attest forge --list names them")
    return [name for name in FORGERIES if not only or name in only]


def _claims(options: argparse.Namespace, random_bytes: Callable[[int], bytes]) -> Claims:
    instance_id = make_instance_id(random_bytes)
    if options.eif is not None:
        measured = expected_registers([], options.eif)
    else:
        measured = {index: hashlib.sha384(b"a made-up image %d" % index).digest() for index in IMAGE_REGISTERS}
    registers = measured | identity_registers(instance_id=instance_id)
    default_time = datetime.now(UTC).replace(microsecond=0) if options.seed is None else SEEDED_START
    fresh = secrets.token_bytes if options.seed is None else random_bytes
    return Claims(
        module_id=make_module_id(random_bytes, instance_id=instance_id),
        at=options.at or default_time,
        pcrs={index: registers.get(index, ZERO) for index in range(PCR_COUNT // 2)},
        nonce=fresh(32) if options.nonce is None else parse_bytes(options.nonce),
        user_data=b"enclavedbg attest forge" if options.user_data is None else parse_bytes(options.user_data),
        public_key=None if options.public_key is None else parse_bytes(options.public_key),
    )


def manifest(claims: Claims, name: str) -> dict[str, Any]:
    """What a test of a verifier needs to know of a document. `at` is when certificates are to be checked."""
    forgery = FORGERIES.get(name)
    return {
        "document": f"{name}.bin",
        "verdict": "accept" if forgery is None else "refuse",
        "what": GENUINE[name][0] if forgery is None else forgery.wrong,
        "check": None if forgery is None else {"id": forgery.check.name.lower(), "title": forgery.check.value},
        "basis": None if forgery is None else "published" if forgery.published else "observed",
        "root": "root.pem",
        "at": claims.at.isoformat(),
        "expect": {
            "pcrs": {str(index): value.hex() for index, value in claims.pcrs.items() if index in IMAGE_REGISTERS},
            "nonce": claims.nonce.hex(),
            "user_data": None if claims.user_data is None else claims.user_data.hex(),
            "public_key": None if claims.public_key is None else claims.public_key.hex(),
        },
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty; name a new folder, so that nothing of yours is overwritten")
    except OSError as error:
        raise NsmError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _write(folder: Path, name: str, document: bytes, said: dict[str, Any]) -> None:
    (folder / f"{name}.bin").write_bytes(document)
    (folder / f"{name}.json").write_text(json.dumps(said, indent=2) + "\n")
