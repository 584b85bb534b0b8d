"""The secure module itself: takes a request's bytes, gives the answer's bytes."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from enclavedbg.errors import NsmError
from enclavedbg.nsm.authority import Authority
from enclavedbg.nsm.document import FIELD_LIMIT, MapEncoding, sign_document
from enclavedbg.nsm.events import NsmEvent, NsmExchange, NsmRequest, PcrChange
from enclavedbg.nsm.faults import NO_EFFECTS, Effects, FaultTable
from enclavedbg.nsm.pcr import DEBUG_ZEROED, PCR_COUNT, PcrBank, PcrState
from enclavedbg.nsm.wire import (
    Attestation,
    DescribeNSM,
    DescribePCR,
    ErrorAnswer,
    ErrorCode,
    ExtendedPcr,
    ExtendPCR,
    GetRandom,
    Locked,
    LockPCR,
    LockPCRs,
    ModuleDescription,
    NsmRequestError,
    PcrDescription,
    RandomBytes,
    Request,
    Response,
    SignedDocument,
    decode_request,
    encode_response,
)

log = logging.getLogger(__name__)

VERSION = (1, 0, 0)

RANDOM_SIZE = 256
"""Bytes in an answer to GetRandom, as real devices give; Linux's driver misreads less than 24."""

_MODULE_ID = re.compile(r"[A-Za-z0-9._-]{1,45}")
"""45 characters leave room for our domain in a certificate's common name, which ends at 64."""


def make_instance_id(random_bytes: Callable[[int], bytes]) -> str:
    """An instance id of the real shape, made up: `i-<17 hex>`."""
    return f"i-{random_bytes(9).hex()[:17]}"


def make_module_id(random_bytes: Callable[[int], bytes], *, instance_id: str | None = None) -> str:
    """A module id of the real shape: `i-<17 hex>-enc<16 hex>`, for a made-up instance unless one is given."""
    return f"{instance_id or make_instance_id(random_bytes)}-enc{random_bytes(8).hex()}"


