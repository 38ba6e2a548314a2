"""Any events, duplicates, redeliveries, crashes and restarts, on any worker: each event has one decision.

The router is held, batch by batch and record by record, to the plain model in `routing_model.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from routing_model import MOST_CONTENTS, TOPICS, Decided, Distinct, Event, Model, Out, Sent, Told
from routing_parts import HASH, Crashed, MemoryClaims, MemorySink, check_accounts, pipeline, published
from routing_traffic import NO_OWNER, SPOILING, Draw, draws, inbound, place

from agents.routing.classify import RoutingRules
from agents.routing.counters import RouteReport
from agents.routing.dedup import Claims
from agents.routing.message import InboundMessage
from agents.routing.pipeline import ClaimStore, Pipeline
from agents.routing.publish import OutRecord
from models.event import Classification

STAMPED = ("event_classification", "processing_timestamp", "constitutional_hash", "acgs_version", "routing_metadata")
WORKERS = 3

# --- what happens to messages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A worker gets a batch (so also again, and what another had), and may crash after some records."""

    offsets: list[int]
    worker: int
    crash_after: int | None
    restart: bool


STEP = st.builds(
    Step,
    st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True),
    st.integers(0, WORKERS - 1),
    st.none() | st.none() | st.integers(0, 8),
    st.booleans(),
)
STEPS = st.lists(STEP, max_size=8)
RATES = st.fixed_dictionaries(
    {"policy_evaluation": st.sampled_from([0.2, 0.5, 0.0, 1.0]), "audit_trail": st.sampled_from([1.0, 0.5])}
)


def rules_of(rates: dict[str, float]) -> RoutingRules:
    return RoutingRules(HASH, sample_rates={Classification(name): rate for name, rate in rates.items()})


class Sampler:
    """Finds out whether an event without a trace is kept by routing it alone, on a worker of its own."""

    def __init__(self, rules: RoutingRules) -> None:
        self._rules = rules
        self._kept: dict[Distinct, bool] = {}

    async def learn(self, messages: list[Sent]) -> None:
        for told in [told for sent in messages for told in sent.told if told.event is not None]:
            sink = MemorySink()
            event = told.event | {"service.name": told.service} if "resource" not in told.event else told.event
            value = orjson.dumps([event if told.service != "unknown" else told.event])
            await pipeline(MemoryClaims(), sink, self._rules).route([InboundMessage("alone", 0, 0, value)])
            self._kept[Distinct.of(told)] = any(record.topic != "audit-dead-letters" for record in sink.records)

    def __call__(self, told: Told) -> bool:
        return self._kept[Distinct.of(told)]


