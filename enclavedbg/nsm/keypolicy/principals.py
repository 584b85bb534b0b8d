"""Who calls KMS, and whether a statement's Principal or NotPrincipal is about that caller.

Sources: IAM User Guide, "AWS JSON policy elements: Principal" (an account is named by its root ARN or its number,
and both mean more than its root user; names have no wildcards) and "... NotPrincipal"; KMS Developer Guide,
"Default key policy": an Allow for an account gives its users and roles nothing by itself, it lets IAM policies
of the account allow. A Deny for an account denies everybody in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache

from enclavedbg.nsm.keypolicy.parse import Effect, PrincipalKind, Principals
from enclavedbg.nsm.keypolicy.strictjson import PolicyError, shown
from enclavedbg.nsm.keypolicy.truth import Truth, any_of

_ARN = re.compile(
    r"arn:aws[a-z-]*:(?:"
    r"iam::(?P<account>[0-9]{12}):(?:(?P<root>root)|user/(?:.*/)?(?P<user>[^/*?]+)|role/(?:.*/)?(?P<role>[^/*?]+))"
    r"|sts::(?P<account2>[0-9]{12}):(?:assumed-role/(?P<of>[^/*?]+)/[^/*?]+|federated-user/(?P<federated>[^/*?]+)))"
)
_SERVICE = re.compile(r"[a-z0-9.-]+\.amazonaws\.com(\.cn)?")


class CallerKind(Enum):
    """What a caller is, for IAM."""

    ROOT = auto()
    USER = auto()
    ROLE = auto()
    SESSION = auto()
    FEDERATED_USER = auto()
    SERVICE = auto()
    PROVIDER = auto()
    ANYBODY = auto()


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal by its ARN, account number or service name. `name` is the role's or user's, without its path.

    PROVIDER is whoever comes by an identity provider. ANYBODY is a caller of whom nothing is known: no statement
    but one for everybody is about it.
    """

    text: str
    kind: CallerKind
    account: str | None = None
    name: str | None = None


ANYBODY = Caller("*", CallerKind.ANYBODY)


@dataclass(frozen=True, slots=True)
class PrincipalMatch:
    """Whether a statement is about the caller, and why it is not or may not be.

    `account` is set when an Allow names the caller's account: then IAM policies there decide.
    """

    truth: Truth
    reason: str = ""
    account: str | None = None


def parse_caller(text: str) -> Caller:
    """A caller from an ARN of IAM or STS, an account number or a service's name; raises PolicyError."""
    caller = _identity(text)
    if caller is None and _SERVICE.fullmatch(text):
        return Caller(text, CallerKind.SERVICE)
    if caller is None:
        raise PolicyError(f"{shown(text)} is no principal; expected e.g. arn:aws:iam::111122223333:role/NAME")
    return caller


@lru_cache(maxsize=4096)
def _identity(text: str) -> Caller | None:
    if re.fullmatch("[0-9]{12}", text):
        return Caller(text, CallerKind.ROOT, text)
    match = _ARN.fullmatch(text)
    if match is None:
        return None
    account = match["account"] or match["account2"]
    for group, kind in (
        ("root", CallerKind.ROOT),
        ("user", CallerKind.USER),
        ("role", CallerKind.ROLE),
        ("of", CallerKind.SESSION),
        ("federated", CallerKind.FEDERATED_USER),
    ):
        if match[group]:
            return Caller(text, kind, account, match[group])
    return None


def callers_named(principals: Principals) -> tuple[Caller, ...]:
    """A caller for each that a statement names; for everybody, and for all but some, ANYBODY."""
    if principals.negated:
        return (ANYBODY,)
    callers = []
    for kind, name in principals.named:
        if kind is PrincipalKind.AWS:
            callers.append(ANYBODY if name == "*" else _identity(name))
        else:
            callers.append(Caller(name, CallerKind.SERVICE if kind is PrincipalKind.SERVICE else CallerKind.PROVIDER))
    return tuple(caller for caller in callers if caller is not None)


def account_named(kind: PrincipalKind, name: str) -> str | None:
    """The account, when a principal in a policy is one."""
    identity = _identity(name) if kind is PrincipalKind.AWS else None
    return identity.account if identity is not None and identity.kind is CallerKind.ROOT else None


