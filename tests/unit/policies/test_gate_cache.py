"""Decisions kept in Redis: the same answer to the same question, only what the gate put there, never a hurdle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from models.decision import GateDecision
from policies.gate import PolicyBundle, RegopyEngine, load_bundle
from policies.gate.cache import PREFIX, CachedEngine, Unrecorded
from policies.gate.interface import POLICY_REVISION, POLICY_UNAVAILABLE
from policies.gate.live import BundleUnavailable, LiveEngine

KEY = b"0123456789abcdef"
PERMISSIONS = {"analyst-1": {"gpu_hours_monthly": 10, "max_risk_level": "medium"}}
FACTS: dict[str, Any] = {
    "model": {"constitutional_hash": "cdd01ef066bc6cf2", "compliance_score": 0.97, "risk_level": "low"},
    "request": {"safety_validated": True},
    "content": {"violations": []},
    "user": {"id": "analyst-1", "groups": ["constitutional-ai-users"]},
    "resources": {"gpu_hours": 2, "requested_gpus": 1, "memory_gb": 16},
    "audit": {
        "enabled": True,
        "trail_enabled": True,
        "constitutional_hash": "cdd01ef066bc6cf2",
        "retention_period": 2555,
    },
}


@dataclass
class Desk:
    """A gate whose bundle, recorder and Redis a test can change."""

    bundle: PolicyBundle
    redis: Any
    recorded: list[str] = field(default_factory=list)
    asked: int = 0
    away: bool = False
    unrecorded: bool = False

    async def present(self, *, fresh: bool) -> PolicyBundle:
        del fresh
        if self.away:
            raise BundleUnavailable("The gate's data cannot be read from the store (OperationalError).")
        return self.bundle

    async def record(self, facts: Mapping[str, Any], decision: GateDecision) -> None:
        del facts
        if self.unrecorded:
            raise Unrecorded("The audit engine does not answer.")
        self.recorded.append(decision.decision_id)

    def cached(self, key: bytes = KEY) -> CachedEngine:
        engine = Counting(self, RegopyEngine(self.bundle))
        return CachedEngine(LiveEngine(engine, self.present), self.redis, key, self.record)


class Counting:
    """regopy, and how often it was asked."""

    def __init__(self, desk: Desk, engine: RegopyEngine) -> None:
        self._desk = desk
        self._engine = engine
        self.name = "regopy"
        self.swap: Callable[[PolicyBundle], None] = engine.swap

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        self._desk.asked += 1
        return await self._engine.decide(action, facts)

    async def aclose(self) -> None:
        await self._engine.aclose()


def with_user(user: Mapping[str, Any]) -> PolicyBundle:
    return load_bundle(overrides={"user_permissions": {"analyst-1": user}})


@asynccontextmanager
async def desk_at(url: str) -> AsyncIterator[Desk]:
    client = Redis.from_url(url)
    async with client:
        names = [name async for name in client.scan_iter(f"{PREFIX}*")]
        if names:
            await client.delete(*names)
        yield Desk(with_user(PERMISSIONS["analyst-1"]), client)


async def test_the_same_question_is_decided_once(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        first = await gate.decide("model_inference", FACTS)
        assert first.allow, first.reasons
        again = await gate.decide("model_inference", FACTS)
        assert again == first
        assert await desk.cached().decide("model_inference", FACTS) == first, "another worker has it too"
        assert desk.asked == 1
        assert desk.recorded == [first.decision_id]
        assert gate.snapshot() == {"hit": 1, "miss": 1, "forged": 0, "unavailable": 0}
        (name,) = [name async for name in desk.redis.scan_iter(f"{PREFIX}*")]
        assert 0 < await desk.redis.ttl(name) <= 300


async def test_a_refusal_is_kept_as_well(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        facts = FACTS | {"resources": {"gpu_hours": 11, "requested_gpus": 1, "memory_gb": 16}}
        first = await gate.decide("model_inference", facts)
        assert [reason.code for reason in first.reasons] == ["gpu_quota"]
        assert await gate.decide("model_inference", facts) == first
        assert desk.asked == 1


async def test_a_changed_quota_is_not_answered_from_before(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        assert (await gate.decide("model_inference", FACTS)).allow
        desk.bundle = with_user({"gpu_hours_monthly": 1, "max_risk_level": "medium"})
        decision = await gate.decide("model_inference", FACTS)
        assert [reason.code for reason in decision.reasons] == ["gpu_quota"]
        assert decision.data_revision == desk.bundle.data_revision
        assert desk.asked == 2


@pytest.mark.parametrize("action", ["model_fine_tuning", "teacher_export", "model_promotion", "model_rollback", "x"])
async def test_every_other_action_is_asked_anew(redis_url: str, action: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        first, second = await gate.decide(action, FACTS), await gate.decide(action, FACTS)
        assert first.decision_id != second.decision_id
        assert desk.asked == 2
        assert [name async for name in desk.redis.scan_iter(f"{PREFIX}*")] == []
        assert desk.recorded == [], "whoever asked for it records it with its cycle"


async def test_what_the_gate_did_not_put_there_is_not_taken(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        wide = FACTS | {"resources": {"gpu_hours": 11, "requested_gpus": 1, "memory_gb": 16}}
        allowed = await gate.decide("model_inference", FACTS)
        (permitted,) = [name async for name in desk.redis.scan_iter(f"{PREFIX}*")]
        refused = await gate.decide("model_inference", wide)
        (forbidden,) = [name async for name in desk.redis.scan_iter(f"{PREFIX}*") if name != permitted]
        assert allowed.allow
        assert not refused.allow
        sealed = await desk.redis.get(permitted)
        mine = allowed.model_copy(update={"decision_id": "forged"}).model_dump_json().encode()
        for value in (sealed, mine, b"\0" * 16 + mine, sealed[:16] + mine, b"", b"x"):
            await desk.redis.set(forbidden, value)
            decision = await gate.decide("model_inference", wide)
            assert not decision.allow, f"a permission was taken from {value[:40]!r}"
            assert decision.conclusive
        await desk.redis.set(forbidden, b"\0" * 16 + mine)
        before = gate.snapshot()["forged"]
        await gate.decide("model_inference", wide)
        assert gate.snapshot()["forged"] == before + 1
        # Another installation's key opens nothing.
        asked = desk.asked
        await desk.cached(key=b"another installation's key").decide("model_inference", FACTS)
        assert desk.asked == asked + 1


async def test_nothing_is_decided_that_cannot_be_recorded(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        desk.unrecorded = True
        decision = await gate.decide("model_inference", FACTS)
        assert (decision.allow, decision.conclusive) == (False, False)
        assert [reason.code for reason in decision.reasons] == [POLICY_UNAVAILABLE]
        assert [name async for name in desk.redis.scan_iter(f"{PREFIX}*")] == []
        desk.unrecorded = False
        assert (await gate.decide("model_inference", FACTS)).allow


async def test_nothing_is_decided_without_data(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        assert (await gate.decide("model_inference", FACTS)).allow
        desk.away = True
        for action in ("model_inference", "model_promotion"):
            decision = await gate.decide(action, FACTS)
            assert (decision.allow, decision.conclusive) == (False, False)
            assert decision.reasons[0].code == POLICY_UNAVAILABLE


async def test_facts_that_are_no_json_are_refused_and_not_kept(redis_url: str) -> None:
    async with desk_at(redis_url) as desk:
        gate = desk.cached()
        decision = await gate.decide("model_inference", FACTS | {"user": object()})
        assert decision.conclusive
        assert not decision.allow
        assert desk.recorded == [decision.decision_id]
        assert [name async for name in desk.redis.scan_iter(f"{PREFIX}*")] == []


class Faulty:
    """A store that fails as a Redis that is away, or answers after the time that is waited for it."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.calls = 0

    async def get(self, name: str) -> Any:
        del name
        return await self._fail()

    async def set(self, name: str, value: bytes, *, ex: int) -> Any:
        del name, value, ex
        return await self._fail()

    async def _fail(self) -> Any:
        self.calls += 1
        if self.fault == "slow":
            await asyncio.sleep(5)
        raise ConnectionRefusedError


