"""The publisher's order, retries and refusals, over a producer that can be made to fail."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, OutOfOrderSequenceNumber
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as reference_murmur2
from hypothesis import given
from hypothesis import strategies as st

from agents.routing.publish import OutRecord, Publisher, PublisherBroken, murmur2, partition_for


class Batch:
    """A batch that holds three records."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes | None, list[Any]]] = []
        self.closed = False

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None, headers: list[Any]) -> object:
        assert isinstance(headers, list), "aiokafka takes nothing else"
        if len(self.records) == 3:
            return None
        self.records.append((key, value, headers))
        return object()

    def close(self) -> None:
        self.closed = True


class Producer:
    """Keeps what it acknowledged; `fault` decides about each attempt before it is taken."""

    def __init__(self, fault: Callable[[int], Exception | None] = lambda attempt: None) -> None:
        self.log: dict[tuple[str, int], list[bytes | None]] = defaultdict(list)
        self.headers: list[Any] = []
        self.attempts = 0
        self._fault = fault

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        assert batch.closed
        future = asyncio.get_running_loop().create_future()
        self.attempts += 1
        error = self._fault(self.attempts)
        if error is not None:
            future.set_exception(error)
        else:
            self.log[topic, partition] += [value for _, value, _ in batch.records]
            self.headers += [headers for *_, headers in batch.records]
            asyncio.get_running_loop().call_soon(future.set_result, None)
        return future

    async def partitions_for(self, topic: str) -> set[int]:
        return {2, 0, 1}


def records(count: int) -> list[OutRecord]:
    return [OutRecord("t", b"key-%d" % (number % 5), b"%d" % number) for number in range(count)]


def values_by_key(producer: Producer, sent: list[OutRecord]) -> dict[bytes | None, list[bytes]]:
    keys = {record.value: record.key for record in sent}
    found: dict[bytes | None, list[bytes]] = defaultdict(list)
    for values in producer.log.values():
        for value in values:
            assert value is not None
            found[keys[value]].append(value)
    return found


async def test_all_records_arrive_once_in_order_within_a_key() -> None:
    producer, sent = Producer(), records(50)
    await Publisher(producer).publish(sent)
    for key, values in values_by_key(producer, sent).items():
        assert values == [record.value for record in sent if record.key == key]
    assert sum(map(len, producer.log.values())) == 50


async def test_transient_faults_are_retried_without_loss_or_reordering() -> None:
    producer = Producer(lambda attempt: KafkaConnectionError() if attempt % 3 == 1 else None)
    publisher, sent = Publisher(producer), records(30)
    await asyncio.wait_for(publisher.publish(sent), 20)
    for key, values in values_by_key(producer, sent).items():
        assert values == [record.value for record in sent if record.key == key]
    assert sum(map(len, producer.log.values())) == 30
    assert publisher.retries > 0


async def test_a_broken_producer_is_reported() -> None:
    producer = Producer(lambda attempt: OutOfOrderSequenceNumber())
    with pytest.raises(PublisherBroken, match="OutOfOrderSequenceNumber"):
        await asyncio.wait_for(Publisher(producer).publish(records(10)), 5)


async def test_headers_travel_and_records_without_key_spread() -> None:
    producer = Producer()
    await Publisher(producer).publish([OutRecord("t", None, b"v", (("reason", b"r"),)) for _ in range(6)])
    assert producer.headers == [[("reason", b"r")]] * 6
    assert {place[1] for place in producer.log} == {0, 1, 2}


@given(st.binary(max_size=70))
def test_murmur2_is_kafkas(key: bytes) -> None:
    assert murmur2(key) == reference_murmur2(key)


@given(st.binary(min_size=1, max_size=40), st.integers(1, 12))
def test_partitions_are_aiokafkas(key: bytes, count: int) -> None:
    partitions = list(range(count))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, partitions, partitions)