@dataclass(frozen=True, slots=True)
class ModuleState:
    """What a snapshot keeps of the module; keys and certificates are made anew."""

    bank: PcrState


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request that was received and not answered yet.

    `refusal` is why it did not decode, when `request` is None; `effects` is what a fault does to it.
    """

    request: Request | None
    refusal: NsmRequestError | None
    size: int
    effects: Effects = NO_EFFECTS


class SecureModule:
    """A Nitro Secure Module. Safe for several threads; the guest's requests come on the vCPU thread.

    `measurements` gives initial PCR values by index (bytes of 48, already extended; see `pcr.extended`). With
    `debug_mode`, those of the image (0, 1, 2, 8) are zero, as in a debug-mode enclave. `now` gives aware
    datetimes, `random_bytes` what GetRandom answers, `timer_ns` any clock for durations. `emit` is called with
    each NsmEvent, outside the module's lock. `faults` is what it is to do wrong.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        measurements: Mapping[int, bytes],
        module_id: str,
        now: Callable[[], datetime],
        random_bytes: Callable[[int], bytes],
        debug_mode: bool = False,
        emit: Callable[[NsmEvent], object] = lambda event: None,
        timer_ns: Callable[[], int] = time.monotonic_ns,
        field_limit: int = FIELD_LIMIT,
        map_encoding: MapEncoding = MapEncoding.INDEFINITE,
    ) -> None:
        if not _MODULE_ID.fullmatch(module_id):
            raise NsmError(f"module id {module_id!r}: expected 1 to 45 letters, digits, dots, dashes or underscores")
        self.authority = authority
        self.module_id = module_id
        self.debug_mode = debug_mode
        self._initial = {i: v for i, v in measurements.items() if not (debug_mode and i in DEBUG_ZEROED)}
        self._now = now
        self._random_bytes = random_bytes
        self._emit = emit
        self._timer_ns = timer_ns
        self._field_limit = field_limit
        self._map_encoding = map_encoding
        self.faults = FaultTable()
        self._lock = threading.RLock()
        self.bank = PcrBank(self._initial)

    def save(self) -> ModuleState:
        with self._lock:
            return ModuleState(self.bank.save())

    def load(self, state: ModuleState) -> None:
        with self._lock:
            self.bank.load(state.bank)

    def prepare(self) -> None:
        """Make the authority ready, so that the first document costs the guest no more than the others.

        Takes some hundredths of a second, most of it without the interpreter; call it in a thread at power-on.
        Raises NsmError when the authority cannot be had, as `attest` would then.
        """
        self.authority.credentials(self.module_id)

    def handle(self, request: bytes, response_capacity: int) -> bytes | None:
        """Receive a request and answer it at once: see `answer`. A fault's delay is not waited for."""
        return self.answer(self.receive(request), response_capacity)

    def receive(self, request: bytes) -> Incoming:
        """Take a request, of which nothing is done yet. Nothing in it makes this raise."""
        decoded, refusal = None, None
        try:
            decoded = decode_request(request)
        except NsmRequestError as error:
            refusal = error
        effects = self.faults.effects(decoded)
        self._emit(NsmRequest(decoded, len(request), effects.text))
        return Incoming(decoded, refusal, len(request), effects)

    def answer(self, incoming: Incoming, response_capacity: int) -> bytes | None:
        """Do what a request asks; the answer has at most `response_capacity` bytes, and is None when it is dropped.

        An answer that does not fit becomes BufferTooSmall, with the request's effect done, and no bytes at all when
        not even that fits.
        """
        started = self._timer_ns()
        changes: list[PcrChange] = []
        effects = incoming.effects
        response: Response | None = None
        answer: bytes | None = None
        reason = "dropped"
        if not effects.drop:
            response, answer, reason = self._fulfil(incoming, response_capacity, changes)
            answer = answer[: effects.cut]
        for change in changes:
            self._emit(change)
        took, size = self._timer_ns() - started, len(answer or b"")
        self._emit(NsmExchange(incoming.request, response, reason, incoming.size, size, took, effects.text))
        return answer

    def _fulfil(
        self, incoming: Incoming, response_capacity: int, changes: list[PcrChange]
    ) -> tuple[Response, bytes, str]:
        """The response, its bytes, and why it is an error; what happened to registers goes to `changes`."""
        request, reason = incoming.request, ""
        try:
            if incoming.effects.error is not None:
                raise NsmRequestError(incoming.effects.error, "as the fault says")
            if request is None:
                assert incoming.refusal is not None
                raise incoming.refusal
            with self._lock:
                response = self._respond(request, changes)
            answer = encode_response(response)
            if len(answer) > response_capacity:
                raise NsmRequestError(
                    ErrorCode.BufferTooSmall,
                    f"the answer has {len(answer)} bytes and the guest's buffer {response_capacity}",
                )
        except NsmRequestError as error:
            response, reason = ErrorAnswer(error.code), str(error)
            answer = encode_response(response)
        except NsmError as error:
            log.warning("the secure module cannot answer %s: %s", request.name if request else "a request", error)
            response, reason = ErrorAnswer(ErrorCode.InternalError), str(error)
            answer = encode_response(response)
        return response, answer if len(answer) <= response_capacity else b"", reason

    def describe(self) -> ModuleDescription:
        """What DescribeNSM answers."""
        with self._lock:
            locked = tuple(self.bank.locked())
        return ModuleDescription(*VERSION, self.module_id, PCR_COUNT, locked)

    def attest(
        self, *, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """A signed document over the locked registers; raises NsmError when it cannot be made."""
        for name, value in (("user_data", user_data), ("nonce", nonce), ("public_key", public_key)):
            if value is not None and len(value) > self._field_limit:
                raise NsmRequestError(
                    ErrorCode.InputTooLarge, f"{name} has {len(value)} bytes, expected at most {self._field_limit}"
                )
        with self._lock:
            pcrs = self.bank.locked()
        return sign_document(
            self.authority.credentials(self.module_id),
            module_id=self.module_id,
            timestamp=self._now(),
            pcrs=pcrs,
            user_data=user_data,
            nonce=nonce,
            public_key=public_key,
            map_encoding=self._map_encoding,
        )

    def _respond(self, request: Request, changes: list[PcrChange]) -> Response:
        """Fulfil a request; what happened to registers goes to `changes`."""
        match request:
            case DescribeNSM():
                return self.describe()
            case GetRandom():
                return RandomBytes(self._random_bytes(RANDOM_SIZE))
            case DescribePCR(index):
                return PcrDescription(*self.bank.describe(index))
            case ExtendPCR(index, data):
                value = self.bank.extend(index, data)
                changes.append(PcrChange(index, "extended", value))
                return ExtendedPcr(value)
            case LockPCR(index):
                self.bank.lock(index)
                changes.append(PcrChange(index, "locked", self.bank.describe(index)[1]))
                return Locked(request.name)
            case LockPCRs(count):
                for index in self.bank.lock_range(count):
                    changes.append(PcrChange(index, "locked", self.bank.describe(index)[1]))
                return Locked(request.name)
            case Attestation(user_data, nonce, public_key):
                document = self.attest(user_data=user_data, nonce=nonce, public_key=public_key)
                return SignedDocument(document)