class Identities:
    """What the router calls events: the same name for the same thing in every run, another for another."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._things: dict[str, tuple[str, str]] = {}

    def check(self, thing: tuple[str, str], name: str) -> None:
        assert self._names.setdefault(thing, name) == name, f"{thing} has two names"
        assert self._things.setdefault(name, thing) == thing, f"{name} names two things"


IDS_GIVEN, FINGERPRINTS = Identities(), Identities()


def check_routed(record: OutRecord, expected: Out, rules: RoutingRules) -> None:
    """Hold a published event to what was told, and to what must have been added."""
    told = expected.told
    assert told.event is not None
    event: Event = orjson.loads(record.value)
    added = {name: event.pop(name) for name in STAMPED}
    assert event == {name: value for name, value in told.event.items() if name not in STAMPED}
    metadata, who = added["routing_metadata"], Distinct.of(told)
    identity = metadata.pop("identity")
    assert added["event_classification"] == expected.label
    assert added["constitutional_hash"] == rules.constitutional_hash
    topic, priority = TOPICS[expected.label]
    assert metadata == {"topic": topic, "priority": priority, "sample_rate": expected.sample_rate}
    assert identity["service"] == told.service
    if told.event.get("event_id"):
        assert identity["id"] == told.event["event_id"]
    else:
        IDS_GIVEN.check((told.service, who.id), identity["id"])
    FINGERPRINTS.check(("any service", who.content), identity["fingerprint"])
    assert record.key == (identity["id"].encode() if expected.key is None else expected.key)


def check_dead(record: OutRecord, expected: Out) -> None:
    headers = dict(record.headers)
    assert headers["flywheel-reason"] == expected.label.encode()
    assert headers["flywheel-owner"] == expected.owner.encode()
    assert record.key == expected.key


def check_out(records: list[OutRecord], expected: list[Out], rules: RoutingRules) -> None:
    """Hold what a batch published to the model, in order within a topic."""
    found, wanted = defaultdict(list), defaultdict(list)
    for record in records:
        found[record.topic].append(record)
    for out in expected:
        wanted[out.topic].append(out)
    assert {topic: len(of) for topic, of in found.items()} == {topic: len(of) for topic, of in wanted.items()}
    for topic, of in wanted.items():
        for record, out in zip(found[topic], of, strict=True):
            if topic == "audit-dead-letters":
                check_dead(record, out)
            else:
                check_routed(record, out, rules)


def check_report(report: RouteReport, decided: Decided, messages: int) -> None:
    assert report.unaccounted() == 0
    assert report.messages == messages
    assert report.records_in == decided.counts.total()
    for outcome in ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered"):
        wanted = {label: count for (kind, label), count in decided.counts.items() if kind == outcome}
        assert +getattr(report, outcome) == wanted, (outcome, getattr(report, outcome), wanted)
    assert (report.redelivered, report.id_conflict) == (decided.redelivered, decided.id_conflict)


class World:
    """Workers over one store of claims, and the model beside them."""

    def __init__(self, claims: ClaimStore, rules: RoutingRules, model: Model, messages: list[Sent]) -> None:
        self.claims, self.rules, self.model, self.messages = claims, rules, model, messages
        self.sinks = [MemorySink() for _ in range(WORKERS)]
        self.workers = [pipeline(claims, sink, rules) for sink in self.sinks]
        self.acknowledged: set[int] = set()
        self.published: Counter[Distinct] = Counter()
        self.disturbed = any(sent.replay_of for sent in messages)

    async def step(self, step: Step) -> None:
        """Route a batch, and hold what came of it to the model; after a crash, what came out to a part of it."""
        worker, sink = self.workers[step.worker], self.sinks[step.worker]
        batch = [self.messages[offset] for offset in step.offsets]
        decided = self.model.route(batch)
        before = worker.counters.snapshot()
        sink.crash_after = step.crash_after
        self.disturbed |= not self.acknowledged.isdisjoint(step.offsets)
        try:
            report = await worker.route([inbound(sent) for sent in batch])
        except Crashed:
            self.disturbed = True
            assert worker.counters.snapshot() == before, "a batch that was not acknowledged is counted"
            allowed = Counter(out.topic for out in decided.out)
            assert Counter(record.topic for record in sink.records) <= allowed
        else:
            self.acknowledged.update(step.offsets)
            check_report(report, decided, len(batch))
            check_out(sink.records, decided.out, self.rules)
        sink.crash_after = None
        check_accounts(worker)
        self._count(sink.taken(), decided)
        if step.restart:
            self.workers[step.worker] = pipeline(self.claims, sink, self.rules)

    def _count(self, records: list[OutRecord], decided: Decided) -> None:
        expected = defaultdict(list)
        for out in decided.out:
            expected[out.topic].append(Distinct.of(out.told) if out.told.event is not None else None)
        for topic in TOPICS.values():
            came = sum(record.topic == topic[0] for record in records)
            self.published.update(who for who in expected[topic[0]][:came] if who is not None)

    async def finish(self) -> None:
        """Deliver what nobody has acknowledged; then every event that must be kept is out, and no other."""
        rest = [sent.offset for sent in self.messages if sent.offset not in self.acknowledged]
        await self.step(Step(rest, 0, None, restart=False))
        told = [told for sent in self.messages for told in sent.told]
        kept = {Distinct.of(one) for one in told if self.model.fate(one)[0] == "routed"}
        assert set(self.published) == kept
        contents = Counter((who.service, who.id) for who in kept)
        if not self.disturbed and max(contents.values(), default=0) <= MOST_CONTENTS:
            assert set(self.published.values()) <= {1}, "an event came out twice though nothing had failed"


numbers = itertools.count()
StoreOf = Callable[[], AbstractAsyncContextManager[ClaimStore]]


@asynccontextmanager
async def in_memory() -> AsyncIterator[ClaimStore]:
    yield MemoryClaims()


async def play(store: StoreOf, drawn: list[Draw], steps: list[Step], rates: dict[str, float]) -> None:
    rules, messages = rules_of(rates), place(drawn)
    sampler = Sampler(rules)
    await sampler.learn(messages)
    async with store() as claims:
        world = World(claims, rules, Model(rates, sampler), messages)
        for step in steps:
            await world.step(step)
        await world.finish()


@settings(max_examples=150, deadline=None)
@given(drawn=draws(), steps=STEPS, rates=RATES)
def test_every_batch_is_decided_as_the_model_decides(drawn: Any, steps: Any, rates: Any) -> None:
    asyncio.run(play(in_memory, drawn, steps, rates))


ON_REDIS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ON_REDIS
@given(drawn=draws(), steps=STEPS, rates=RATES)
def test_the_same_over_redis(redis_url: str, unique: Callable[[str], str], drawn: Any, steps: Any, rates: Any) -> None:
    @asynccontextmanager
    async def in_redis() -> AsyncIterator[ClaimStore]:
        async with Redis.from_url(redis_url) as client:
            yield Claims(client, prefix=unique(f"properties-{next(numbers)}"))

    asyncio.run(play(in_redis, drawn, steps, rates))


@ON_REDIS
@given(drawn=draws(), size=st.integers(1, 5), rates=RATES)
def test_workers_at_once_bring_each_event_out_once(
    redis_url: str, unique: Callable[[str], str], drawn: Any, size: int, rates: Any
) -> None:
    prefix = unique(f"at-once-{next(numbers)}")
    rules, messages = rules_of(rates), place([replace(draw, replay=None) for draw in drawn])
    sampler = Sampler(rules)
    model = Model(rates, sampler)

    async def work(worker: int) -> tuple[Pipeline, list[Event]]:
        sink = MemorySink()
        mine = [inbound(sent) for sent in messages if sent.partition == worker]
        async with Redis.from_url(redis_url) as client:
            pipe = pipeline(Claims(client, prefix=prefix), sink, rules)
            for start in range(0, len(mine), size):
                await pipe.route(mine[start : start + size])
        return pipe, published(sink.records)

    async def run() -> list[tuple[Pipeline, list[Event]]]:
        await sampler.learn(messages)
        return await asyncio.gather(*map(work, range(WORKERS)))

    done = asyncio.run(run())
    fates: Counter[str] = Counter()
    kept: dict[Distinct, int] = defaultdict(int)
    for told in [told for sent in messages for told in sent.told]:
        outcome, _ = model.fate(told)
        fates[outcome] += 1
        if outcome == "routed":
            kept[Distinct.of(told)] += 1
    snapshots = [check_accounts(pipe) for pipe, _ in done]
    for outcome in ("filtered", "sampled_out", "dead_lettered"):
        assert sum(snapshot[outcome] for snapshot in snapshots) == fates[outcome]
    came = Counter(tuple(event["routing_metadata"]["identity"].values()) for _, events in done for event in events)
    assert len(came) == len(kept)
    if max(Counter((who.service, who.id) for who in kept).values(), default=0) <= MOST_CONTENTS:
        assert set(came.values()) <= {1}
        assert sum(snapshot["duplicate"] for snapshot in snapshots) == sum(kept.values()) - len(kept)


async def test_an_owner_header_cannot_spoil_the_claims() -> None:
    """A place is one line of a topic's letters: a line feed in it would end a claim early, and lose the redelivery."""
    for owner in NO_OWNER + SPOILING:
        message = InboundMessage("in", 0, 7, b'{"event_id": "e"}', headers={"flywheel-owner": owner})
        assert message.owner(0) == "in:0:7:0", owner
    assert (
        InboundMessage("in", 0, 7, b"", headers={"flywheel-owner": b"a.b_c-d:12:345:6"}).owner(2) == "a.b_c-d:12:345:8"
    )


async def test_a_redelivery_goes_on_whatever_its_owner_header_says(
    redis_url: str, unique: Callable[[str], str]
) -> None:
    async with Redis.from_url(redis_url) as client:
        for number, owner in enumerate(NO_OWNER + SPOILING):
            claims, sink = Claims(client, prefix=unique(f"spoiled-{number}")), MemorySink()
            message = InboundMessage("in", 0, 7, b'{"event_id": "e"}', headers={"flywheel-owner": owner})
            sink.crash_after = 0
            with pytest.raises(Crashed):
                await pipeline(claims, sink).route([message])
            report = await pipeline(claims, sink).route([message])
            assert (report.routed.total(), report.redelivered) == (1, 1), owner
