"""A whole system under a real Prometheus: what it tells, and what wakes people."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from aiokafka import AIOKafkaProducer
from otlp_receiver import Receiver
from prometheus_server import FOLDER, Prometheus, dashboard_queries, program, quick_rules
from registry_parts import trained
from systems import running, wait_until

from app.embedded.system import System
from app.roles import Role
from app.store import Database, adherence, cycles, leases, ledger, progress, registry, watch
from app.store.adherence import Observation
from app.store.database import utc_now
from app.telemetry.catalogue import SPECS
from app.wiring import audit_token
from models.cycle import CycleState, TriggerType
from models.privacy import LedgerEntry

pytestmark = [pytest.mark.torch, pytest.mark.timeout(420)]

INPUT, HASH = "otel-audit-events", "cdd01ef066bc6cf2"
DEAD = "a dead worker"
Event = dict[str, Any]
ALERTS = {
    rule["alert"]
    for group in quick_rules({})["groups"]
    if group["name"] == "flywheel-alerts"
    for rule in group["rules"]
}

SETTINGS: dict[str, dict[str, Any]] = {
    "curation": {"min_examples": 4, "settle_s": 0.5, "held_out_share": 0.0},
    "monitoring": {"interval_s": 1.0, "retry_interval_s": 1.0},
    # So that something is found downstream.
    "pii": {"router": "detect"},
}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def system(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    pytest.importorskip("torch", reason="torch is missing. Provide it with: make test")
    program("prometheus")
    with running(tmp_path_factory.mktemp("watched"), "mock", None, SETTINGS) as started:
        started.change({"telemetry": {"otlp_endpoint": receiver.url, "trace_sample_rate": 1.0}})
        # A model that nobody approved: the gate refuses a cycle after its first job, which needs no model either.
        started.change({"training": {"base_model": "/nowhere/model", "poll_s": 0.2}})
        started.start_engines()
        started.start_workers()
        yield started


@pytest.fixture(scope="module")
def database(system: System) -> Iterator[Database]:
    opened = Database(system.settings.database.url)
    yield opened
    opened.close()


def violation(name: str, model: str, **fields: Any) -> Event:
    return {
        "event_id": name,
        "constitutional_hash": HASH,
        "violations": ["harmful_content"],
        "compliance_score": 0.2,
        "model_id": model,
        "prompt": f"question {name}",
        "response": f"answer {name}",
        **fields,
    }


def test_prometheus_gets_what_the_catalogue_says_and_alerts_fire_for_real(system: System, database: Database) -> None:
    for path in ("rules.yaml", "rules_test.yaml", "prometheus.yaml"):
        assert (FOLDER / path).exists()
    rules = quick_rules({"> 100000": "> 10", ">= 200": ">= 5", "> 3600": "> 2"})
    targets = {role.value: system.url(role).removeprefix("http://") for role in Role}
    prometheus = Prometheus(system.run, targets, rules)
    prometheus.process.start()
    try:
        seen: set[str] = set()
        _disturb(system, database)
        unanswered = {query for queries in dashboard_queries().values() for query in queries}
        unanswered |= {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
        early = ALERTS - {"FlywheelConsumerLag", "FlywheelNoCommitProgress", "FlywheelEngineUnreachable"}
        stuck = "FlywheelCycleStuck"
        number = 0

        def settled() -> bool:
            nonlocal number
            number += 1
            more = violation(f"more {number}", f"m{number}", prompt=f"write to jane.doe{number}@private.example.org")
            _produce(system, [more, {"event_id": f"b{number}", "violations": 3}])
            seen.update(prometheus.firing())
            unanswered.difference_update([query for query in unanswered if prometheus.query(query)])
            return early <= seen and not unanswered

        _until(settled, lambda: f"alerts missing: {early - seen}; queries without data: {unanswered}", 60)
        _check_catalogue(prometheus)
        assert prometheus.get(
            "query_exemplars", query="flywheel_routing_stage_seconds_bucket", start=str(time.time() - 300),
            end=str(time.time()),
        )  # fmt: skip
        for role in Role:
            _check_metrics(system, role)

        # The cycle that a dead worker had moves on; without the policy engine another one cannot.
        _free(database)
        _until(lambda: stuck not in prometheus.firing(), lambda: "an alert stays when its cause is gone", 60)
        seen.discard(stuck)
        system.processes["policy-engine"].stop()
        _produce(system, [violation(f"waits {number}", "waits") for number in range(4)])
        wait_until(lambda: stuck in prometheus.firing(), "a cycle that waits for the policy engine wakes somebody", 60)
        system.stack.redis.kill()
        _produce(system, [violation(f"late {number}", "late") for number in range(40)])

        def late() -> bool:
            seen.update(prometheus.firing())
            return seen == ALERTS

        _until(late, lambda: f"alerts missing: {ALERTS - seen}", 60)
    finally:
        prometheus.process.stop()


def test_the_rules_and_their_tests_are_sound() -> None:
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(
            [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
    config = [program("promtool"), "check", "config", "--syntax-only", "prometheus.yaml"]
    assert subprocess.run(config, cwd=FOLDER, capture_output=True, check=False, timeout=60).returncode == 0


def _roll_back(system: System, database: Database) -> None:
    """A champion that was seen at work, and stands there again because its successor was rolled back."""
    with database.write() as connection:
        for _ in range(2):
            trained(connection, system.run.data / "versions", model="served", state=CycleState.PROMOTED)
        deployed, target = registry.current(connection, "served"), registry.rollback_target(connection, "served")
        assert deployed is not None
        assert target is not None
        by = registry.Authority("ann", "a test")
        registry.roll_back(
            connection, "served", target, "a test", by, kind=registry.Kind.ROLLBACK, expected=int(deployed.seq)
        )
        when = "2099-01-01T00:00:00.000000Z"
        seen = [Observation("t", 0, n, "served", "default", True, 1.0, arrived_at=when) for n in range(3)]
        watch.take(connection, adherence.advance(connection, seen), 500.0)


def _disturb(system: System, database: Database) -> None:
    """Bring about what alerts are for."""
    lows = [
        violation(f"low {number}", "low", event_type="policy_evaluation", compliance_score=0.4) for number in range(30)
    ]
    personal = [violation("personal", "leaky", prompt="write to jane.doe@private.example.org", response="done")]
    evaluation = {"event_type": "policy_evaluation", "compliance_score": 0.99, "model_id": "low", "status": "success"}
    good = [{"event_id": f"good {number}", **evaluation} for number in range(20)]
    reject = {"event_id": "review", "source": "human_review", "target_event_id": "low 1", "verdict": "reject"}
    _produce(system, [*lows, *personal, *good, reject])
    settings = system.settings
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        asked = {"action": "constitutional_evaluation", "content": "Here is a poem.", "context": {"model_id": "low"},
                 "constitutional_hash": HASH}  # fmt: skip
        client.post(f"{settings.policy_engine.url}/api/v1/evaluate", json=asked).raise_for_status()
        entry = {
            "event_type": "constitutional_validation",
            "constitutional_hash": HASH,
            "compliance_score": 0.1,
            "violations": [{"type": "harm", "severity": "high"}] * 150,
            "context": {},
            "model_id": "low",
        }
        token = {"Authorization": f"Bearer {audit_token(settings)}"}
        client.post(f"{settings.audit_engine.url}/api/v1/log", json=entry, headers=token).raise_for_status()
    _roll_back(system, database)
    _spend(database, "eighty", 6.6)
    _spend(database, "ninety-five", 7.8)
    with database.write() as connection:
        # Another worker, that has died, has the lease of this cycle's model for a while.
        leases.acquire(connection, "model:stuck", DEAD, 600.0)
        _open(connection, "stuck")


def _free(database: Database) -> None:
    """The dead worker's lease runs out."""
    with database.write() as connection:
        lease = leases.acquire(connection, "model:stuck", DEAD, 600.0)
        assert lease is not None
        leases.release(connection, lease)


