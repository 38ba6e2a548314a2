"""Decisions about inference, kept in Redis for a while: the same facts under the same revisions, the same answer.

Redis is a cache that anybody on its network may write to. So each value carries a message authentication code (keyed
BLAKE2b, RFC 7693, section 2.9) over its name and content: what the gate did not put there is not taken.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from models.decision import GateDecision
from policies.gate.answers import prepare_input
from policies.gate.breaker import CircuitBreaker
from policies.gate.bundle import PolicyBundle
from policies.gate.interface import POLICY_UNAVAILABLE, undecided
from policies.gate.live import CACHED_ACTIONS, BundleUnavailable, LiveEngine

PREFIX = "flywheel:gate:"
MIN_KEY_BYTES = 16
_MAC_BYTES = 16
_TIMEOUT_S = 0.1

logger = logging.getLogger(__name__)


class Unrecorded(RuntimeError):
    """A decision could not be recorded now; it has no effect."""


class Record(Protocol):
    """Has the audit engine hold a decision."""

    async def __call__(self, facts: Mapping[str, Any], decision: GateDecision) -> None:
        """Return once it is recorded; raises `Unrecorded`."""
        ...


class Store(Protocol):
    """The two commands of an asyncio Redis client that the cache uses."""

    def get(self, name: Any, /) -> Any: ...

    def set(self, name: Any, value: Any, /, *, ex: Any) -> Any: ...


class CachedEngine:
    """A `PolicyEngine` that asks Redis before the policies, about `CACHED_ACTIONS` only.

    A name is the digest of action, facts and both revisions, so a changed policy or quota is never answered from
    before. A decision from the cache keeps its `decision_id`: it was taken once. Redis that is away, slow or full of
    something else costs a question to the policies, never a decision; after three failures it is left alone for five
    seconds. Only conclusive decisions are kept, and only once `record` has them: one that is answered from here stands
    in the audit log.

    `unavailable` is what Redis' client raises when it cannot answer.
    """

    def __init__(
        self,
        engine: LiveEngine,
        store: Store,
        key: bytes,
        record: Record,
        *,
        ttl_s: int = 300,
        unavailable: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        if len(key) < MIN_KEY_BYTES:
            raise ValueError(f"the decision cache's key has {len(key)} bytes; give at least {MIN_KEY_BYTES}")
        self._engine = engine
        self._store = store
        self._record = record
        # BLAKE2b takes keys of up to 64 bytes.
        self._key = hashlib.sha256(key).digest()
        self._ttl_s = ttl_s
        self._unavailable: tuple[type[Exception], ...] = (*unavailable, TimeoutError)
        self._breaker = CircuitBreaker(threshold=3, reset_seconds=5.0)
        self._counts: Counter[str] = Counter(hit=0, miss=0, forged=0, unavailable=0)

    @property
    def name(self) -> str:
        return self._engine.name

    def snapshot(self) -> dict[str, int]:
        """How often the cache had the answer, had not, held something else, or did not answer."""
        return dict(self._counts)

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        """See `PolicyEngine.decide`."""
        if action not in CACHED_ACTIONS:
            return await self._engine.decide(action, facts)
        text, unreadable = prepare_input(action, facts)
        try:
            bundle = await self._engine.present(fresh=False)
        except BundleUnavailable as error:
            return undecided(action, self.name, POLICY_UNAVAILABLE, str(error))
        # Facts that cannot be written as JSON have no name to be kept under.
        name = _name(bundle, text) if unreadable is None else None
        kept = await self._look_up(name, action, bundle) if name is not None else None
        if kept is not None:
            return kept
        decision = await self._engine.decide(action, facts)
        if not decision.conclusive:
            return decision
        try:
            await self._record(facts if unreadable is None else {}, decision)
        except Unrecorded as error:
            return undecided(action, self.name, POLICY_UNAVAILABLE, str(error))
        # The bundle may have changed since: the name must say by which one it was decided.
        if name is not None and _decided_by(decision, bundle):
            await self._keep(name, decision)
        return decision

    async def aclose(self) -> None:
        """Close the engine; the store belongs to whoever opened it."""
        await self._engine.aclose()

    async def _look_up(self, name: str, action: str, bundle: PolicyBundle) -> GateDecision | None:
        value = await self._ask(self._store.get(name)) if self._breaker.admit() else None
        if value is None:
            self._counts["miss"] += 1
            return None
        decision = self._open(name, value)
        if decision is None or decision.action != action or not _decided_by(decision, bundle):
            self._counts["forged"] += 1
            logger.warning("the decision cache holds what the gate did not put there; it is not taken")
            return None
        self._counts["hit"] += 1
        return decision

    async def _keep(self, name: str, decision: GateDecision) -> None:
        if self._breaker.admit():
            content = decision.model_dump_json().encode()
            await self._ask(self._store.set(name, self._mac(name, content) + content, ex=self._ttl_s))

    async def _ask(self, call: Any) -> Any:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await call
        except self._unavailable as error:
            self._breaker.failed()
            self._counts["unavailable"] += 1
            logger.debug("the decision cache does not answer: %s", type(error).__name__)
            return None
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return answer

    def _open(self, name: str, value: Any) -> GateDecision | None:
        if not isinstance(value, bytes):
            return None
        mac, content = value[:_MAC_BYTES], value[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(name, content)):
            return None
        try:
            return GateDecision.model_validate_json(content)
        except ValidationError:
            return None

    def _mac(self, name: str, content: bytes) -> bytes:
        return hashlib.blake2b(name.encode() + b"\0" + content, digest_size=_MAC_BYTES, key=self._key).digest()


def _name(bundle: PolicyBundle, text: str) -> str:
    whole = f"{bundle.bundle_revision}\0{bundle.data_revision}\0{text}"
    return PREFIX + hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def _decided_by(decision: GateDecision, bundle: PolicyBundle) -> bool:
    return (decision.bundle_revision, decision.data_revision) == (bundle.bundle_revision, bundle.data_revision)
