"""Routing, curation and the audit engine as processes: every event by every way in, accounted for, and once.

What must come out is told by `Traffic`, which knows only what it sent, never by the code under test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa
from pipelines import INPUT, SETTINGS, Event, Pipeline, Traffic
from redis import Redis
from systems import cli, entries, read_topics, running, stored_bytes, wait_until

from app.roles import Role
from app.store.tables import cycles, pending_feedback


@pytest.fixture(
    params=[
        pytest.param(("mock", "sqlite"), id="mock-sqlite"),
        pytest.param(("real", "postgresql"), id="kafka-postgresql", marks=[pytest.mark.kafka, pytest.mark.postgres]),
    ]
)
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pipeline]:
    """Broker and Redis of its own; the test starts what it needs."""
    broker, database = request.param
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else None
    with running(tmp_path, broker, url, SETTINGS) as system:
        yield Pipeline(system, tmp_path)


def as_values(events: list[Event]) -> list[bytes]:
    """Events as messages: single ones, arrays and lines in turn."""
    told = [event | {"resource": {"service.name": "direct"}} for event in events]
    values: list[bytes] = [orjson.dumps(event) for event in told[:60]]
    values.append(orjson.dumps(told[60:120]))
    values.append(b"\n".join(map(orjson.dumps, told[120:])))
    return values


UNREADABLE = [b"{no json", b"\n\xff\xff\xff", b'{"event_id": "nan", "compliance_score": NaN}']


@pytest.mark.timeout(600)
def test_every_event_by_every_way_is_accounted_for_and_stored_once(pipeline: Pipeline) -> None:
    pipeline.system.start_engines(["audit-engine"])
    pipeline.system.start_workers([Role.ROUTE, Role.CURATE])
    sdk, direct, file_otlp, file_kafka = Traffic("S", 20), Traffic("D", 20), Traffic("O", 10), Traffic("K", 10)
    ways = (sdk, direct, file_otlp, file_kafka)
    total = Counter[str]()
    for way in ways:
        total += way.outcome

    def send() -> None:
        pipeline.emit(sdk.events)
        pipeline.produce(as_values(direct.events) + UNREADABLE)
        pipeline.emit_file(file_otlp.events, "otlp")
        pipeline.emit_file(file_kafka.events, "kafka")

    # Reviews come before the events that they are about.
    pipeline.emit([review for way in ways for review in way.feedback])
    wait_until(lambda: pipeline.routed().get("routed") == 60, "the reviews are routed")
    wait_until(lambda: pipeline.count(sa.select(pending_feedback)) == 60, "the reviews wait for their events")
    send()
    sent = 60 + sum(len(way.events) for way in ways) + len(UNREADABLE)
    snapshot = pipeline.settle(sent)

    # Evaluations are sampled by their ids; the rest is known.
    kept = snapshot["by_classification"]["routed"].get("policy_evaluation", 0)
    assert kept + snapshot["sampled_out"] == total["evaluation"]
    assert {name: snapshot[name] for name in ("filtered", "duplicate", "dead_lettered", "id_conflict")} == {
        "filtered": total["filtered"],
        "duplicate": total["duplicate"],
        "dead_lettered": total["dead"] + len(UNREADABLE),
        "id_conflict": total["conflict"],
    }
    topics = pipeline.topics()
    counts = {topic: len(found) for topic, found in topics.items()}
    assert counts == {
        "constitutional-violations": total["violation"],
        "model-optimization-triggers": total["trigger"],
        "human-feedback-loops": total["feedback"],
        "policy-evaluations": kept,
        "audit-trail-events": total["trail"],
        "audit-dead-letters": total["dead"] + len(UNREADABLE),
        "optimization-cycles": counts["optimization-cycles"],
    }
    expected = {key: value for way in ways for key, value in way.examples.items()}
    assert pipeline.stored() == expected

    _check_that_one_cycle_opens(pipeline)
    _check_that_nothing_personal_is_left(pipeline, [value for way in ways for value in way.planted()])

    send()
    pipeline.emit([review for way in ways for review in way.feedback])
    again = pipeline.settle(2 * sent)
    assert again["routed"] == snapshot["routed"], "an event was routed twice"
    assert again["duplicate"] == snapshot["routed"] + 2 * snapshot["duplicate"]
    for name in ("filtered", "sampled_out", "dead_lettered"):
        assert again[name] == 2 * snapshot[name]
    assert pipeline.stored() == expected
    assert pipeline.cycles() == 1


def _check_that_one_cycle_opens(pipeline: Pipeline) -> None:
    """`alpha` has enough examples and `beta` has not; each change has its audit entry and its record, in order."""
    wait_until(lambda: pipeline.cycles() and not pipeline.unsent(), "a cycle is open, and told")
    with pipeline.database.read() as connection:
        (cycle,) = connection.execute(sa.select(cycles)).all()
    assert (cycle.model_id, cycle.state, cycle.trigger_type, cycle.requested_by) == (
        "alpha",
        "proposed",
        "count",
        "curation",
    )
    # 60 tens, three examples each of this model, of which the reviewers approved every second of one kind.
    assert cycle.facts["waiting_units"] == 60 + 30
    cancelled = cli(pipeline.system, "cycles", "cancel", cycle.cycle_id, "--by", "operator")
    assert cancelled.returncode == 0, cancelled.stderr
    wait_until(lambda: not pipeline.unsent(), "the cancelling is told")
    records = [orjson.loads(r.value or b"") for r in pipeline.topics()["optimization-cycles"]]
    assert [(r["cycle_id"], r["version"], r["state"]) for r in records] == [
        (cycle.cycle_id, 1, "proposed"),
        (cycle.cycle_id, 2, "cancelled"),
    ]
    (opened,) = entries(pipeline.system, "cycle_transition")
    (ended,) = entries(pipeline.system, "optimization_cycle")
    assert opened["id"] == f"cycle-{cycle.cycle_id}-1"
    assert ended["id"] == f"cycle-{cycle.cycle_id}-2"
    assert opened["seq"] < ended["seq"]


def _check_that_nothing_personal_is_left(pipeline: Pipeline, planted: list[bytes]) -> None:
    """Not in a topic behind the router, not in a store, not in a log; nor any event's text in a log."""
    system = pipeline.system
    places: dict[str, bytes] = {}
    for topic, records in pipeline.topics().items():
        places[topic] = b"\n".join(
            part for r in records for part in (r.key, r.value, *dict(r.headers).values()) if part
        )
    # What the OTLP endpoint takes is scrubbed before it reaches even the first topic.
    first = [r.value or b"" for r in read_topics(pipeline.bootstrap, [INPUT])[INPUT]]
    places["the endpoint's input"] = b"\n".join(value for value in first if b"assistant" in value)
    places["store"] = stored_bytes(system.settings.database.url)
    places["audit log"] = stored_bytes(system.settings.audit_engine.database_url)
    with Redis.from_url(system.stack.redis.url) as redis:
        places["redis"] = b"\n".join(key + (redis.dump(key) or b"") for key in redis.scan_iter())
    logs = {log.name: log.read_bytes() for log in system.run.logs.glob("*.log")}
    assert all(places.values()), f"nothing to look at in {[name for name, held in places.items() if not held]}"
    assert len(logs) >= 4
    for name, held in (places | logs).items():
        found = [value for value in planted if value in held]
        assert not found, f"{len(found)} of {len(planted)} planted values are in {name}, such as {found[0]!r}"
    for name, held in logs.items():
        assert b"question " not in held, f"{name} holds an event's text"
        assert b"answer S" not in held, f"{name} holds an event's text"
    assert b"question S-0" in places["store"], "the texts themselves must be there, or the search finds nothing"