@pytest.mark.parametrize("fault", ["away", "slow"])
async def test_a_redis_that_does_not_answer_is_no_hurdle_and_is_soon_left_alone(fault: str) -> None:
    store = Faulty(fault)
    desk = Desk(with_user(PERMISSIONS["analyst-1"]), store)
    gate = desk.cached()
    for _ in range(20):
        assert (await gate.decide("model_inference", FACTS)).allow
    assert desk.asked == 20
    assert store.calls == 3
    assert gate.snapshot()["unavailable"] == 3


async def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        Desk(with_user(PERMISSIONS["analyst-1"]), Faulty("away")).cached(key=b"0" * 15)


class Lagging:
    """An engine elsewhere that has yet to load the bundle in force."""

    name = "opa"

    def __init__(self, engine: RegopyEngine) -> None:
        self._engine = engine

    async def decide(self, action: str, facts: Mapping[str, Any]) -> GateDecision:
        return await self._engine.decide(action, facts)

    async def aclose(self) -> None: ...


async def test_what_is_decided_by_other_revisions_is_no_decision() -> None:
    old = with_user(PERMISSIONS["analyst-1"])
    desk = Desk(with_user({"gpu_hours_monthly": 1, "max_risk_level": "low"}), Faulty("away"))
    live = LiveEngine(Lagging(RegopyEngine(old)), desk.present)
    for action in ("model_inference", "model_promotion"):
        decision = await live.decide(action, FACTS)
        assert (decision.allow, decision.conclusive) == (False, False)
        assert decision.reasons[0].code == POLICY_REVISION
    desk.bundle = old
    assert (await live.decide("model_inference", FACTS)).allow
