"""Why a register's value is not the one that a policy wants: typing errors, mix-ups, debug mode.

What the registers hold is from the Nitro Enclaves User Guide, "Where to get an enclave's measurements"; each is
SHA384(48 zero bytes || what is measured).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from enclavedbg.nsm.keypolicy.operators import Operator
from enclavedbg.nsm.pcr import DEBUG_ZEROED, PCR_SIZE, ZERO, extended, is_debug_mode

DIGITS = 2 * PCR_SIZE

_SEPARATORS = re.compile(r"[\s:_-]")

Registers = Mapping[int, bytes | None]


def explain_difference(register: int, wanted: str, operator: Operator, registers: Registers) -> str:
    """What is wrong with a policy's value, in a few words; empty when it is just another value."""
    found = registers.get(register)
    if found is None:
        return ""
    has_wildcards = "*" in wanted or "?" in wanted
    if has_wildcards and operator.name.endswith("Like"):
        return ""
    written = _as_written(wanted, found.hex(), operator)
    if written:
        return written
    if has_wildcards:
        return f"* and ? are wildcards in StringLike only, not in {operator.name}"
    if not re.fullmatch("[0-9a-fA-F]+", wanted):
        return _not_hexadecimal(register, wanted, found)
    if len(wanted) != DIGITS:
        return f"{len(wanted)} hexadecimal digits; a PCR has {DIGITS}"
    return _another_value(register, bytes.fromhex(wanted), registers)


def explain_zero(register: int, registers: Registers) -> tuple[str, bool]:
    """What it means that the document's register is all zeros, or nothing, and whether debug mode is behind it."""
    value = registers.get(register)
    if value is None or any(value):
        return "", False
    if register in DEBUG_ZEROED and is_debug_mode(registers):
        return "the document's value is all zeros: the enclave ran in debug mode", True
    meanings = {
        3: "the parent instance has no IAM role",
        8: "the image is not signed",
    }
    meaning = meanings.get(register, "nothing was measured into this register")
    return f"the document's value is all zeros: {meaning}", False


def _as_written(wanted: str, found: str, operator: Operator) -> str:
    """The right value, written in a way that KMS does not."""
    if wanted.lower() == found:
        cure = f"write it in lower case, or use String{'Not' if operator.negated else ''}EqualsIgnoreCase"
        return f"equal but for upper case: {cure} ({operator.name} minds the case, and KMS gives lower case)"
    if _SEPARATORS.sub("", wanted).lower().removeprefix("0x").removeprefix("sha384") != found:
        return ""
    if "0x" in wanted.lower():
        return "equal but for 0x: KMS gives bare hexadecimal digits"
    return "equal but for white space, separators or a name before it: KMS gives bare hexadecimal digits"


def _not_hexadecimal(register: int, wanted: str, found: bytes) -> str:
    if wanted in (base64.b64encode(found).decode(), base64.urlsafe_b64encode(found).decode()):
        return "the document's value in base64; KMS gives hexadecimal digits"
    if register in (3, 4) and wanted.startswith(("arn:", "i-")):
        what = "role ARN" if register == 3 else "instance id"
        equal = extended(ZERO, wanted.encode("utf-8", "surrogatepass")) == found
        return f"PCR{register} is a hash of the {what}: SHA-384 of 48 zero bytes and it" + (
            ", and here that would be equal" if equal else ""
        )
    return f"not hexadecimal digits; KMS gives {DIGITS} of them, in lower case"


def _another_value(register: int, wanted: bytes, registers: Registers) -> str:
    if not any(wanted):
        return "all zeros, as a debug-mode enclave has" if register in DEBUG_ZEROED else "all zeros"
    if extended(ZERO, wanted) == registers[register]:
        return "a digest not yet extended: the PCR is the SHA-384 of 48 zero bytes and that, and would be equal"
    same = [f"PCR{other}" for other, value in sorted(registers.items()) if value == wanted]
    return f"this is the document's {same[0]}" if same else ""
