"""The pipeline over a real Redis: every record gets one decision and is counted once, whatever is delivered again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from routing_parts import HASH, Crashed, check_accounts, no_scrub

from agents.routing.bounds import DecodeLimits
from agents.routing.classify import RoutingRules
from agents.routing.counters import Counters, RouteReport
from agents.routing.dedup import ClaimResult, Claims, ClaimsUnavailable
from agents.routing.identity import EventIdentity
from agents.routing.message import InboundMessage
from agents.routing.pipeline import OnOutage, Pipeline
from agents.routing.publish import OutRecord


class Sink:
    """Remembers what was published; fails once if told so, after half of a batch."""

    max_record_bytes = 10_000

    def __init__(self) -> None:
        self.records: list[OutRecord] = []
        self.crash_next = False

    async def publish(self, records: Iterable[OutRecord]) -> None:
        out = list(records)
        if self.crash_next:
            self.crash_next = False
            self.records += out[: len(out) // 2]
            raise Crashed
        self.records += out

    def events(self) -> list[dict[str, Any]]:
        return [orjson.loads(record.value) for record in self.records if record.topic != "audit-dead-letters"]


class Watched:
    """Claims that remember who went on with which event."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self.owners: dict[EventIdentity, set[str]] = defaultdict(set)

    async def claim(self, batch: Sequence[tuple[EventIdentity, str]], ttl_s: int | None = None) -> list[ClaimResult]:
        results = await self._claims.claim(batch, ttl_s)
        for (identity, owner), result in zip(batch, results, strict=True):
            if result is not ClaimResult.DUPLICATE:
                self.owners[identity].add(owner)
        return results


def pipeline(claims: Any, sink: Sink, scrub: Callable[[Any], dict[str, int]] = no_scrub, **options: Any) -> Pipeline:
    return Pipeline(RoutingRules(HASH), DecodeLimits(), scrub, claims, sink, Counters(), **options)


def inbound(offset: int, value: bytes | None) -> InboundMessage:
    return InboundMessage("in", offset % 3, offset, value)


KINDS: dict[str, dict[str, Any]] = {
    "violation": {"constitutional_hash": HASH, "violations": ["v"]},
    "evaluation": {"event_type": "policy_evaluation"},
    "trigger": {"compliance_score": 0.1},
    "feedback": {"source": "human_review"},
    "trail": {},
    "routine": {"status": "success", "compliance_score": 1.0},
    "wrong": {"compliance_score": "high"},
}
EVENT = st.builds(
    lambda kind, event_id, note: KINDS[kind] | {"kind": kind, "note": note, "event_id": event_id},
    st.sampled_from(sorted(KINDS)),
    st.sampled_from([None, "a", "b", "c", "d"]),
    st.integers(0, 2),
)
VALUE = st.one_of(
    EVENT.map(orjson.dumps),
    st.lists(EVENT, max_size=6).map(orjson.dumps),
    st.lists(EVENT, min_size=2, max_size=4).map(lambda events: b"\n".join(map(orjson.dumps, events))),
    st.sampled_from([b"{", b"", b"[1]"]),
)
OFFSETS = st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True)
STEPS = st.lists(st.tuples(OFFSETS, st.booleans(), st.booleans()), max_size=8)
"""Which messages a batch holds (so also redeliveries), which of two workers has it, whether it crashes publishing."""

numbers = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(VALUE, min_size=12, max_size=12), steps=STEPS)
def test_each_event_has_one_decision_and_one_owner(redis_url: str, values: list[bytes], steps: Any) -> None:
    messages = [inbound(offset, value) for offset, value in enumerate(values)]

    async def run() -> None:
        async with Redis.from_url(redis_url) as redis:
            claims = Watched(Claims(redis, prefix=f"accounting-{id(values)}-{next(numbers)}"))
            sinks = (Sink(), Sink())
            workers = [pipeline(claims, sink) for sink in sinks]
            delivered: set[int] = set()
            for offsets, which, crash in [*steps, (list(range(12)), False, False)]:
                sinks[which].crash_next = crash
                batch = [messages[offset] for offset in offsets]
                before = workers[which].counters.snapshot()
                try:
                    report = await workers[which].route(batch)
                except Crashed:
                    assert workers[which].counters.snapshot() == before, "an unacknowledged batch was counted"
                else:
                    delivered.update(offsets)
                    assert report.unaccounted() == 0
                    assert report.messages == len(batch)
                sinks[which].crash_next = False
                check_accounts(workers[which])
            assert delivered == set(range(12))
            self_check(claims, [*sinks[0].events(), *sinks[1].events()])

    asyncio.run(run())


def self_check(claims: Watched, published: list[dict[str, Any]]) -> None:
    for identity, owners in claims.owners.items():
        assert len(owners) == 1, f"two tellings of {identity} were routed"
    found = {EventIdentity(**event["routing_metadata"]["identity"]) for event in published}
    assert found == set(claims.owners), "what was claimed and what came out differ"
    assert not {event["kind"] for event in published} & {"routine", "wrong"}


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def claims(redis: Redis, unique: Callable[[str], str]) -> Claims:
    return Claims(redis, prefix=unique("pipeline"))


async def test_a_reused_id_does_not_hide_a_violation(claims: Claims) -> None:
    sink = Sink()
    pipe = pipeline(claims, sink)
    harmless = {"event_id": "x", "status": "started"}
    harmful = {"event_id": "x", "constitutional_hash": HASH, "violations": ["v"]}
    await pipe.route([inbound(0, orjson.dumps([harmless, harmful, harmful]))])
    snapshot = check_accounts(pipe)
    assert (snapshot["routed"], snapshot["duplicate"], snapshot["id_conflict"]) == (2, 1, 1)
    assert [record.topic for record in sink.records] == ["audit-trail-events", "constitutional-violations"]


