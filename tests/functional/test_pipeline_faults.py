"""Workers killed in the middle of a stream, engines and Redis that go away: nothing is lost, and nothing told twice."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import sqlalchemy as sa
from pipelines import CURATED, HASH, INPUT, SETTINGS, Event, Pipeline, Traffic
from systems import cli, entries, lag, read_topics, running, wait_until

from app.embedded.system import WORKER_READY_S
from app.roles import Role
from app.store.tables import cycles

VIOLATIONS, TRAIL, CYCLES = "constitutional-violations", "audit-trail-events", "optimization-cycles"


@pytest.fixture(
    params=[
        pytest.param(("mock", "sqlite"), id="mock-sqlite"),
        pytest.param(("real", "postgresql"), id="kafka-postgresql", marks=[pytest.mark.kafka, pytest.mark.postgres]),
    ]
)
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pipeline]:
    """Stores of its own; a cycle opens only in the tests that say so."""
    broker, database = request.param
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else None
    with running(tmp_path, broker, url, {"curation": {"min_examples": 1_000_000}}) as system:
        yield Pipeline(system, tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Pipeline]:
    """The mock broker and SQLite."""
    with running(tmp_path, "mock", None, SETTINGS) as system:
        yield Pipeline(system, tmp_path)


def numbered(number: int) -> Event:
    """Event `number`: violations and failures in turn, each of its own id."""
    if number % 2:
        return {"event_id": f"{number}", "status": "failure", "model_id": "gamma"}
    return {
        "event_id": f"{number}",
        "constitutional_hash": HASH,
        "violations": ["harmful_content"],
        "model_id": "gamma",
        "prompt": f"question {number}",
        "response": f"answer {number}",
    }


class Stream:
    """Sends numbered events, some hundred a second, until it is stopped."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.sent = 0
        self._pipeline = pipeline
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End the stream; how many events it has sent."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self._error is None, f"the stream broke: {self._error!r}"
        return self.sent

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.15):
                self._pipeline.produce([orjson.dumps(numbered(self.sent + offset)) for offset in range(20)])
                self.sent += 20
        except BaseException as error:
            self._error = error
            raise


def restart(pipeline: Pipeline, role: Role) -> None:
    """Start a killed worker again and wait until it serves."""
    pipeline.system.processes[f"worker-{role.value}"].start()
    pipeline.system.wait_for({f"{pipeline.system.url(role)}/health/ready": WORKER_READY_S})


@pytest.mark.timeout(600)
def test_workers_killed_in_midstream_lose_nothing_and_store_nothing_twice(pipeline: Pipeline) -> None:
    system = pipeline.system
    system.start_workers([Role.ROUTE, Role.CURATE])
    stream = Stream(pipeline)
    wait_until(lambda: pipeline.routed().get("routed", 0) > 200, "routing is under way")
    system.processes["worker-route"].kill()
    wait_until(lambda: lag(pipeline.bootstrap, "flywheel-route", [INPUT]) > 0, "events wait for the router")
    restart(pipeline, Role.ROUTE)
    wait_until(lambda: pipeline.routed().get("routed", 0) > 100, "the new router routes")
    before = len(pipeline.stored())
    system.processes["worker-curate"].kill()
    wait_until(lambda: lag(pipeline.bootstrap, "flywheel-curate", CURATED) > 50, "events wait for curation")
    restart(pipeline, Role.CURATE)
    wait_until(lambda: len(pipeline.stored()) > before + 50, "the new curation stores")
    sent = stream.stop()
    wait_until(lambda: lag(pipeline.bootstrap, "flywheel-route", [INPUT]) == 0, "all is routed")
    wait_until(lambda: lag(pipeline.bootstrap, "flywheel-curate", CURATED) == 0, "all is stored")

    # `stored` itself fails where an event has two examples.
    assert set(pipeline.stored()) == {(f"{number}", f"answer {number}") for number in range(0, sent, 2)}
    snapshot = pipeline.routed()
    assert snapshot["duplicate"] == 0, "a redelivered event was taken for a duplicate: it may be lost"
    topics = read_topics(pipeline.bootstrap, [VIOLATIONS, TRAIL])
    tellings: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for records in topics.values():
        for record in records:
            event = orjson.loads(record.value or b"")
            del event["processing_timestamp"]
            tellings[event["event_id"]].append(event)
    assert set(tellings) == {f"{number}" for number in range(sent)}
    copies = sum(len(told) - 1 for told in tellings.values())
    assert copies <= snapshot["redelivered"], "more copies than were redelivered"
    for told in tellings.values():
        assert all(event == told[0] for event in told), "a copy differs from its original"


