"""`flywheel backfill` as an operator runs it, on Apache Kafka and Redis: exact counts, killed and run again."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from redis import Redis
from systems import Record, cli, read_topics, running, stats, wait_until

from app.embedded.system import System
from app.roles import Role
from app.settings.export import to_environment

INPUT, VIOLATIONS, DEAD = "otel-audit-events", "constitutional-violations", "audit-dead-letters"
PARTITIONS = 4

pytestmark = pytest.mark.kafka


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with running(tmp_path, "real", None, {}) as made:
        done = cli(made, "topics", "create")
        assert done.returncode == 0, done.stderr
        yield made


def event(number: int) -> dict[str, Any]:
    """Nine in ten are violations; the tenth cannot be read."""
    made: dict[str, Any] = {
        "event_id": f"event-{number}",
        "service.name": "assistant",
        "constitutional_hash": "cdd01ef066bc6cf2",
        "violations": ["harmful_content"],
        "prompt": f"question {number}",
    }
    return made | {"compliance_score": "high"} if number % 10 == 9 else made


def produce(system: System, events: list[dict[str, Any]], timestamp_ms: int | None = None) -> None:
    """One event a message, over the partitions in turn."""

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=system.settings.kafka.bootstrap_servers, acks="all") as producer:
            sent = [
                await producer.send(INPUT, orjson.dumps(each), partition=n % PARTITIONS, timestamp_ms=timestamp_ms)
                for n, each in enumerate(events)
            ]
            await asyncio.gather(*sent)

    asyncio.run(send())


def produce_aborted(system: System, count: int) -> None:
    """Messages of a transaction that was aborted: they, and its end, have offsets, and nobody may read them."""

    async def send() -> None:
        address = system.settings.kafka.bootstrap_servers
        async with AIOKafkaProducer(bootstrap_servers=address, transactional_id="stranger") as producer:
            await producer.begin_transaction()
            sent = [await producer.send(INPUT, b"{no json", partition=n % PARTITIONS) for n in range(count)]
            await asyncio.gather(*sent)
            await producer.abort_transaction()

    async def ends(isolation_level: str) -> int:
        address = system.settings.kafka.bootstrap_servers
        async with AIOKafkaConsumer(INPUT, bootstrap_servers=address, isolation_level=isolation_level) as reader:
            return sum((await reader.end_offsets(reader.assignment())).values())

    def is_ended() -> bool:
        return asyncio.run(ends("read_committed")) == asyncio.run(ends("read_uncommitted"))

    asyncio.run(send())
    # Its end is written some time after the abort is acknowledged.
    wait_until(is_ended, "the transaction is ended in every partition")


def backfill(system: System, *arguments: str) -> Any:
    done = cli(system, "backfill", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start(system: System, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **to_environment(system.settings)}
    command = [sys.executable, "-m", "app", "backfill", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def records(system: System, topic: str) -> list[Record]:
    return read_topics(system.settings.kafka.bootstrap_servers, [topic])[topic]


def routed(system: System) -> Counter[str]:
    return Counter(orjson.loads(record.value or b"")["event_id"] for record in records(system, VIOLATIONS))


def readable(numbers: range) -> Counter[str]:
    return Counter(f"event-{number}" for number in numbers if number % 10 != 9)


def forget(system: System) -> None:
    """Redis loses its data: to claims, the dedup window is over."""
    with Redis.from_url(system.settings.redis.url) as redis:
        redis.flushall()


def counts(report: dict[str, Any]) -> tuple[int, ...]:
    names = ("messages", "in", "routed", "duplicate", "dead_lettered", "redelivered")
    return tuple(report[name] for name in names)


@pytest.mark.timeout(300)
def test_from_an_offset_a_place_or_a_time(system: System) -> None:
    # Of this day: what is older than the topic's retention is removed while the test runs.
    hour = 3_600_000
    now = int(time.time() * 1000)
    between = datetime.fromtimestamp((now - hour) / 1000, UTC).isoformat()
    produce(system, [event(number) for number in range(200)], timestamp_ms=now - 2 * hour)
    produce_aborted(system, 20)
    produce(system, [event(number) for number in range(200, 300)], timestamp_ms=now)

    whole = backfill(system, "--from", "earliest")
    assert counts(whole) == (300, 300, 270, 0, 30, 0)
    assert whole["accounted"] == "300 = 270 + 0 + 0 + 0 + 30"
    assert whole["by_reason"] == {"invalid_score": 30}
    assert routed(system) == readable(range(300))

    # The same place is the same owner, so within the window it is routed again, and said to be.
    since = backfill(system, "--from", between)
    assert counts(since) == (100, 100, 90, 0, 10, 90)
    until = backfill(system, "--from", "earliest", "--to", between, "--partition", "1")
    assert counts(until)[:3] == (50, 50, 50 - sum(n % 10 == 9 for n in range(1, 200, 4)))
    # 50 of the first 200 lie in each partition, then 5 aborted ones and the transaction's end.
    assert counts(backfill(system, "--from", "2:10", "--to", "2:12"))[:2] == (2, 2)
    assert counts(backfill(system, "--from", "50"))[:2] == (100, 100)
    assert counts(backfill(system, "--from", "3:50", "--to", "3:58"))[:2] == (2, 2)
    nothing = backfill(system, "--from", "2999-01-01")
    assert (nothing["messages"], nothing["accounted"], bool(nothing["finished"])) == (0, "0 = 0 + 0 + 0 + 0 + 0", True)
    # And when the window is over, it is routed as new.
    forget(system)
    again = backfill(system, "--from", "0:0", "--to", "0:4", "--name", "again")
    assert counts(again) == (4, 4, 4 - sum(n % 10 == 9 for n in (0, 4, 8, 12)), 0, 0, 0)


@pytest.mark.timeout(300)
def test_what_a_worker_has_routed_is_recognised(system: System, tmp_path: Path) -> None:
    system.start_workers([Role.ROUTE])
    events = [event(number) for number in range(100)]
    produce(system, events)
    wait_until(lambda: stats(system, Role.ROUTE, "routing").get("in") == 100, "100 events are routed")
    # The same events as lines of a file are other tellings of them.
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(each) for each in events))
    assert counts(backfill(system, "--from", str(file))) == (100, 100, 0, 90, 10, 0)
    # The topic's own places own what they have claimed, whoever reads them.
    assert counts(backfill(system, "--from", "earliest", "--limit", "40"))[:2] == (40, 40)
    rest = backfill(system, "--from", "earliest")
    assert counts(rest) == (100, 100, 90, 0, 10, 90)
    assert set(routed(system).values()) == {2}


def otlp_line(numbers: range) -> bytes:
    """A line as the collector's file exporter writes it."""
    logs = [{"timeUnixNano": "1", "body": {"stringValue": orjson.dumps(event(n)).decode()}} for n in numbers]
    attributes = [{"key": "service.name", "value": {"stringValue": "assistant"}}]
    return orjson.dumps(
        {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": logs}]}]}
    )


@pytest.mark.timeout(300)
def test_from_a_file(system: System, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl.gz"
    lines = [otlp_line(range(start, start + 20)) for start in range(0, 200, 20)]
    lines += [orjson.dumps(event(number)) for number in range(200, 250)]
    file.write_bytes(gzip.compress(b"\n".join([*lines, b"", b"{no json"])))
    first = backfill(system, "--from", str(file), "--to", "11")
    assert counts(first) == (10, 200, 180, 0, 20, 0)
    whole = backfill(system, "--from", str(file))
    # The same lines again, and 50 new ones, and one that is none.
    assert counts(whole) == (61, 251, 180 + 45, 0, 20 + 5 + 1, 180)
    assert whole["by_reason"] == {"invalid_score": 25, "invalid_json": 1}
    assert routed(system) == readable(range(200)) + readable(range(250))
    origins = {dict(record.headers)["flywheel-origin-topic"] for record in records(system, DEAD)}
    (origin,) = origins
    assert origin.startswith(b"file:")
    assert len(origin) == len("file:") + 16

    done = cli(system, "backfill", "--from", str(file))
    assert (done.returncode, "is finished" in done.stderr) == (0, True)
    assert sum(routed(system).values()) == 180 + 225, "a finished backfill was routed again"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["topic", "file"])
def test_killed_and_run_again_it_goes_on(system: System, tmp_path: Path, kind: str) -> None:
    total, batch = 8000, 100
    system.change({"routing": {"batch_messages": batch}})
    events = [event(number) for number in range(total)]
    if kind == "topic":
        produce(system, events)
        origin = "earliest"
    else:
        file = tmp_path / "events.jsonl"
        file.write_bytes(b"\n".join(map(orjson.dumps, events)))
        origin = str(file)
    progress = Path(system.settings.data_dir) / "backfill" / "history.json"
    reached: list[int] = []

    def messages() -> int:
        return int(orjson.loads(progress.read_bytes())["messages"]) if progress.exists() else 0

    for _ in range(4):
        run = start(system, "--from", origin, "--name", "history")
        before = reached[-1] if reached else 0
        wait_until(lambda before=before: messages() > before, "the backfill goes on")
        time.sleep(random.uniform(0.0, 0.2))
        run.kill()
        run.communicate()
        reached.append(messages())
    assert reached == sorted(set(reached))
    assert reached[-1] < total, "it was done before it could be killed so often"

    other = cli(system, "backfill", "--from", "2999-01-01", "--name", "history")
    assert (other.returncode, "give another --name" in other.stderr) == (1, True)
    last = backfill(system, "--from", origin, "--name", "history")
    assert counts(last)[:2] == (total, total)
    assert counts(last)[2:5] == (total * 9 // 10, 0, total // 10)
    assert last["finished"]
    found = routed(system)
    assert set(found) == set(readable(range(total)))
    # At each kill the batch in hand may be routed again, and nothing else.
    repeated = sum(found.values()) - len(found)
    assert repeated <= len(reached) * batch, (repeated, reached)


@pytest.mark.timeout(300)
def test_a_stream_that_nobody_can_read_is_not_drained(system: System, tmp_path: Path) -> None:
    file = tmp_path / "other-format.jsonl"
    file.write_bytes(b"<event/>\n" * 6000)
    refused = cli(system, "backfill", "--from", str(file), "--name", "other")
    assert refused.returncode == 1
    assert "dead_letters.max_run" in refused.stderr
    progress = orjson.loads((Path(system.settings.data_dir) / "backfill" / "other.json").read_bytes())
    assert progress["finished_at"] is None
    assert progress["messages"] == progress["counts"]["in"] == progress["counts"]["dead_lettered"] == 5000
    assert len(records(system, DEAD)) == 5000


def test_what_retention_has_removed_is_told(system: System) -> None:
    produce(system, [event(number) for number in range(80)])

    async def remove() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=system.settings.kafka.bootstrap_servers)
        await admin.start()
        await admin.delete_records({TopicPartition(INPUT, 2): RecordsToDelete(before_offset=15)})
        await admin.close()

    asyncio.run(remove())
    done = cli(system, "backfill", "--from", "2:5", "--to", "2:18", "--json")
    assert (done.returncode, json.loads(done.stdout)["messages"]) == (0, 3), done.stderr
    assert "removed 10 of the messages asked for" in done.stderr


def test_what_is_away_is_named(system: System, tmp_path: Path) -> None:
    produce(system, [event(0)])
    assert "has no partition 9" in cli(system, "backfill", "--from", "9:0").stderr
    system.change({"kafka": {"bootstrap_servers": "127.0.0.1:1"}})
    away = cli(system, "backfill", "--from", "earliest")
    assert (away.returncode, "Kafka at 127.0.0.1:1" in away.stderr, "Traceback" in away.stderr) == (1, True, False)
