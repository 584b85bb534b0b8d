"""A report as plain data, for JSON."""

from __future__ import annotations

from typing import Any

from enclavedbg.errors import NsmError
from enclavedbg.nsm.document import time_of
from enclavedbg.nsm.pcr import is_debug_mode
from enclavedbg.nsm.reading import Reading
from enclavedbg.nsm.verify import Report


def report_record(report: Report) -> dict[str, Any]:
    """The verdict, every finding, and what the document says; bytes in hex, times in ISO 8601."""
    return {
        "valid": report.valid,
        "readable": report.readable,
        "checked_at": None if report.at is None else report.at.isoformat(),
        "root": None if report.root is None else {"name": report.root.name, "sha256": report.root.fingerprint.hex()},
        "checks": [
            {
                "check": finding.check.name.lower(),
                "title": finding.check.value,
                "status": finding.status.value,
                "reason": finding.reason,
            }
            for finding in report.findings
        ],
        "document": document_record(report.reading),
    }


def document_record(reading: Reading) -> dict[str, Any] | None:
    """Every field, None if it is absent or not of the right type and size; None where there is no document."""
    if not reading.readable:
        return None
    values = reading.values
    record: dict[str, Any] = {"size": reading.size}
    for name in ("module_id", "digest", "timestamp"):
        record[name] = values.get(name)
    record["time"] = time_of(values["timestamp"]).isoformat() if "timestamp" in values else None
    pcrs = values.get("pcrs")
    record["pcrs"] = None if pcrs is None else {str(index): value.hex() for index, value in pcrs.items()}
    record["debug_mode"] = None if pcrs is None else is_debug_mode(pcrs)
    for name in ("public_key", "user_data", "nonce"):
        value = values.get(name)
        record[name] = None if value is None else value.hex()
    record["certificates"] = [_certificate(der) for der in (*values.get("cabundle", ()), values.get("certificate"))]
    return record


def _certificate(der: bytes | None) -> dict[str, Any] | None:
    from enclavedbg.nsm.x509read import summarise

    if der is None:
        return None
    try:
        found = summarise(der)
    except NsmError as error:
        return {"error": str(error), "der": der.hex()}
    return {
        "subject": found.subject,
        "issuer": found.issuer,
        "serial": found.serial,
        "not_before": found.not_before.isoformat(),
        "not_after": found.not_after.isoformat(),
        "sha256": found.fingerprint.hex(),
        "der": der.hex(),
    }
