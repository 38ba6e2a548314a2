"""A routing worker and the commands over Kafka behind TLS and SCRAM and Redis behind TLS and an ACL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from secured_servers import Authority, SecuredKafka, SecuredRedis
from services import started
from systems import cli, running, stats, wait_until

from app.connections import AccessRefused, kafka_refusal
from app.embedded.process import ProcessGroup
from app.embedded.run_directory import RunDirectory
from app.embedded.system import System
from app.redis import check_redis
from app.roles import Role
from app.settings import Settings, SettingsError
from app.telemetry.groups import read_groups

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

EVENTS = [{"event_id": f"secured-{n}", "event_type": "call", "status": "failed", "prompt": "p"} for n in range(20)]
WRONG = SecretStr("planted-wrong-password")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def kafka(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    with RunDirectory.create(tmp_path_factory.mktemp("kafka")) as run, ProcessGroup() as group:
        yield started(group, SecuredKafka(run, authority))


@pytest.fixture(scope="module")
def redis(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRedis]:
    with RunDirectory.create(tmp_path_factory.mktemp("redis")) as run, ProcessGroup() as group:
        yield started(group, SecuredRedis(run, authority))


@pytest.fixture(scope="module")
def secured(kafka: SecuredKafka, redis: SecuredRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("system"), "mock", None, {}) as system:
        system.change({"kafka": with_secret(kafka.settings()), "redis": with_secret(redis.settings())})
        yield system


def with_secret(section: dict[str, Any]) -> dict[str, Any]:
    return section | {"password": SecretStr(section["password"])}


def changed(system: System, section: str, **changes: Any) -> Settings:
    """The system's settings with one section changed."""
    part = getattr(system.settings, section).model_copy(update=changes)
    return system.settings.model_copy(update={section: part})


def test_events_pass_through_secured_kafka_and_redis(
    secured: System, kafka: SecuredKafka, redis: SecuredRedis, tmp_path: Path
) -> None:
    secured.start_engines(["audit-engine"])  # dropping a letter is on record first
    secured.start_workers([Role.ROUTE])
    lines = [json.dumps(event) for event in EVENTS]
    halves = {"kafka": lines[:10], "otlp": [*lines[10:], lines[10]]}
    for via, half in halves.items():
        file = tmp_path / f"{via}.jsonl"
        file.write_text("\n".join(half))
        sent = cli(secured, "emit", str(file), "--via", via)
        assert sent.returncode == 0, sent.stderr
    wait_until(lambda: stats(secured, Role.ROUTE, "routing").get("in") == len(EVENTS) + 1, "all events are routed")
    told = stats(secured, Role.ROUTE, "routing")
    assert (told["routed"], told["duplicate"]) == (len(EVENTS), 1)  # Redis took part

    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"event_id": "broken", "compliance_score": "much"}))
    assert cli(secured, "emit", str(broken), "--via", "kafka").returncode == 0
    wait_until(lambda: stats(secured, Role.ROUTE, "routing").get("dead_lettered") == 1, "the broken one is put aside")
    shown = cli(secured, "dlq", "ls", "--json")
    assert shown.returncode == 0, shown.stderr
    dropped = cli(secured, "dlq", "drop", "--by", "tester", "--comment", "a trial")  # in a Kafka transaction
    assert dropped.returncode == 0, dropped.stderr
    assert {position.group for position in asyncio.run(read_groups(secured.settings))}, "no group is seen"

    logs = "".join(log.read_text() for log in secured.run.logs.glob("*.log"))
    assert kafka.password not in logs
    assert redis.password not in logs


@pytest.mark.parametrize(
    ("section", "changes", "named"),
    [
        ("kafka", {"password": WRONG}, "kafka.password"),
        ("redis", {"password": WRONG}, "redis.password"),
    ],
)
def test_a_worker_that_is_turned_away_says_what_to_mend_and_ends(
    secured: System, section: str, changes: dict[str, Any], named: str
) -> None:
    before = secured.settings
    secured.settings = changed(secured, section, **changes)
    try:
        ended = cli(secured, "worker", "route")
    finally:
        secured.settings = before
    assert ended.returncode != 0
    assert named in ended.stdout + ended.stderr
    assert WRONG.get_secret_value() not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"password": WRONG}, "kafka.password"),
        ({"username": "nobody"}, "kafka.username"),
        ({"ca_file": None}, "kafka.ca_file"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "kafka.sasl_mechanism"),
    ],
)
def test_why_kafka_refuses_is_told(secured: System, changes: dict[str, Any], named: str) -> None:
    told = asyncio.run(kafka_refusal(changed(secured, "kafka", **changes)))
    assert told is not None
    assert named in told
    assert WRONG.get_secret_value() not in told


def test_kafka_that_lets_us_in_or_is_away_refuses_nothing(secured: System) -> None:
    assert asyncio.run(kafka_refusal(secured.settings)) is None
    assert asyncio.run(kafka_refusal(changed(secured, "kafka", bootstrap_servers="127.0.0.1:1"))) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"password": WRONG}, "redis.password"),
        ({"ca_file": None}, "redis.ca_file"),
        ({"username": SecuredRedis.narrow}, "ACL"),
    ],
)
def test_why_redis_refuses_is_told(secured: System, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(AccessRefused) as refused:
        asyncio.run(check_redis(changed(secured, "redis", **changes)))
    assert named in str(refused.value)
    assert WRONG.get_secret_value() not in str(refused.value)


def test_redis_that_lets_us_in_or_is_away_refuses_nothing(secured: System) -> None:
    asyncio.run(check_redis(secured.settings))
    asyncio.run(check_redis(changed(secured, "redis", url="rediss://127.0.0.1:1/0")))


def test_files_that_are_no_certificates_are_named(secured: System, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match=r"kafka\.ca_file"):
            asyncio.run(kafka_refusal(changed(secured, "kafka", ca_file=path)))
        with pytest.raises(SettingsError, match=r"redis\.ca_file"):
            asyncio.run(check_redis(changed(secured, "redis", ca_file=path)))
