"""`flywheel dlq` as an operator runs it: on Apache Kafka, with the router and the audit engine, killed and doubled."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Consumer, Message, TopicPartition
from systems import cli, entries, read_topics, running, stats, wait_until

from agents.routing.dead_letters import OWNER
from agents.routing.limits import DeadLetterLimits
from agents.routing.message import InboundMessage
from app.embedded.system import System
from app.roles import Role
from app.routing import Routing, open_pipeline
from app.settings.export import to_environment

INPUT, VIOLATIONS = "otel-audit-events", "constitutional-violations"
PARTITIONS = 4
NARROW, WIDE = {"routing": {"max_string": 64}}, {"routing": {"max_string": 1024 * 1024}}
KILLS, LETTERS, BATCH = 4, 6000, 200

# `flywheel` that ends by a signal in its second transaction, at the moment that the first argument names.
DYING = """
import asyncio, os, signal, sys
from aiokafka import AIOKafkaProducer
from app.cli import main
# A job in the background is started with interrupts ignored, and hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
moment = sys.argv.pop(1)
begin, send, commit = (getattr(AIOKafkaProducer, name) for name in ("begin_transaction", "send", "commit_transaction"))
begun = []
def die():
    os.kill(os.getpid(), signal.SIGKILL)
async def dying_begin(self):
    begun.append(None)
    await begin(self)
async def dying_send(self, topic, *args, **kwargs):
    if len(begun) == 2 and moment == "records" and topic == "audit-dead-letters":
        await self.flush()
        die()
    return await send(self, topic, *args, **kwargs)
async def dying_commit(self):
    if len(begun) == 2 and moment == "marks":
        die()
    if len(begun) == 2 and moment == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)
    await commit(self)
    if len(begun) == 2:
        die()
