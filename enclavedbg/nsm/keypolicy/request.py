"""What KMS knows of a request when it evaluates conditions: the attestation document, the caller, the context.

Sources: KMS Developer Guide, "Condition keys for Nitro Enclaves"
(docs.aws.amazon.com/kms/latest/developerguide/conditions-nitro-enclave.html): ImageSha384 is PCR0, values are
lower-case hexadecimal, and the keys are there only in the five operations with a Recipient parameter. The Service
Authorization Reference lists PCR0 to PCR31. IAM User Guide, "Condition": names of keys do not mind the case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from enclavedbg.nsm.keypolicy.operators import glob_matches
from enclavedbg.nsm.keypolicy.parse import Patterns
from enclavedbg.nsm.keypolicy.principals import Caller, CallerKind

RECIPIENT_ACTIONS = (
    "kms:Decrypt",
    "kms:DeriveSharedSecret",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateRandom",
)
"""The operations that take an attestation document."""

ATTESTATION_PREFIX = "kms:recipientattestation"
_REGISTER = re.compile(ATTESTATION_PREFIX + ":(?:(imagesha384)|pcr([0-9]|[12][0-9]|3[01]))")


def register_of(key: str) -> int | None:
    """The register that a condition key asks for; None when it is another key."""
    match = _REGISTER.fullmatch(key.lower())
    return None if match is None else int(match[2] or 0)


def is_attestation_key(key: str) -> bool:
    """Whether a key's value can only come from an attestation document, even when KMS knows no such key."""
    name = key.lower()
    return name == ATTESTATION_PREFIX or name.startswith(ATTESTATION_PREFIX + ":")


@dataclass(frozen=True, slots=True)
class Lookup:
    """A key's values in the request: none when it has no such key, None when that is not known. `note` says why."""

    values: tuple[str, ...] | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A call of KMS.

    `registers` is what the document holds, None when there is no document; a register's None stands for any
    value. `caller` is None when not known. `context` has other keys in lower case, with no values for a key that
    the request does not have.
    """

    action: str
    registers: Mapping[int, bytes | None] | None
    caller: Caller | None
    context: Mapping[str, tuple[str, ...]]

    @property
    def takes_document(self) -> bool:
        """Whether this operation has a Recipient parameter."""
        return self.action.lower() in {action.lower() for action in RECIPIENT_ACTIONS}

    def is_among(self, patterns: Patterns) -> bool:
        """Whether the action is what Action or NotAction is about; case does not matter, `*` and `?` do."""
        name = self.action.lower()
        return any(glob_matches(pattern.lower(), name) for pattern in patterns.values) is not patterns.negated

    def look_up(self, key: str) -> Lookup:
        """The request's values for a condition key."""
        if is_attestation_key(key):
            return self._attested(key)
        name = key.lower()
        if name in self.context:
            return Lookup(self.context[name])
        found = _of_caller(name, self.caller)
        if found is not None:
            return Lookup((found,))
        return Lookup(None, f"the request's value is not known here{_meant(key)}")

    def _attested(self, key: str) -> Lookup:
        register = register_of(key)
        if register is None and ":nitrotpmpcr" in key.lower():
            return Lookup((), "it is for NitroTPM, and no enclave's request has it")
        if register is None:
            return Lookup((), "KMS has no such key; there are ImageSha384 and PCR0 to PCR31")
        if self.registers is None:
            return Lookup((), "there is no attestation document")
        if not self.takes_document:
            return Lookup((), f"{self.action} takes no attestation document")
        if register not in self.registers:
            return Lookup((), f"the document has no PCR{register}: it holds locked registers only")
        value = self.registers[register]
        return Lookup(None, "any value") if value is None else Lookup((value.hex(),))


@lru_cache(maxsize=4096)
def _meant(key: str) -> str:
    """For a name that is nearly an attestation key's."""
    prefix, _, register = key.rpartition(":")
    near = get_close_matches(prefix[:60].lower(), [ATTESTATION_PREFIX], cutoff=0.85)
    return f" (did you mean kms:RecipientAttestation:{register[:20]}?)" if near else ""


def _of_caller(name: str, caller: Caller | None) -> str | None:
    """Keys that follow from who calls. A session's ARN leaves out the path of its role, so it does not give its ARN."""
    if caller is None or caller.account is None:
        return None
    if name in ("aws:principalaccount", "kms:calleraccount"):
        return caller.account
    if name == "aws:principalarn" and caller.kind in (CallerKind.USER, CallerKind.ROLE):
        return caller.text
    return None