def match_principals(principals: Principals, caller: Caller | None, effect: Effect) -> PrincipalMatch:
    """Whether a statement is about the caller.

    None is a caller who is not known. An Allow is taken to be about such a caller when it names roles, users or
    everybody; of a Deny that is known only when it is for everybody.
    """
    if principals.negated:
        return _match_others(principals, caller, effect)
    if caller is None:
        return _match_unknown(principals, effect)
    # First the quick look: for its findings an Allow is tried with each of hundreds that it names.
    if (PrincipalKind.AWS, caller.text) in principals.named:
        return PrincipalMatch(Truth.YES)
    truth = any_of(_is(kind, name, caller) for kind, name in principals.named)
    if truth is Truth.YES:
        return PrincipalMatch(truth)
    if caller.account in {account_named(kind, name) for kind, name in principals.named} - {None}:
        return _by_account(str(caller.account), effect)
    return PrincipalMatch(truth, _why_not(principals, truth))


def _is(kind: PrincipalKind, name: str, caller: Caller) -> Truth:
    """Whether a name in a policy is the caller, apart from being its account's."""
    if kind is PrincipalKind.SERVICE:
        return Truth.of(name == caller.text)
    if kind is PrincipalKind.FEDERATED:
        if caller.kind in (CallerKind.ROLE, CallerKind.SESSION):
            return Truth.UNKNOWN
        return Truth.of(caller.kind is CallerKind.PROVIDER and name == caller.text)
    if name in ("*", caller.text):
        return Truth.YES
    named = _identity(name)
    if named is None or named.account != caller.account:
        return Truth.NO
    match named.kind, caller.kind:
        case (CallerKind.ROOT, CallerKind.ROOT):
            return Truth.YES
        case (CallerKind.ROLE, CallerKind.SESSION):
            # A session's ARN leaves out the role's path; names are unique in an account whatever the path.
            return Truth.of(named.name == caller.name)
        case (CallerKind.SESSION, CallerKind.ROLE):
            return Truth.UNKNOWN if named.name == caller.name else Truth.NO
        case (CallerKind.USER, CallerKind.FEDERATED_USER):
            return Truth.UNKNOWN
    return Truth.NO


def _by_account(account: str, effect: Effect) -> PrincipalMatch:
    if effect is Effect.DENY:
        return PrincipalMatch(Truth.YES)
    reason = f"the IAM policies of account {account} decide, which are not seen here"
    return PrincipalMatch(Truth.UNKNOWN, reason, account)


def _match_unknown(principals: Principals, effect: Effect) -> PrincipalMatch:
    if (PrincipalKind.AWS, "*") in principals.named:
        return PrincipalMatch(Truth.YES)
    kinds = {kind for kind, _ in principals.named}
    if kinds <= {PrincipalKind.SERVICE}:
        who = f"it is for {_names(principals)}; an enclave calls with the credentials of a role or user"
        return PrincipalMatch(Truth.NO, who)
    if effect is Effect.DENY or PrincipalKind.AWS not in kinds:
        return PrincipalMatch(Truth.UNKNOWN, f"it is about {_names(principals)}, and who calls is not known")
    identities = [_identity(name) for kind, name in principals.named if kind is PrincipalKind.AWS]
    if any(identity is not None and identity.kind is not CallerKind.ROOT for identity in identities):
        return PrincipalMatch(Truth.YES)
    account = next((identity.account for identity in identities if identity is not None), None)
    if account is not None:
        return _by_account(account, effect)
    return PrincipalMatch(Truth.NO, f"it is about {_names(principals)}, which is nobody's ARN")


def _match_others(principals: Principals, caller: Caller | None, effect: Effect) -> PrincipalMatch:
    """NotPrincipal. AWS wants a caller and its account listed, and says that it might deny if only one is."""
    if (PrincipalKind.AWS, "*") in principals.named:
        return PrincipalMatch(Truth.NO, "it leaves out everybody")
    if caller is None:
        reason = f"it leaves out {_names(principals)}, and who calls is not known"
        return PrincipalMatch(Truth.UNKNOWN, reason)
    listed = any_of(_is(kind, name, caller) for kind, name in principals.named)
    account = caller.account in {account_named(kind, name) for kind, name in principals.named} - {None}
    if listed is Truth.YES and (account or caller.account is None):
        return PrincipalMatch(Truth.NO, f"it leaves out {_names(principals)}")
    if effect is Effect.ALLOW:
        return PrincipalMatch(Truth.UNKNOWN, "AWS does not support NotPrincipal with Allow")
    if listed is Truth.NO and not account:
        return PrincipalMatch(Truth.YES)
    reason = "it leaves out the caller or its account but not both, and AWS says that it might deny then"
    return PrincipalMatch(Truth.UNKNOWN, reason)


def _why_not(principals: Principals, truth: Truth) -> str:
    about = f"it is about {_names(principals)}"
    return about if truth is Truth.NO else f"{about}, which may or may not be the caller"


def _names(principals: Principals) -> str:
    names = [name for _, name in principals.named]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return (", ".join(names[:2]) + more) if names else "nobody"