def _spend(database: Database, name: str, epsilon: float) -> None:
    """A finished cycle that has spent so much of a domain's epsilon: what training leaves, without its minutes."""
    with database.write() as connection:
        leases.acquire(connection, f"model:{name}", "test", 600.0)
        lease = leases.acquire(connection, ledger.domain_lease(name), "test", 600.0)
        assert lease is not None
        cycle = _open(connection, name)
        entry = LedgerEntry(
            domain=name, cohort=0, cycle_id=cycle.cycle_id, model_id=name, noise_multiplier=1.0, sample_rate=0.1,
            steps=10, fence=lease.fence, created_at=utc_now(),
        )  # fmt: skip
        ledger.reserve(connection, entry, lease)
        progress.save(connection, cycle.cycle_id, "train", 10, 10, {"epsilon": epsilon})
        cycles.transition(connection, cycle, CycleState.CANCELLED)


def _open(connection: sa.Connection, name: str) -> Any:
    opened = cycles.open_cycle(
        connection, model_id=name, domain=name, trigger_type=TriggerType.MANUAL, requested_by="test", facts={}
    )
    assert opened is not None
    return opened


def _check_catalogue(prometheus: Prometheus) -> None:
    """Every role shows what the catalogue says that it shows, and nothing else of this system's."""
    shown: dict[str, set[str]] = {}
    for series in prometheus.query('{__name__=~"flywheel_.+|constitutional_.+|model_optimization_.+|privacy_.+"}'):
        labels = series["metric"]
        name = labels["__name__"]
        for suffix in ("_bucket", "_sum", "_count"):
            if name.removesuffix(suffix) in SPECS:
                name = name.removesuffix(suffix)
        if name.endswith("_created"):
            continue
        shown.setdefault(name, set()).add(labels["job"])
        own = labels.keys() - {"__name__", "job", "instance", "le"}
        assert own == set(SPECS[name].labels), name
    assert shown == {name: set(spec.roles) for name, spec in SPECS.items()}


def _check_metrics(system: System, role: Role) -> None:
    """`promtool check metrics` finds nothing to say."""
    text = httpx.get(f"{system.url(role)}/metrics", timeout=30.0, trust_env=False).raise_for_status().text
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{role}: {done.stdout}{done.stderr}"
    negotiated = httpx.get(
        f"{system.url(role)}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"},
        timeout=30.0, trust_env=False,
    )  # fmt: skip
    assert negotiated.headers["content-type"].startswith("application/openmetrics-text")
    assert negotiated.text.endswith("# EOF\n")


def _until(condition: Any, what: Any, within_s: float) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.5)


def _produce(system: System, events: list[Event]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=system.settings.kafka.bootstrap_servers) as producer:
            for event in events:
                await producer.send_and_wait(INPUT, json.dumps(event).encode())

    asyncio.run(send())
