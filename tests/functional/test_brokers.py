"""What the stages rely on from a broker, on the mock cluster and on Apache Kafka alike."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.mock_broker import PARTITIONS, MockBroker
from app.embedded.run_directory import RunDirectory

WITHIN_S = 60.0

# A group member that takes one record, commits, says what it read, and keeps its partitions until it is killed.
MEMBER = """
import asyncio, sys
from aiokafka import AIOKafkaConsumer
async def main():
    member = AIOKafkaConsumer(sys.argv[3], bootstrap_servers=sys.argv[1], group_id=sys.argv[2],
        auto_offset_reset="earliest", enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=500)
    await member.start()
    record = await member.getone()
    await member.commit()
    print(record.value.decode(), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""

Broker = MockBroker | KafkaBroker
Unique = Callable[[str], str]


async def produce(broker: Broker, topic: str, values: list[bytes], partition: int = 0) -> None:
    """Send in order, as the router does: idempotent, all replicas, compressed; returns once all are acknowledged."""
    producer = AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True, compression_type="gzip"
    )
    async with producer:
        sent = [await producer.send(topic, value, key=b"key", partition=partition) for value in values]
        await asyncio.wait_for(asyncio.gather(*sent), WITHIN_S)


def consumer(broker: Broker, group: str, *topics: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        *topics,
        bootstrap_servers=broker.bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=6000,
        heartbeat_interval_ms=500,
    )


async def read(source: AIOKafkaConsumer, count: int) -> list[ConsumerRecord[bytes, bytes]]:
    """The next `count` records."""
    return [await asyncio.wait_for(source.getone(), WITHIN_S) for _ in range(count)]


async def test_records_keep_value_key_headers_time_and_order(broker: Broker, unique: Unique) -> None:
    topic = unique("records")
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True)
    async with producer:
        for number in range(20):
            await asyncio.wait_for(
                producer.send_and_wait(
                    topic,
                    b"value %d" % number,
                    key=b"key",
                    partition=0,
                    headers=[("reason", b"none")],
                    timestamp_ms=1_700_000_000_000 + number,
                ),
                WITHIN_S,
            )
    async with consumer(broker, unique("group"), topic) as source:
        records = await read(source, 20)
    assert [record.value for record in records] == [b"value %d" % number for number in range(20)]
    assert [record.offset for record in records] == list(range(20))
    assert [record.timestamp for record in records] == [1_700_000_000_000 + number for number in range(20)]
    assert {(record.key, record.headers) for record in records} == {(b"key", (("reason", b"none"),))}


async def test_a_group_goes_on_where_it_committed(broker: Broker, unique: Unique) -> None:
    topic, group = unique("resume"), unique("group")
    values = [b"%d" % number for number in range(30)]
    await produce(broker, topic, values)
    place = TopicPartition(topic, 0)
    async with consumer(broker, group, topic) as first:
        records = await read(first, 20)
        await first.commit({place: records[9].offset + 1})
    async with consumer(broker, group, topic) as second:
        assert await second.committed(place) == 10
        assert [record.value for record in await read(second, 20)] == values[10:]
    async with consumer(broker, unique("other"), topic) as other:
        assert [record.value for record in await read(other, 30)] == values


async def test_a_member_that_was_killed_is_replaced(broker: Broker, unique: Unique) -> None:
    topic, group = unique("replace"), unique("group")
    for partition in range(PARTITIONS):
        await produce(broker, topic, [b"%d" % partition], partition)
    arguments = (sys.executable, "-c", MEMBER, broker.bootstrap, group, topic)
    member = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    assert member.stdout is not None
    first = await asyncio.wait_for(member.stdout.readline(), WITHIN_S)
    member.kill()
    await member.wait()
    async with consumer(broker, group, topic) as replacement:
        await _until(lambda: len(replacement.assignment()) == PARTITIONS)
        rest = {record.value for record in await read(replacement, PARTITIONS - 1)}
    assert {first.strip(), *rest} == {b"%d" % partition for partition in range(PARTITIONS)}


