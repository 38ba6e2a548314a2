"""The routing agent in a real Faust worker, over a broker and Redis: exact counts, and nothing lost over a kill -9.

This file is also the worker it starts: `python test_routing_agent.py CONFIG` runs the routing agent alone.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson
import pytest

from app.embedded.kafka import KafkaBroker
from app.embedded.mock_broker import MockBroker

OUTPUTS = (
    "constitutional-violations",
    "policy-evaluations",
    "model-optimization-triggers",
    "human-feedback-loops",
    "audit-trail-events",
)
DEAD = "audit-dead-letters"
PARTITIONS = 4
DEADLINE_S = 90.0


# --- the worker --------------------------------------------------------------------------------------------------


def run_worker(config: dict[str, Any]) -> None:
    """Run a Faust worker with the routing agent until it is signalled."""
    import faust
    from aiokafka import AIOKafkaProducer
    from redis.asyncio import Redis

    from agents.consume import ConsumeConfig
    from agents.routing.agent import register
    from agents.routing.bounds import DecodeLimits
    from agents.routing.classify import RoutingRules
    from agents.routing.counters import Counters
    from agents.routing.dedup import Claims
    from agents.routing.pipeline import Pipeline
    from agents.routing.publish import Publisher
    from app.transport import ChunkTransport

    class ChunkedApp(faust.App):
        def _new_transport(self) -> ChunkTransport:
            return ChunkTransport(self.conf.broker_consumer, self)

    counters = Counters()

    def scrub(event: dict[str, Any]) -> dict[str, int]:
        time.sleep(config["scrub_s"])  # a scrubber that costs something: a kill then finds records in flight
        return {}

    @contextlib.asynccontextmanager
    async def open_pipeline() -> AsyncIterator[Pipeline]:
        redis = Redis.from_url(config["redis"])
        producer = AIOKafkaProducer(
            bootstrap_servers=config["broker"], acks="all", enable_idempotence=True, compression_type="gzip"
        )
        await producer.start()
        try:
            claims, publisher = Claims(redis, prefix=config["group"]), Publisher(producer)
            yield Pipeline(RoutingRules("cdd01ef066bc6cf2"), DecodeLimits(), scrub, claims, publisher, counters)
        finally:
            await producer.stop()
            await redis.aclose()
            leave_counters()

    def leave_counters() -> None:
        Path(config["counters"]).write_text(json.dumps(counters.snapshot()))

    app = ChunkedApp(
        config["group"],
        broker=f"kafka://{config['broker']}",
        datadir=config["datadir"],
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=PARTITIONS,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.5,
        stream_buffer_maxsize=4,
        broker_max_poll_records=config["poll_records"],
        stream_wait_empty=True,
        broker_max_poll_interval=86_400.0,
        consumer_auto_offset_reset="earliest",
    )
    register(app, open_pipeline, ConsumeConfig(batch_messages=config["batch_messages"]), config["input"])
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


def create_topics(address: str, names: Iterable[str]) -> None:
    """Make topics exist: both brokers create what metadata is asked for, with four partitions."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": address})

    def has_partitions(name: str) -> bool:
        return len(producer.list_topics(name, timeout=10).topics[name].partitions) == PARTITIONS

    for name in names:
        wait_for(partial(has_partitions, name), f"topic {name} exists", 30)


@dataclass
class Stack:
    broker: str
    redis: str
    tmp: Path
    group: str
    input: str
    workers: list[Worker] = field(default_factory=list)

    def start_worker(self, name: str, batch_messages: int = 50, scrub_s: float = 0.0) -> Worker:
        config = {
            "broker": self.broker,
            "redis": self.redis,
            "group": self.group,
            "input": self.input,
            "datadir": str(self.tmp / name),
            "counters": str(self.tmp / f"{name}.json"),
            "batch_messages": batch_messages,
            "poll_records": batch_messages,
            "scrub_s": scrub_s,
        }
        log = (self.tmp / f"{name}.log").open("w")
        process = subprocess.Popen([sys.executable, __file__, json.dumps(config)], stdout=log, stderr=subprocess.STDOUT)
        worker = Worker(process, Path(str(config["counters"])), log)
        self.workers.append(worker)
        return worker

    def lag(self) -> int:
        """How many input messages the group has not committed."""
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self.broker, "group.id": self.group, "enable.auto.commit": False})
        try:
            lag = 0
            for place in consumer.committed([TopicPartition(self.input, number) for number in range(PARTITIONS)], 10):
                _, end = consumer.get_watermark_offsets(place, timeout=10)
                lag += end - max(place.offset, 0)
            return lag
        finally:
            consumer.close()

    def send(self, messages: list[Sent]) -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.broker, "acks": "all"})
        for key, value, headers in messages:
            producer.produce(self.input, value, key, headers=headers)
        assert producer.flush(30) == 0


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
def stack(
    broker: MockBroker | KafkaBroker, redis_url: str, unique: Callable[[str], str], tmp_path: Path
) -> Iterator[Stack]:
    made = Stack(broker.bootstrap, redis_url, tmp_path, unique("routing"), unique("input"))
    create_topics(made.broker, (made.input, DEAD, *OUTPUTS))
    yield made
    for worker in made.workers:
        worker.kill()
        print(f"--- {worker.log.name}", Path(worker.log.name).read_text()[-8000:], sep="\n")