AIOKafkaProducer.begin_transaction = dying_begin
AIOKafkaProducer.send, AIOKafkaProducer.commit_transaction = dying_send, dying_commit
main()
"""

pytestmark = pytest.mark.kafka


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with running(tmp_path, "real", None, NARROW) as made:
        made.start_engines(["audit-engine"])
        done = cli(made, "topics", "create")
        assert done.returncode == 0, done.stderr
        yield made


def violation(number: int) -> dict[str, Any]:
    return {
        "event_id": f"event-{number}",
        "constitutional_hash": "cdd01ef066bc6cf2",
        "violations": ["harmful_content"],
        "prompt": f"question {number} " + "long " * 20,
    }


def produce(system: System, values: list[bytes]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=system.settings.kafka.bootstrap_servers, acks="all") as producer:
            await asyncio.gather(*[await producer.send(INPUT, value, key=b"k%d" % len(value)) for value in values])

    asyncio.run(send())


def make_letters(system: System, count: int) -> set[str]:
    """Have the pipeline dead-letter so many messages; returns their owners."""
    messages = [
        InboundMessage(INPUT, number % PARTITIONS, number, orjson.dumps(violation(number)), b"k%d" % (number % 50))
        for number in range(count)
    ]

    async def route() -> None:
        async with open_pipeline(system.settings, Routing()) as pipeline:
            pipeline.watch.limits = DeadLetterLimits(max_run=0, max_share=1.0)
            for start in range(0, count, 1000):
                report = await pipeline.route(messages[start : start + 1000])
                assert report.dead_lettered == {"string_too_long": min(1000, count - start)}

    asyncio.run(route())
    return {message.owner(0) for message in messages}


def dlq(system: System, *arguments: str) -> Any:
    done = cli(system, "dlq", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start(system: System, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **to_environment(system.settings)}
    command = [sys.executable, "-m", "app", "dlq", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def committed(system: System, topic: str) -> list[Message]:
    """What a reader of committed records gets from a topic, by another client library than the one under test."""
    address = system.settings.kafka.bootstrap_servers
    reader = Consumer({"bootstrap.servers": address, "group.id": "reader", "enable.partition.eof": True})
    reader.assign([TopicPartition(topic, number, 0) for number in range(PARTITIONS)])
    found, ended, deadline = [], set[int](), time.monotonic() + 60
    while len(ended) < PARTITIONS:
        assert time.monotonic() < deadline, f"{topic} was not read within 60 s"
        for message in reader.consume(1000, timeout=0.2):
            if message.error() is None:
                found.append(message)
            else:
                ended.add(message.partition())
    reader.close()
    return found


def replayed_owners(system: System) -> Counter[str]:
    """How often each owner came back into the input topic."""
    headers = [dict(message.headers() or ()) for message in committed(system, INPUT)]
    return Counter(each[OWNER].decode() for each in headers if OWNER in each)


def outstanding(system: System) -> int:
    return sum(row["letters"] for row in dlq(system, "ls", "--summary"))


@pytest.mark.timeout(300)
def test_what_has_become_readable_is_routed_once(system: System) -> None:
    system.start_workers([Role.ROUTE])
    short = [violation(number) | {"prompt": "short"} for number in range(20, 30)]
    long = [violation(number) for number in range(20)]
    produce(system, [orjson.dumps(event) for event in [*long, *short]])
    wait_until(lambda: stats(system, Role.ROUTE, "routing").get("in") == 30, "30 events are routed")
    assert dlq(system, "ls", "--summary") == [{"reason": "string_too_long", "letters": 20}]
    listed = dlq(system, "ls", "--limit", "19")
    assert len(listed) == 19
    assert set(listed[0]) == {"place", "reason", "detail", "origin", "bytes", "time"}
    shown = dlq(system, "show", listed[0]["place"])
    assert shown["value"] == committed_value(system, shown["origin"])
    assert (shown["state"], shown["headers"]["flywheel-reason"]) == ("outstanding", "string_too_long")

    origins = {row["origin"] for row in dlq(system, "ls")}

    # Replayed while it still cannot be read, it comes back as a new letter, of the same owner.
    once = dlq(system, "replay", "--by", "operator", "--place", listed[0]["place"])
    assert (once["replayed"], once["outstanding"]) == (1, 0)
    wait_until(lambda: stats(system, Role.ROUTE, "routing").get("in") == 31, "the replay is routed")
    assert dlq(system, "show", listed[0]["place"])["state"] == "replayed"
    now = {row["place"]: row["origin"] for row in dlq(system, "ls")}
    assert len(now) == 20
    (back,) = [place for place, origin in now.items() if origin not in origins]
    assert dlq(system, "show", back)["owner"] == shown["owner"] == shown["origin"]

    system.processes["worker-route"].stop()
    system.change(WIDE)
    system.start_workers([Role.ROUTE])
    report = dlq(system, "replay", "--by", "operator")
    assert (report["replayed"], report["by_reason"], report["outstanding"]) == (20, {"string_too_long": 20}, 0)
    wait_until(lambda: stats(system, Role.ROUTE, "routing").get("routed", 0) >= 20, "the replays are routed")
    assert dlq(system, "replay", "--by", "operator")["replayed"] == 0
    # Told again by its producer, each is a duplicate of what the replay has brought.
    produce(system, [orjson.dumps(event) for event in long])
    wait_until(lambda: stats(system, Role.ROUTE, "routing").get("in") == 40, "the second tellings are routed")
    assert stats(system, Role.ROUTE, "routing")["duplicate"] == 20
    routed = [orjson.loads(record.value or b"")["event_id"] for record in committed_records(system, VIOLATIONS)]
    assert Counter(routed) == Counter(f"event-{number}" for number in range(30))

    told = entries(system, "dead_letters_replayed")
    contexts = [entry["body"]["context"] for entry in told]
    assert [(context["by"], context["letters"]) for context in contexts] == [("operator", 1), ("operator", 20)]
    assert told[1]["id"] == report["audit_entry"]
    assert contexts[1]["by_reason"] == {"string_too_long": 20}


def committed_value(system: System, origin: str) -> str:
    topic, partition, offset, _ = origin.rsplit(":", 3)
    (found,) = [m for m in committed(system, topic) if (m.partition(), m.offset()) == (int(partition), int(offset))]
    return (found.value() or b"").decode()


def committed_records(system: System, topic: str) -> list[Any]:
    return read_topics(system.settings.kafka.bootstrap_servers, [topic])[topic]


@pytest.mark.timeout(300)
def test_killed_at_any_moment_each_letter_is_replayed_once(system: System) -> None:
    owners = make_letters(system, LETTERS)
    done_after: list[int] = []
    for _ in range(KILLS):
        command = start(system, "replay", "--by", "operator")
        assert command.stderr is not None
        # Its first batch is acknowledged; from here on a kill can fall anywhere in a transaction.
        line = command.stderr.readline()
        time.sleep(random.uniform(0.0, 0.25))
        command.kill()
        command.wait()
        command.stderr.close()
        assert line.startswith("replayed "), line
        done_after.append(LETTERS - outstanding(system))
        if done_after[-1] == LETTERS:
            break
    last = cli(system, "dlq", "replay", "--by", "operator")
    assert last.returncode == 0, last.stderr
    assert outstanding(system) == 0
    found = replayed_owners(system)
    assert set(found) == owners
    assert set(found.values()) == {1}, f"replayed twice after kills at {done_after}"
    assert done_after == sorted(set(done_after)), "a run that acknowledged a batch brought nothing forward"
    assert len(done_after) > 2


@pytest.mark.timeout(300)
def test_ended_at_the_worst_moments_each_letter_is_replayed_once(system: System) -> None:
    owners = make_letters(system, 7 * BATCH)
    environment = {**os.environ, **to_environment(system.settings)}
    left = []
    # The records are at the broker and the marks are not; both are, and not committed; both are committed.
    for moment in ("records", "marks", "committed", "interrupt"):
        command = [sys.executable, "-c", DYING, moment, "dlq", "replay", "--by", "operator"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == (130 if moment == "interrupt" else -signal.SIGKILL), ended.stderr
        assert ended.stderr.startswith(f"replayed {BATCH} of ")
        left.append(outstanding(system))
    assert "interrupted; what was acknowledged stands" in ended.stderr
    report = dlq(system, "replay", "--by", "operator")
    found = replayed_owners(system)
    assert (set(found), set(found.values())) == (owners, {1})
    # A run that ends before its second commit has done one batch, and two once that is committed.
    assert left == [6 * BATCH, 5 * BATCH, 3 * BATCH, 2 * BATCH]
    assert (report["replayed"], report["outstanding"]) == (2 * BATCH, 0)


@pytest.mark.timeout(300)
def test_two_replays_at_once_replay_each_letter_once(system: System) -> None:
    owners = make_letters(system, LETTERS)
    runs = [start(system, "replay", "--by", f"operator {number}") for number in range(3)]
    told = [run.communicate(timeout=120)[1] for run in runs]
    ended = [run.returncode for run in runs]
    assert ended.count(0) >= 1, told
    # Whoever did not end well was shut out by one that started later, and says so.
    assert all("has taken over" in text for text, status in zip(told, ended, strict=True) if status), told
    assert dlq(system, "replay", "--by", "operator")["outstanding"] == 0
    found = replayed_owners(system)
    assert set(found) == owners
    assert set(found.values()) == {1}


def test_letters_without_their_value_are_told_and_dropped(system: System, tmp_path: Path) -> None:
    produce(system, [b"", b"", b"{no json", b"\xff\x00\xfe"])
    routed = cli(system, "backfill", "--from", "earliest", "--json")
    assert routed.returncode == 0, routed.stderr
    assert json.loads(routed.stdout)["dead_lettered"] == 4
    counts = {row["reason"]: row["letters"] for row in dlq(system, "ls", "--summary")}
    assert counts == {"empty_message": 2, "invalid_json": 1, "invalid_protobuf": 1}

    (binary,) = dlq(system, "ls", "--reason", "invalid_protobuf")
    file = tmp_path / "value"
    assert dlq(system, "show", binary["place"], "--raw", str(file))["value"] == "hex ff 00 fe"
    assert file.read_bytes() == b"\xff\x00\xfe"
    assert file.stat().st_mode & 0o077 == 0
    again = cli(system, "dlq", "show", binary["place"], "--raw", str(file))
    assert (again.returncode, "exists already" in again.stderr) == (1, True)

    needs_a_reason = cli(system, "dlq", "drop", "--by", "operator", "--comment", " ")
    assert needs_a_reason.returncode == 2
    dropped = dlq(
        system, "drop", "--by", "operator", "--comment", "a probe's", "--reason", "empty_message", "--limit", "1"
    )
    assert (dropped["dropped"], dropped["outstanding"]) == (1, 1)
    (entry,) = entries(system, "dead_letters_dropped")
    context = entry["body"]["context"]
    assert (context["comment"], context["letters"]) == ("a probe's", 1)
    states = Counter(row["state"] for row in dlq(system, "ls", "--all"))
    assert states == {"dropped": 1, "outstanding": 3}
    (left,) = dlq(system, "ls", "--reason", "empty_message")
    gone = cli(system, "dlq", "show", "3:4711")
    assert (gone.returncode, "there is no letter at 3:4711" in gone.stderr) == (1, True)
    assert dlq(system, "show", left["place"])["state"] == "outstanding"


def test_without_the_audit_engine_nothing_is_done(system: System) -> None:
    make_letters(system, 3)
    system.processes["audit-engine"].stop()
    refused = cli(system, "dlq", "replay", "--by", "operator")
    assert refused.returncode == 1
    assert "nothing was done" in refused.stderr
    assert outstanding(system) == 3
    assert replayed_owners(system) == {}
