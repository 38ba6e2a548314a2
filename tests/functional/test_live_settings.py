"""Live settings in a running system: from the command line over SQL, audit engine and Redis to the router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from pipelines import Event, Pipeline
from redis import Redis
from systems import cli, entries, running, stats, wait_until

from app.embedded.system import WORKER_READY_S, System
from app.live import KEY
from app.roles import Role

RATE, WINDOW = "policy_evaluation.sample_rate", "dedup.window_s"
EVALUATIONS = "policy-evaluations"


@pytest.fixture(
    params=[
        pytest.param(("mock", "sqlite"), id="mock-sqlite"),
        pytest.param(("real", "postgresql"), id="kafka-postgresql", marks=[pytest.mark.kafka, pytest.mark.postgres]),
    ]
)
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pipeline]:
    """Router, relay and monitor are up, the audit engine too."""
    broker, database = request.param
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else None
    with running(tmp_path, broker, url, {}) as system:
        system.start_engines(["audit-engine"])
        system.start_workers([Role.ROUTE, Role.CURATE, Role.MONITOR])
        yield Pipeline(system, tmp_path)


def routing(system: System, *arguments: str) -> Any:
    """Run a `flywheel routing` command."""
    done = cli(system, "routing", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown(system: System, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in routing(system, "ls") if row["name"] == name)
    return found


def live(system: System) -> dict[str, Any]:
    """What the router has taken over."""
    found: dict[str, Any] = stats(system, Role.ROUTE, "routing").get("live", {})
    return found


def evaluations(start: int, count: int) -> list[Event]:
    return [{"event_id": f"e{number}", "event_type": "policy_evaluation"} for number in range(start, start + count)]


def copied(system: System) -> bytes | None:
    with Redis.from_url(system.stack.redis.url) as redis:
        held: bytes | None = redis.get(KEY)  # type: ignore[assignment]
    return held


@pytest.mark.timeout(600)
def test_a_change_reaches_the_router_by_way_of_the_audit_log_and_stays(pipeline: Pipeline) -> None:
    system = pipeline.system
    wait_until(lambda: live(system) == {"revision": 0, "values": {}}, "the router watches")
    pipeline.emit(evaluations(0, 200))
    wait_until(lambda: pipeline.routed()["in"] == 200, "the first evaluations are routed")
    before = pipeline.routed()
    assert 0 < before["routed"] < 100, "one in five is kept"

    # It applies to what is routed from then on, and is on record.
    made = routing(system, "set", RATE, "1", "--by", "operator", "--comment", "look closer")
    wait_until(
        lambda: live(system) == {"revision": made["revision"], "values": {RATE: 1.0}}, "the router applies it", 30
    )
    (entry,) = entries(system, "routing_setting")
    assert entry["body"]["context"] == {
        "name": RATE,
        "value": 1.0,
        "previous": None,
        "revision": made["revision"],
        "changed_by": "operator",
    }
    assert shown(system, RATE)["effect"] == "in force"
    pipeline.emit(evaluations(200, 100))
    wait_until(lambda: pipeline.routed()["in"] == 300, "the next evaluations are routed")
    after = pipeline.routed()
    assert after["routed"] - before["routed"] == 100, "all are kept"
    assert after["sampled_out"] == before["sampled_out"]
    events = [orjson.loads(record.value or b"") for record in pipeline.topics()[EVALUATIONS]]
    rates = {event["event_id"]: event["routing_metadata"]["sample_rate"] for event in events}
    assert {rate for name, rate in rates.items() if int(name[1:]) >= 200} == {1.0}
    assert {rate for name, rate in rates.items() if int(name[1:]) < 200} == {0.2}

    _check_that_it_waits_for_the_audit_engine(pipeline, made["revision"])
    _check_that_it_outlives_redis_and_a_restart(pipeline)

    back = routing(system, "unset", RATE, "--by", "operator")
    wait_until(lambda: live(system) == {"revision": back["revision"], "values": {WINDOW: 60}}, "it is given back", 30)
    assert shown(system, RATE)["value"] == 0.2
    verified = httpx.get(f"{system.settings.audit_engine.url}/api/v1/verify", trust_env=False).json()
    assert verified["ok"], verified
    assert len(entries(system, "routing_setting")) == 3


def _check_that_it_waits_for_the_audit_engine(pipeline: Pipeline, revision: int) -> None:
    system = pipeline.system
    relay = system.processes["worker-curate"]
    system.processes["audit-engine"].kill()
    waited = relay.log().count("outbox waits")
    made = routing(system, "set", WINDOW, "60", "--by", "operator")
    # The relay waits 2 s between attempts: the monitor and the router have looked several times by then.
    wait_until(lambda: relay.log().count("outbox waits") >= waited + 3, "the relay has tried three times")
    assert live(system) == {"revision": revision, "values": {RATE: 1.0}}
    row = shown(system, WINDOW)
    assert (row["value"], row["set"], row["effect"]) == (3600, 60, "waits for the audit engine")
    system.processes["audit-engine"].start()
    wanted = {"revision": made["revision"], "values": {RATE: 1.0, WINDOW: 60}}
    wait_until(lambda: live(system) == wanted, "it applies once the audit engine has it", 60)
    assert [entry["body"]["context"]["name"] for entry in entries(system, "routing_setting")] == [RATE, WINDOW]


def _check_that_it_outlives_redis_and_a_restart(pipeline: Pipeline) -> None:
    system = pipeline.system
    before = live(system)
    document = copied(system)
    assert document is not None
    with Redis.from_url(system.stack.redis.url) as redis:
        redis.flushall()
    wait_until(lambda: copied(system) == document, "the copy is put back", 30)
    assert live(system) == before

    system.stack.redis.kill()
    router = system.processes["worker-route"]
    router.stop()
    router.start()
    system.wait_for({f"{system.url(Role.ROUTE)}/health/ready": WORKER_READY_S})
    wait_until(lambda: live(system) == before, "the restarted router has what it had, with Redis away", 30)
    system.stack.redis.start()
    pipeline.emit(evaluations(300, 50))
    wait_until(lambda: pipeline.routed().get("routed") == 50, "all are kept still")
    assert live(system) == before
    wait_until(lambda: copied(system) == document, "the copy is put back", 30)
