"""KMS key policies and attestation: would a policy allow an enclave, and what else would it allow?

`parse_policy` reads a policy, `evaluate` judges it for a document's registers. Both are pure: use them in the tests
of your own project. What they know of IAM, and from where, is said in each file.
"""

from __future__ import annotations

from enclavedbg.nsm.keypolicy.conditions import ConditionResult
from enclavedbg.nsm.keypolicy.evaluate import Outcome, PolicyResult, evaluate
from enclavedbg.nsm.keypolicy.findings import Finding, FindingKind
from enclavedbg.nsm.keypolicy.parse import Condition, Effect, KeyPolicy, Statement, parse_policy
from enclavedbg.nsm.keypolicy.request import RECIPIENT_ACTIONS
from enclavedbg.nsm.keypolicy.statements import StatementResult
from enclavedbg.nsm.keypolicy.strictjson import PolicyError
from enclavedbg.nsm.keypolicy.truth import Truth

__all__ = [
    "RECIPIENT_ACTIONS",
    "Condition",
    "ConditionResult",
    "Effect",
    "Finding",
    "FindingKind",
    "KeyPolicy",
    "Outcome",
    "PolicyError",
    "PolicyResult",
    "Statement",
    "StatementResult",
    "Truth",
    "evaluate",
    "parse_policy",
]
