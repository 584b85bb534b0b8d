"""`enclavedbg eif sign FILE --key K --certificate C`: add a signature to an image, or replace it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from enclavedbg.eif.atomic import atomic_write
from enclavedbg.eif.describe import measurements_json
from enclavedbg.eif.source import open_source
from enclavedbg.eif.text import safe
from enclavedbg.errors import EifError
from enclavedbg.verbs.eif.output import print_json, print_measurements, warn

KEY_FILE_LIMIT = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --key, --certificate and where to."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument("--key", required=True, metavar="FILE", help="PEM private key on P-256, P-384 or P-521")
    parser.add_argument("--certificate", required=True, type=Path, metavar="FILE", help="PEM certificate of that key")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="holds the key's passphrase, in one line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the signed image; default: replace the image")
    parser.add_argument("--json", action="store_true", help="as nitro-cli sign-eif prints the measurements")


def run(options: argparse.Namespace) -> int:
    """Sign, then print the measurements; 0."""
    from enclavedbg.eif.sign import load_signing_key, sign_eif

    if options.key.startswith("arn:"):
        raise EifError("keys in AWS KMS cannot be used here; give a PEM file, or sign with nitro-cli sign-eif")
    passphrase = None
    if options.passphrase_file is not None:
        passphrase = _read(options.passphrase_file, what="the passphrase").rstrip(b"\r\n")
    key = load_signing_key(
        _read(Path(options.key), what="the private key"),
        _read(options.certificate, what="the certificate"),
        passphrase=passphrase,
    )
    output = options.output or options.file
    with open_source(options.file) as source, atomic_write(output) as file:
        signed = sign_eif(source, file, key=key)
    now = datetime.now(UTC)
    if not key.certificate.valid_at(now):
        ended = f"ended {key.certificate.not_after:%Y-%m-%d}"
        begins = f"begins {key.certificate.not_before:%Y-%m-%d}"
        warn(
            [
                f"the certificate's time {ended if now > key.certificate.not_after else begins}: nitro-cli run-enclave "
                "refuses the image then (E59)"
            ]
        )
    if options.json:
        print_json({"Measurements": measurements_json(signed.measurements)})
    else:
        done = "replaced the signature of" if signed.replaced else "signed"
        print(safe(f"{done} {output}: {key.certificate.subject}, until {key.certificate.not_after:%Y-%m-%d}"))
        print_measurements(signed.measurements)
    return 0


def _read(path: Path, *, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(KEY_FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EifError(f"cannot read {what} {path}: {reason}; check the path and its permissions") from error
    if len(data) > KEY_FILE_LIMIT:
        raise EifError(f"{what} {path} has more than {KEY_FILE_LIMIT} bytes; give a PEM file")
    return data
