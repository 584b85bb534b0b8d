"""A secure module with a clock and a root of its own, for tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.document import DecodedDocument, MapEncoding
from enclavedbg.nsm.events import NsmEvent
from enclavedbg.nsm.module import SecureModule
from enclavedbg.nsm.roots import Root
from enclavedbg.nsm.verify import verify

MODULE_ID = "i-1234567890abcdef0-enc0123456789abcdef"
PCR0, PCR1, PCR2 = b"\x10" * 48, b"\x11" * 48, b"\x12" * 48
START = datetime(2026, 3, 4, 5, 6, 7, 890_123, tzinfo=UTC)


class SetClock:
    """A clock that stands where it is put."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def advance(self, **step: float) -> None:
        self.at += timedelta(**step)


def entropy(seed: int = 1) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


@cache
def shared_authority() -> Authority:
    """One root and chain for all tests that do not look at the making of them."""
    return Authority(None, now=lambda: START, random_bytes=entropy())


def believed(document: bytes, *, root: bytes, **expected: Any) -> DecodedDocument:
    """A document that holds under a root; raises DocumentError with the first failed check otherwise."""
    return verify(document, roots=[Root.of(root)], **expected).document


def make_module(
    *,
    authority: Authority | None = None,
    now: Callable[[], datetime] = lambda: START,
    debug_mode: bool = False,
    emit: Callable[[NsmEvent], object] = lambda event: None,
    measurements: dict[int, bytes] | None = None,
    map_encoding: MapEncoding = MapEncoding.DEFINITE,
) -> SecureModule:
    return SecureModule(
        authority=authority or shared_authority(),
        measurements={0: PCR0, 1: PCR1, 2: PCR2} if measurements is None else measurements,
        module_id=MODULE_ID,
        now=now,
        random_bytes=entropy(),
        debug_mode=debug_mode,
        emit=emit,
        map_encoding=map_encoding,
    )
