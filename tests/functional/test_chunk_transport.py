"""The chunk transport in real workers on a real broker: what is delivered, and what is committed when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from chunk_rig import Rig, finished, reached, repeated
from chunk_worker import Options
from confluent_kafka import Consumer, TopicPartition
from systems import wait_until

from app.embedded.kafka import KafkaBroker
from app.embedded.mock_broker import MockBroker
from app.transport.batches import GzipBatchBuilder

Unique = Callable[[str], str]
WITHIN_S = 60.0


@pytest.fixture
def rig(real_kafka: KafkaBroker, unique: Unique, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(real_kafka.bootstrap, True, tmp_path, unique("chunks"))
    yield made
    made.close()


@pytest.fixture
def any_rig(broker: MockBroker | KafkaBroker, unique: Unique, tmp_path: Path) -> Iterator[Rig]:
    """The same on the mock cluster too."""
    made = Rig(broker.bootstrap, broker.declares_topics, tmp_path, unique("chunks"))
    yield made
    made.close()


# --- acknowledgement ---------------------------------------------------------------------------------------------


def test_nothing_is_committed_before_it_is_finished(any_rig: Rig, unique: Unique) -> None:
    rig = any_rig
    first, second = (rig.make_topic(unique(name), 4) for name in ("first", "second"))
    for number in range(4):
        rig.send(first, number, 80 + number)
        rig.send(second, number, 40)
    worker = rig.start("worker", held=True)
    worker.wait(lambda: len(worker.got()) >= 40, "one batch is held, and another prepared behind it")
    worker.ask("commit")
    assert set(rig.committed().values()) == {0}

    def commits_what_is_finished() -> bool:
        done = worker.done()
        worker.ask("commit")
        here = reached(done)
        return done == worker.done() and rig.committed() == {place: here[place] for place in rig.places()}

    worker.hold(first, 1, 57)
    worker.wait(lambda: (first, 1, 57) in worker.got(), "the batch to hold is in hand")
    worker.wait(commits_what_is_finished, "exactly what is finished is committed, of every partition")
    assert (first, 1, 57) not in worker.done()
    worker.release()
    rig.wait_committed()
    assert worker.done() == worker.got(), "in order, each once"
    assert not repeated(worker)
    assert finished(worker) == {(*place, offset) for place, end in rig.ends().items() for offset in range(end)}
    worker.stop()


def test_records_arrive_as_they_were_sent(any_rig: Rig, unique: Unique) -> None:
    topic = any_rig.make_topic(unique("in"), 4)
    sent = [("key", "value"), (None, "value"), ("key", None), (None, None), ("", ""), ("snow", "\N{SNOWMAN}" * 1000)]
    headers = {"flywheel-owner": "in:0:1:2", "empty": ""}
    producer = any_rig.producer()
    for key, value in sent:
        encoded = None if value is None else value.encode()
        producer.produce(topic, encoded, key, partition=2, headers={n: v.encode() for n, v in headers.items()})
    assert producer.flush(30) == 0
    worker = any_rig.start("worker")
    any_rig.wait_committed()
    assert worker.entries("got") == [[topic, 2, at, key, value, headers] for at, (key, value) in enumerate(sent)]
    worker.stop()


# --- offsets without records -------------------------------------------------------------------------------------


def test_offsets_that_hold_no_record_are_passed_over(rig: Rig, unique: Unique) -> None:
    compaction = {"segment.ms": "50", "min.cleanable.dirty.ratio": "0", "delete.retention.ms": "0"}
    compacted = rig.make_topic(unique("compacted"), 1, {"cleanup.policy": "compact", **compaction})
    cut = rig.make_topic(unique("cut"), 2)
    rig.set_broker("log.cleaner.backoff.ms", "100")
    rig.send(compacted, 0, 200, keys=(f"{number}" if number % 5 == 0 else "often" for number in itertools.count()))

    def has_holes() -> bool:
        rig.send(compacted, 0, 1, keys=["often"])  # what comes later closes the segment before it
        return sum(after - before == 5 for before, after in itertools.pairwise(rig.offsets(compacted)[0])) > 30

    wait_until(has_holes, "the log is compacted", WITHIN_S)
    for number in range(2):
        rig.send(cut, number, 50)
        rig.cut_head(cut, number, 30)
    rig.set_committed(cut, 1, 10)
    worker = rig.start("worker", Options(poll_records=3, batch_messages=4))
    rig.wait_committed()
    assert {offset for topic, _, offset in worker.got() if topic == cut} == set(range(30, 50))
    assert finished(worker) == rig.spots()
    assert not repeated(worker)
    worker.wait(lambda: worker.ask("lag") == 0, "no lag is left")
    worker.stop()


def test_only_what_was_committed_by_its_producer_is_read(rig: Rig, unique: Unique) -> None:
    topic = rig.make_topic(unique("in"), 2)
    transactional = rig.producer(**{"transactional.id": unique("writer")})
    transactional.init_transactions(30)

    def write(count: int, partition: int = 0) -> None:
        transactional.begin_transaction()
        for _ in range(count):
            transactional.produce(topic, b"of a transaction", partition=partition)
        assert transactional.flush(30) == 0

    for commits in (True, False, True, False):
        write(7)
        transactional.commit_transaction(30) if commits else transactional.abort_transaction(30)
    # A marker is written after the commit has returned.
    wait_until(lambda: rig.ends()[topic, 0] == 32, "the last marker is written", WITHIN_S)
    worker = rig.start("worker", Options(poll_records=5))
    rig.wait_committed("the markers at the end are passed")
    assert worker.got() == [(topic, 0, offset) for offset in (*range(7), *range(16, 23))]
    worker.wait(lambda: worker.ask("lag") == 0, "no lag is left")

    write(3)
    rig.send(topic, 0, 2)
    rig.send(topic, 1, 1)
    worker.wait(lambda: (topic, 1, 0) in worker.done(), "what waits for no transaction is read")
    assert len(worker.got()) == 7 + 7 + 1
    transactional.commit_transaction(30)
    wait_until(lambda: rig.ends()[topic, 0] == 38, "the marker is written", WITHIN_S)
    rig.wait_committed()
    assert [offset for _, number, offset in worker.done() if number == 0][14:] == list(range(32, 37))
    assert finished(worker) == rig.spots()
    worker.stop()


def test_a_log_made_anew_is_read_from_its_start(rig: Rig, unique: Unique) -> None:
    topic = rig.make_topic(unique("in"), 1)
    rig.send(topic, 0, 30)
    rig.set_committed(topic, 0, 500)  # of the log that was there before
    worker = rig.start("worker")
    rig.wait_committed()
    assert worker.done() == [(topic, 0, offset) for offset in range(30)]
    worker.stop()


# --- batches -----------------------------------------------------------------------------------------------------


def test_kafka_takes_batches_compressed_here_and_librdkafka_reads_them(rig: Rig, unique: Unique) -> None:
    topic = rig.make_topic(unique("out"), 2)
    values = [b'{"event": "routine", "number": %d}' % number * 20 for number in range(200)] + [b"\x93\x07\xe1"]

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=rig.broker, acks="all", enable_idempotence=True) as producer:
            for first, number in ((0, 0), (100, 1), (50, 0), (150, 1), (200, 0)):  # a sequence for each partition
                batch = GzipBatchBuilder(1024 * 1024)
                for at, value in enumerate(values[first : first + 50], first):
                    batch.append(timestamp=1_700_000_000_000 + at, key=b"%d" % at, value=value, headers=[("h", b"x")])
                await (await producer.send_batch(batch, topic, partition=number))

    asyncio.run(asyncio.wait_for(send(), WITHIN_S))
    reader = Consumer({"bootstrap.servers": rig.broker, "group.id": unique("reader"), "check.crcs": True})
    found = []
    for number, count in ((0, 101), (1, 100)):
        reader.assign([TopicPartition(topic, number, 0)])
        wait_until(partial(_read_some, reader, found, len(found) + count), "all is read", WITHIN_S)
    reader.close()
    order = [*range(100), 200, *range(100, 200)]
    expected = [(1_700_000_000_000 + at, b"%d" % at, values[at], [("h", b"x")]) for at in order]
    assert found == expected


def _read_some(reader: Consumer, found: list[tuple[object, ...]], until: int) -> bool:
    for message in reader.consume(500, 0.5):
        assert message.error() is None, message.error()
        found.append((message.timestamp()[1], message.key(), message.value(), message.headers()))
    return len(found) >= until
