"""The genuine document that forgeries start from, and the tools to take it apart and put it together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec

from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.certificates import LEAF, LEVELS, Level, Link, issue, private_key, random_serial
from enclavedbg.nsm.document import DIGEST, PROTECTED, envelope, timestamp_of

Spoil = Callable[[Level], Level]
"""Makes of a kind of certificate another one."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the genuine document says, and what a verifier is to expect: its PCRs, nonce, user data, public key."""

    module_id: str
    at: datetime
    pcrs: Mapping[int, bytes]
    nonce: bytes
    user_data: bytes | None = None
    public_key: bytes | None = None


class Original:
    """A document with its chain under the development root, from which others are made.

    `random_bytes` gives the keys of the certificates below the root.
    """

    def __init__(self, authority: Authority, claims: Claims, random_bytes: Callable[[int], bytes]) -> None:
        self.claims = claims
        self.root = authority.root_link()
        self._random_bytes = random_bytes

    @cached_property
    def chain(self) -> list[Link]:
        """Root first, leaf last, as they should be."""
        return self.make_chain()

    def make_chain(
        self, *, at: datetime | None = None, root: Link | None = None, spoil: Mapping[str, Spoil] | None = None
    ) -> list[Link]:
        """A chain issued at a time, by default the document's; `spoil` changes kinds of certificates by their name."""
        links = [root or self.root]
        for level in LEVELS[1:]:
            spoiled = spoil[level.name](level) if spoil and level.name in spoil else level
            links.append(self.issue(spoiled, issuer=links[-1], at=at))
        return links

    def issue(
        self,
        level: Level,
        *,
        issuer: Link | None,
        at: datetime | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Link:
        """One more certificate, for a key of its own unless one is given."""
        instance = self.claims.module_id.partition("-enc")[0]
        identities = {"instance": instance, LEAF.name: self.claims.module_id}
        return issue(
            level,
            issuer=issuer,
            identity=identities.get(level.name, self._random_bytes(8).hex()),
            serial=random_serial(self._random_bytes),
            now=at or self.claims.at,
            key=key or private_key(self._random_bytes),
            repeatable=self.root.repeatable,
        )

    def other_root(self) -> Link:
        """A root of the same name with another key."""
        return self.issue(LEVELS[0], issuer=None)

    # ---- documents ----

    def fields(self, chain: list[Link] | None = None, **changes: Any) -> dict[str, Any]:
        """The payload's fields in the real order; `changes` replaces some by name."""
        links = chain or self.chain
        claims = self.claims
        return {
            "module_id": claims.module_id,
            "digest": DIGEST,
            "timestamp": timestamp_of(claims.at),
            "pcrs": dict(claims.pcrs),
            "certificate": links[-1].der,
            "cabundle": [link.der for link in links[:-1]],
            "public_key": claims.public_key,
            "user_data": claims.user_data,
            "nonce": claims.nonce,
        } | changes

    def sign(self, payload: bytes, *, chain: list[Link] | None = None, protected: bytes = PROTECTED) -> bytes:
        """A document over any payload, signed by the leaf."""
        return envelope(payload, (chain or self.chain)[-1].sign, protected=protected)

    def document(self, chain: list[Link] | None = None, **changes: Any) -> bytes:
        """The genuine document, or one with another chain or other fields, correctly signed."""
        return self.sign(cbor2.dumps(self.fields(chain, **changes)), chain=chain)

    def without(self, name: str) -> bytes:
        """The document without a field, correctly signed."""
        fields = self.fields()
        del fields[name]
        return self.sign(cbor2.dumps(fields))


def changed(**fields: Any) -> Spoil:
    """A kind of certificate with other properties."""
    return lambda level: replace(level, **fields)
