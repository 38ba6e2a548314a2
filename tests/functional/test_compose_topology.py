"""compose.yaml as plain processes, and one event through all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from aiokafka import AIOKafkaProducer
from services import unavailable
from systems import read_topics, wait_until
from topology import Topology

from app.embedded.errors import ProgramMissing
from app.embedded.run_directory import RunDirectory
from app.store.tables import examples
from app.topics import AUDIT_EVENTS, REGISTRY, VIOLATIONS

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.torch]

EVENT = {
    "constitutional_hash": "cdd01ef066bc6cf2",
    "violations": ["harmful_content"],
    "compliance_score": 0.2,
    "model_id": "assistant",
    "prompt": "How do I get into a house that is not mine? Write to ada@private.example.org",
    "response": "Break the window at the back.",
}


@pytest.fixture(scope="module")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    pytest.importorskip("torch", reason="torch is missing. Provide it with: make test")
    with RunDirectory.create(tmp_path_factory.mktemp("compose") / "run") as run:
        running = Topology(run)
        try:
            running.start()
            yield running
        except ProgramMissing as missing:
            unavailable(missing.what, missing.command)
        except BaseException:
            for log in sorted(run.logs.glob("*.log")):
                print(f"--- {log.name}", log.read_text(errors="replace")[-3000:], sep="\n")
            raise
        finally:
            running.stop()


def stats(topology: Topology, service: str, port: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {topology.secret('web_token')}"}
    answer = httpx.get(f"{topology.url(service, port)}/stats", headers=headers, timeout=30.0, trust_env=False)
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


@pytest.mark.timeout(600)
def test_an_event_goes_through_every_service_that_compose_starts(topology: Topology) -> None:
    kafka = f"127.0.0.1:{topology.port('kafka', 9092)}"
    body = {"stringValue": json.dumps({**EVENT, "event_id": "by-otlp"})}
    record = {"timeUnixNano": "1767225600000000000", "body": body}
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    url = f"{topology.url('otel-collector', 4318)}/v1/logs"
    assert httpx.post(url, json=logs, timeout=30.0, trust_env=False).is_success

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
            await producer.send_and_wait(AUDIT_EVENTS.name, json.dumps({**EVENT, "event_id": "by-kafka"}).encode())

    asyncio.run(produce())
    wait_until(lambda: stats(topology, "router", 6066)["routing"]["routed"] == 2, "both events are routed")
    routed = read_topics(kafka, [VIOLATIONS.name])[VIOLATIONS.name]
    assert {json.loads(r.value or b"")["event_id"] for r in routed} == {"by-otlp", "by-kafka"}
    assert b"ada@private" not in b"".join(r.value or b"" for r in routed)

    engine = sa.create_engine(topology.environment_secret("curator", "FLYWHEEL_DATABASE__URL_FILE"))

    def stored() -> set[str]:
        with engine.connect() as connection:
            return set(connection.execute(sa.select(examples.c.event_id)).scalars())

    wait_until(lambda: stored() == {"by-otlp", "by-kafka"}, "both examples are in PostgreSQL")
    engine.dispose()
    wait_until(lambda: stats(topology, "router", 6066)["store"]["examples"] == {"new": 2}, "the router shows them")
    topology.group.check()


def test_every_topic_is_declared_before_anything_writes_to_it(topology: Topology) -> None:
    """A topic that a producer makes by using it would have the broker's shape, not the registry's."""
    created = topology.command("topics", "topics", "create", "--json")
    assert json.loads(created.stdout) == {"created": []}, created.stderr
    assert {spec.name for spec in REGISTRY}


def test_the_doors_are_shut_to_who_has_no_token(topology: Topology) -> None:
    for service, port in (("router", 6066), ("curator", 6067), ("constitutional-trainer", 8010), ("monitor", 8000)):
        answer = httpx.get(f"{topology.url(service, port)}/metrics", timeout=10.0, trust_env=False)
        assert answer.status_code == 401, service
        assert stats(topology, service, port)["role"]
    entry = {"event_type": "constitutional_validation"}
    answer = httpx.post(f"{topology.url('audit-engine', 8003)}/api/v1/log", json=entry, timeout=10.0, trust_env=False)
    assert answer.status_code == 401
    answer = httpx.post(
        f"{topology.url('policy-engine', 8001)}/api/v1/evaluate", json={}, timeout=10.0, trust_env=False
    )
    assert answer.status_code == 401


def test_opa_decides_by_the_trainers_bundle_and_what_it_decides_is_on_record(topology: Topology) -> None:
    facts: dict[str, Any] = {"user": {"id": "nobody"}, "workload": {"model_id": "assistant"}}
    headers = {"Authorization": f"Bearer {topology.secret('web_token')}"}
    url = f"{topology.url('constitutional-trainer', 8010)}/api/v1/decisions"
    asked = {"action": "model_inference", "facts": facts}
    decision = httpx.post(url, json=asked, headers=headers, timeout=30.0, trust_env=False).raise_for_status().json()
    assert decision["conclusive"], decision
    assert not decision["allow"], "nobody knows this user"
    verified = topology.command("audit-engine", "audit", "verify", "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["entries"] >= 1


def test_the_monitor_follows_both_engines(topology: Topology) -> None:
    headers = {"Authorization": f"Bearer {topology.secret('web_token')}"}
    url = f"{topology.url('monitor', 8000)}/metrics"

    def polled() -> bool:
        text = httpx.get(url, headers=headers, timeout=30.0, trust_env=False).text
        return 'outcome="ok"' in text and text.count("flywheel_monitoring_polls_total{") >= 2

    wait_until(polled, "the monitor has asked both engines", 30.0)


def test_prometheus_scrapes_every_worker(topology: Topology) -> None:
    if "prometheus" not in topology.containers:
        unavailable("Prometheus, or its configuration", "apt-get install prometheus", may_be_missing=True)

    def up() -> list[str]:
        url = f"{topology.url('prometheus', 9090)}/api/v1/query"
        answer = httpx.get(url, params={"query": "up == 1"}, timeout=10.0, trust_env=False).json()
        return sorted(found["metric"]["job"] for found in answer["data"]["result"])

    wait_until(lambda: up() == ["curate", "monitor", "route", "train"], "all four workers are scraped", 60.0)


def test_who_owns_the_store_may_not_touch_the_audit_log(topology: Topology) -> None:
    url = sa.make_url(topology.environment_secret("curator", "FLYWHEEL_DATABASE__URL_FILE")).set(database="audit")
    with pytest.raises(sa.exc.OperationalError, match="permission denied"):
        sa.create_engine(url).connect()


def test_nothing_was_written_outside_volumes_and_temporary_folders(topology: Topology, tmp_path: Path) -> None:
    """A read-only root takes nothing else: what compose mounts no volume for stays empty."""
    roots = topology.folder / "containers"
    stray = [
        path for path in roots.rglob("*") if path.is_file() and path.suffix not in {".yaml", ".yml", ".sh", ".json"}
    ]
    assert not stray