class Outputs:
    """Everything that came out since it was made, read by its own consumer."""

    def __init__(self, address: str) -> None:
        from confluent_kafka import Consumer, TopicPartition

        self._consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "enable.auto.commit": False})
        # Tests share the broker: what was there before is none of this test's.
        places = [TopicPartition(topic, number) for topic in (*OUTPUTS, DEAD) for number in range(PARTITIONS)]
        for place in places:
            _, place.offset = self._consumer.get_watermark_offsets(place, timeout=10)
        self._consumer.assign(places)
        self.places = places
        self.start = {(place.topic, place.partition): place.offset for place in places}
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

    def drain(self) -> None:
        """Read to the ends of all partitions as they are now."""
        ends = {(p.topic, p.partition): self._consumer.get_watermark_offsets(p, timeout=10)[1] for p in self.places}

        def at_the_ends() -> bool:
            self.poll()
            return all(
                max(p.offset, self.start[p.topic, p.partition]) >= ends[p.topic, p.partition]
                for p in self._consumer.position(self.places)
            )

        wait_for(at_the_ends, "all output is read", 30)

    def grown_to(self, count: int) -> bool:
        self.poll()
        return self.total() >= count

    def total(self) -> int:
        return sum(len(events) for events in self.events.values())

    def ids(self) -> Counter[str]:
        return Counter(event["event_id"] for events in self.events.values() for event in events)

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def outputs(stack: Stack) -> Iterator[Outputs]:
    reader = Outputs(stack.broker)
    yield reader
    reader.close()


# --- events ------------------------------------------------------------------------------------------------------


def make_event(number: int) -> dict[str, Any]:
    """Event `number` of a mix in which every classification and the filter occur."""
    event: dict[str, Any] = {
        "event_id": f"event-{number}",
        "model_id": f"m{number % 3}",
        "prompt": f"question {number}",
    }
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
    from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
    from opentelemetry.proto.logs.v1.logs_pb2 import LogsData

    return bytes(ParseDict(orjson.loads(otlp_json(events)), LogsData()).SerializeToString())


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
    stack.send(as_messages(events, 0) + poison)
    worker = stack.start_worker("first")

    def settled() -> bool:
        outputs.poll()
        return stack.lag() == 0

    wait_for(settled, "the first 1,800 events are committed")
    stack.send(as_messages(repeated, 3))
    wait_for(settled, "the repeated events are committed")
    snapshot = worker.stop()
    outputs.drain()

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
    stack.send(as_messages(first, 0))
    worker = stack.start_worker("killed", batch_messages=5, scrub_s=0.002)

    wait_for(lambda: outputs.grown_to(50), "the worker routes")
    stack.send(as_messages(second, 1))
    before = outputs.total()
    wait_for(lambda: outputs.grown_to(before + 50), "the worker goes on")
    worker.kill()
    assert stack.lag() > 0, "the worker was done before it was killed: nothing was tested"
    heir = stack.start_worker("heir")
    wait_for(lambda: stack.lag() == 0, "the heir has committed everything")
    snapshot = heir.stop()
    outputs.drain()

    ids = outputs.ids()
    expected = {event["event_id"] for number, event in enumerate(events) if number % 10 in (0, 4, 5, 8, 9)}
    assert expected <= set(ids), f"{len(expected - set(ids))} events are lost"
    evaluations = {event["event_id"] for event in outputs.events["policy-evaluations"]}
    assert set(ids) - expected == evaluations
    # A second copy only of what was in flight at the kill: a batch that was published and not yet committed, and one
    # half published; each at most 4 + 5 messages of at most 20 records.
    assert sum(ids.values()) - len(ids) <= 2 * 9 * 20
    outcomes = ("routed", "filtered", "duplicate", "sampled_out", "dead_lettered")
    assert snapshot["in"] == sum(snapshot[name] for name in outcomes)
    assert snapshot["duplicate"] == 0, "a redelivered event was taken for a duplicate: it may be lost"


if __name__ == "__main__":
    run_worker(json.loads(sys.argv.pop()))