async def test_decisions_are_the_same_for_every_worker_and_batching(redis: Redis, unique: Callable[[str], str]) -> None:
    events = [{"event_id": f"e{number}", "event_type": "policy_evaluation"} for number in range(500)]
    kept = []
    for size in (1, 7, 500):
        sink = Sink()
        pipe = pipeline(Claims(redis, prefix=unique(f"size-{size}")), sink)
        for at in range(0, 500, size):
            await pipe.route([inbound(at, orjson.dumps(events[at : at + size]))])
        kept.append({event["event_id"] for event in sink.events()})
        assert check_accounts(pipe)["sampled_out"] == 500 - len(kept[-1])
    assert kept[0] == kept[1] == kept[2]
    assert 60 < len(kept[0]) < 140


async def test_a_trace_is_kept_or_dropped_whole(claims: Claims) -> None:
    sink = Sink()
    draw = random.Random(7)
    traces = [f"{draw.getrandbits(128):032x}" for _ in range(100)]
    events = [
        {"event_id": f"{t}-{n}", "trace_id": t, "event_type": "policy_evaluation"} for t in traces for n in range(3)
    ]
    await pipeline(claims, sink).route([inbound(0, orjson.dumps(events))])
    count: dict[str, int] = defaultdict(int)
    for event in sink.events():
        count[event["trace_id"]] += 1
    assert set(count.values()) == {3}
    assert 5 < len(count) < 40


async def test_only_what_leaves_is_scrubbed_and_all_of_it(claims: Claims) -> None:
    sink = Sink()

    def scrub(event: dict[str, Any]) -> dict[str, int]:
        event["note"] = "[REDACTED]"
        return {"name": 1}

    pipe = pipeline(claims, sink, scrub)
    events = [kind | {"note": "Ada Lovelace", "event_id": name} for name, kind in KINDS.items() if name != "evaluation"]
    await pipe.route([inbound(0, orjson.dumps(events))])
    assert not any(b"Lovelace" in record.value for record in sink.records)
    assert check_accounts(pipe)["scrubbed"] == {"name": len(events) - 1}, "the routine event was dropped unscrubbed"


async def test_a_scrubber_that_fails_lets_nothing_out(claims: Claims) -> None:
    sink = Sink()

    def scrub(event: dict[str, Any]) -> dict[str, int]:
        raise RuntimeError("Ada Lovelace")

    pipe = pipeline(claims, sink, scrub)
    await pipe.route([inbound(0, orjson.dumps([{"note": "Ada Lovelace"}, KINDS["wrong"]]))])
    assert check_accounts(pipe)["by_reason"] == {"scrub_failed": 1, "invalid_score": 1}
    assert [record.value for record in sink.records] == [b"", b""]
    assert not any(b"Lovelace" in value for record in sink.records for _, value in record.headers)


async def test_a_record_that_grew_too_large_is_a_dead_letter_without_its_value(claims: Claims) -> None:
    sink = Sink()
    pipe = pipeline(claims, sink)
    await pipe.route([inbound(0, orjson.dumps([{"event_id": "big", "x": "y" * 10_000}, {"event_id": "small"}]))])
    assert check_accounts(pipe)["by_reason"] == {"record_too_large": 1}
    dead = next(record for record in sink.records if record.topic == "audit-dead-letters")
    headers = dict(dead.headers)
    assert dead.value == b""
    assert headers["flywheel-owner"] == b"in:0:0:0"
    assert headers["flywheel-value-omitted"].endswith(b"bytes")


class Flaky:
    """Claims that are unavailable `times` times."""

    def __init__(self, claims: Claims, times: int) -> None:
        self._claims = claims
        self.times = times

    async def claim(self, batch: Sequence[tuple[EventIdentity, str]], ttl_s: int | None = None) -> list[ClaimResult]:
        if self.times > 0:
            self.times -= 1
            raise ClaimsUnavailable("away")
        return await self._claims.claim(batch, ttl_s)


@pytest.mark.parametrize(("on_outage", "unclaimed", "retries"), [("wait", 0, 3), ("pass", 1, 1)])
async def test_an_outage_of_the_claims(claims: Claims, on_outage: OnOutage, unclaimed: int, retries: int) -> None:
    sink = Sink()
    pipe = pipeline(Flaky(claims, 3), sink, on_outage=on_outage)
    report = await asyncio.wait_for(pipe.route([inbound(0, b'{"event_id": "x"}')]), 20)
    assert (report.unclaimed, report.claim_retries, len(sink.records)) == (unclaimed, retries, 1)


async def test_rules_change_between_batches_and_the_observer_is_told(claims: Claims) -> None:
    class Observer:
        def __init__(self) -> None:
            self.reports: list[RouteReport] = []

        def on_batch(self, report: RouteReport) -> None:
            self.reports.append(report)

    observer, sink = Observer(), Sink()
    pipe = Pipeline(RoutingRules(HASH), DecodeLimits(), no_scrub, claims, sink, Counters(observer), clock=lambda: 0.0)
    await pipe.route([inbound(0, b'{"event_id": "a", "compliance_score": 0.7}')])
    pipe.rules = RoutingRules("new-hash", trigger_threshold=0.5)
    await pipe.route([inbound(3, b'{"event_id": "b", "compliance_score": 0.7}')])
    first, second = sink.events()
    assert (first["event_classification"], first["constitutional_hash"]) == ("model_optimization_trigger", HASH)
    assert (second["event_classification"], second["constitutional_hash"]) == ("audit_trail", "new-hash")
    assert [report.records_in for report in observer.reports] == [1, 1]
    assert first["processing_timestamp"] == "1970-01-01T00:00:00.000000Z"