@pytest.mark.timeout(400)
def test_routing_waits_for_redis_and_goes_on(small: Pipeline) -> None:
    system = small.system
    system.start_workers([Role.ROUTE])
    small.produce([orjson.dumps(numbered(number)) for number in range(100)])
    wait_until(lambda: small.routed().get("routed") == 100, "the first events are routed")
    system.stack.redis.kill()
    small.emit([numbered(number) for number in range(100, 200)])
    router = system.processes["worker-route"]
    wait_until(lambda: router.log().count("the worker waits") >= 3, "the router has asked Redis three times")
    snapshot = small.routed()
    assert snapshot["in"] == 100, "events went past the claims"
    assert httpx.get(f"{system.url(Role.ROUTE)}/health/live", trust_env=False).is_success
    system.stack.redis.start()
    wait_until(lambda: small.routed().get("routed") == 200, "the rest is routed")
    snapshot = small.routed()
    assert snapshot["claim_retries"] >= 3
    assert (snapshot["in"], snapshot["duplicate"], snapshot["unclaimed"]) == (200, 0, 0)
    topics = read_topics(small.bootstrap, [VIOLATIONS, TRAIL])
    told = Counter(orjson.loads(r.value or b"")["event_id"] for records in topics.values() for r in records)
    assert told == Counter({f"{number}": 1 for number in range(200)})


@pytest.mark.timeout(400)
def test_what_a_cycle_tells_waits_for_the_audit_engine_and_comes_once_in_order(small: Pipeline) -> None:
    system = small.system
    system.start_workers([Role.ROUTE, Role.CURATE])
    small.emit(Traffic("A", 60).events)
    wait_until(small.cycles, "a cycle opens")
    curation = system.processes["worker-curate"]
    wait_until(lambda: curation.log().count("outbox waits") >= 2, "the relay has tried")
    with small.database.read() as connection:
        cycle_id = connection.execute(sa.select(cycles.c.cycle_id)).scalar_one()
    assert small.unsent() == 2
    # No record may announce what the audit log does not hold.
    assert read_topics(small.bootstrap, [CYCLES])[CYCLES] == []
    system.start_engines(["audit-engine"])
    wait_until(lambda: not small.unsent(), "entry and record are delivered")
    assert [entry["id"] for entry in entries(system, "cycle_transition")] == [f"cycle-{cycle_id}-1"]
    assert versions(small) == [(cycle_id, 1)]

    system.processes["audit-engine"].kill()
    cancelled = cli(system, "cycles", "cancel", cycle_id, "--by", "operator")
    assert cancelled.returncode == 0, cancelled.stderr
    tried = curation.log().count("outbox waits")
    wait_until(lambda: curation.log().count("outbox waits") > tried, "the relay has tried again")
    assert versions(small) == [(cycle_id, 1)]
    system.processes["audit-engine"].start()
    wait_until(lambda: not small.unsent(), "the second entry and record are delivered")
    assert [entry["id"] for entry in entries(system, "optimization_cycle")] == [f"cycle-{cycle_id}-2"]
    assert versions(small) == [(cycle_id, 1), (cycle_id, 2)]
    verified = httpx.get(f"{system.settings.audit_engine.url}/api/v1/verify", trust_env=False).json()
    assert verified["ok"], verified


def versions(pipeline: Pipeline) -> list[tuple[str, int]]:
    """Cycle and version of each record on `optimization-cycles`."""
    records = [orjson.loads(r.value or b"") for r in read_topics(pipeline.bootstrap, [CYCLES])[CYCLES]]
    return [(record["cycle_id"], record["version"]) for record in records]