@pytest.mark.kafka
async def test_two_members_share_the_partitions_and_one_takes_over(real_kafka: KafkaBroker, unique: Unique) -> None:
    # The mock cluster serves one member a group: see its module.
    topic, group = unique("share"), unique("group")
    for partition in range(PARTITIONS):
        await produce(real_kafka, topic, [b"first"], partition)
    async with consumer(real_kafka, group, topic) as stays:
        async with consumer(real_kafka, group, topic) as leaves:
            await _until(lambda: len(stays.assignment()) == len(leaves.assignment()) == PARTITIONS // 2)
            assert stays.assignment().isdisjoint(leaves.assignment())
        await _until(lambda: len(stays.assignment()) == PARTITIONS)


async def test_a_message_of_the_largest_size_passes(broker: Broker, unique: Unique) -> None:
    topic, size = unique("large"), 4 * 1024 * 1024
    value = os.urandom(size)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=2 * size) as producer:
        await asyncio.wait_for(producer.send_and_wait(topic, value, partition=0), WITHIN_S)
    async with consumer(broker, unique("group"), topic) as source:
        (record,) = await read(source, 1)
    assert record.value == value


async def test_topics_can_be_declared_where_the_broker_says_so(broker: Broker, unique: Unique) -> None:
    topic = unique("declared")
    if broker.declares_topics:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(topic, 7, 1)])
        await admin.close()
    else:
        await produce(broker, topic, [b"first use"])
    async with consumer(broker, unique("group"), topic) as source:
        partitions = source.partitions_for_topic(topic)
    assert partitions is not None
    assert len(partitions) == (7 if broker.declares_topics else PARTITIONS)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - what changes the assignment tells nobody
            await asyncio.sleep(0.05)


@pytest.fixture
def own_kafka(tmp_path: Path, real_kafka: KafkaBroker) -> Iterator[KafkaBroker]:
    """A Kafka that the test may kill. `real_kafka` skips it where there is none."""
    with RunDirectory.create(tmp_path / "run") as run:
        broker = KafkaBroker(run, default_cache(os.environ), heap_mb=256)
        broker.start()
        yield broker
        broker.stop()


@pytest.mark.kafka
async def test_a_killed_kafka_comes_back_with_records_and_offsets(own_kafka: KafkaBroker, unique: Unique) -> None:
    topic, group, bootstrap = unique("kept"), unique("group"), own_kafka.bootstrap
    values = [b"%d" % number for number in range(100)]
    await produce(own_kafka, topic, values)
    async with consumer(own_kafka, group, topic) as before:
        await before.commit({TopicPartition(topic, 0): (await read(before, 40))[-1].offset + 1})
    await asyncio.to_thread(own_kafka.kill)
    await asyncio.to_thread(own_kafka.start)
    assert own_kafka.bootstrap == bootstrap
    await produce(own_kafka, topic, [b"after"])
    async with consumer(own_kafka, group, topic) as after:
        assert [record.value for record in await read(after, 61)] == [*values[40:], b"after"]


@pytest.mark.kafka
async def test_a_producer_and_a_consumer_live_through_a_crash_of_kafka(own_kafka: KafkaBroker, unique: Unique) -> None:
    topic = unique("through")
    producer = AIOKafkaProducer(bootstrap_servers=own_kafka.bootstrap, acks="all", enable_idempotence=True)
    async with producer, consumer(own_kafka, unique("group"), topic) as source:
        await asyncio.wait_for(producer.send_and_wait(topic, b"before", partition=0), WITHIN_S)
        assert [record.value for record in await read(source, 1)] == [b"before"]
        await source.commit()
        await asyncio.to_thread(own_kafka.kill)
        waiting = await producer.send(topic, b"meanwhile", partition=0)
        await asyncio.to_thread(own_kafka.start)
        await asyncio.wait_for(waiting, WITHIN_S)
        assert [record.value for record in await read(source, 1)] == [b"meanwhile"]


@pytest.mark.kafka
async def test_two_kafkas_side_by_side_do_not_see_each_other(
    own_kafka: KafkaBroker, real_kafka: KafkaBroker, unique: Unique
) -> None:
    topic = unique("apart")
    assert own_kafka.bootstrap != real_kafka.bootstrap
    await produce(own_kafka, topic, [b"own"])
    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka.bootstrap)
    await admin.start()
    assert topic not in await admin.list_topics()
    await admin.close()
