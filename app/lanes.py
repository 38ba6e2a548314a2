"""Transactional producers for routing, one for each input partition (`agents.routing.transactions`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced

from agents.routing.message import Halt
from agents.routing.publish import BatchBuilder, OutRecord, Publisher, PublisherBroken
from agents.routing.transactions import Place
from app.connections import kafka_access
from app.kafka import make_transactional_producer, producer_id, sender_of, silence_fenced
from app.settings import Settings

log = logging.getLogger(__name__)

START_WITHIN_S = 60.0
TRANSACTION_S = 60
"""A transaction open for longer is aborted by the broker; so long can a killed worker hold readers back, if no heir
reads its partitions."""
STOP_WITHIN_S = 5.0


class NotTransactional(Halt):
    """The broker does not shut out a transactional id's former holder: nothing would be exactly once."""


class TransactionLane:
    """A producer under the transactional id of one input partition. Any failure is its end.

    Args:
        producer: started, transactional.
        place: the input partition.
        group: whose offsets are committed.
        committed: of the partition, read after the producer was started.
        new_batch: see `Publisher`.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        place: Place,
        group: str,
        committed: int,
        new_batch: Callable[[], BatchBuilder] | None,
    ) -> None:
        self.committed = committed
        self._producer = producer
        self._place = TopicPartition(*place)
        self._group = group
        # A batch that is built anew would break the transaction's sequence: what fails once fails.
        self._publisher = Publisher(producer, new_batch=new_batch, retry=False)
        self.max_record_bytes = self._publisher.max_record_bytes

    async def publish(self, records: Iterable[OutRecord], next_offset: int) -> None:
        """Write the records and commit the input up to `next_offset`, in one transaction.

        Raises:
            PublisherBroken: another has taken the partition over, or the broker did not take it within
                `TRANSACTION_S`. Whether it was committed in the end is seen by whoever opens the next lane.
        """
        work = asyncio.ensure_future(self._transact(records, next_offset))
        # aiokafka's sender ends when it is fenced, and leaves whoever waits for it waiting.
        sender = sender_of(self._producer)
        try:
            await asyncio.wait((work, sender), timeout=TRANSACTION_S, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return
        except (KafkaError, IllegalOperation, AssertionError, OSError, TimeoutError) as error:
            raise PublisherBroken(f"the transaction of {self._place} failed: {error!r}") from error
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        ended = sender.exception() if sender.done() and not sender.cancelled() else None
        if isinstance(ended, ProducerFenced):
            raise PublisherBroken(f"another worker has taken over {self._place}")
        raise PublisherBroken(f"the transaction of {self._place} did not end in {TRANSACTION_S} s: {ended!r}")

    async def _transact(self, records: Iterable[OutRecord], next_offset: int) -> None:
        await self._producer.begin_transaction()
        await self._publisher.publish(records)
        await self._producer.send_offsets_to_transaction({self._place: next_offset}, self._group)
        await self._producer.commit_transaction()


class Lanes:
    """Opens lanes for a consumer group.

    Args:
        settings: broker and compression.
        group: the consumer group, also the beginning of the transactional ids.
        new_batch: see `Publisher`.
    """

    def __init__(self, settings: Settings, group: str, new_batch: Callable[[], BatchBuilder] | None = None) -> None:
        self._settings = settings
        self._group = group
        self._new_batch = new_batch

    async def check(self) -> None:
        """Raise `NotTransactional` if the broker gives one transactional id two producers."""
        silence_fenced()
        name = f"{self._group}-check"
        async with self._started(name) as first:
            earlier = producer_id(first)
        async with self._started(name) as second:
            if producer_id(second) != earlier:
                raise NotTransactional(
                    f"the broker at {self._settings.kafka.bootstrap_servers} has no working transactions (librdkafka's "
                    "mock broker is such a one): use Apache Kafka, or set routing.delivery = at_least_once"
                )

    @asynccontextmanager
    async def open(self, place: Place) -> AsyncIterator[TransactionLane]:
        """The lane of a partition, under the id `GROUP-TOPIC-PARTITION`."""
        topic, partition = place
        async with self._started(f"{self._group}-{topic}-{partition}") as producer:
            # Only now: starting has ended what the holder before left open.
            committed = await self._committed(TopicPartition(topic, partition))
            yield TransactionLane(producer, place, self._group, committed, self._new_batch)

    async def _committed(self, place: TopicPartition) -> int:
        """The offset below which all was handled; 0 where nothing is committed, or the log was made anew."""
        consumer = AIOKafkaConsumer(**kafka_access(self._settings), group_id=self._group, enable_auto_commit=False)
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await consumer.start()
                committed: int | None = await consumer.committed(place)
                end: int = (await consumer.end_offsets([place]))[place]
        finally:
            await asyncio.wait([asyncio.ensure_future(consumer.stop())], timeout=STOP_WITHIN_S)
        if committed is not None and committed > end:
            log.warning("%s was committed up to %d and ends at %d: it is read from its start", place, committed, end)
            return 0
        return committed or 0

    @asynccontextmanager
    async def _started(self, transactional_id: str) -> AsyncIterator[AIOKafkaProducer]:
        producer = make_transactional_producer(self._settings, transactional_id, TRANSACTION_S, linger_ms=0)
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await producer.start()
            yield producer
        finally:
            await _stop(producer)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop a producer, whatever state it is in: it flushes first, which takes as long as the broker is away."""
    with contextlib.suppress(TimeoutError, KafkaError, IllegalOperation, AssertionError):
        async with asyncio.timeout(STOP_WITHIN_S):
            await producer.stop()
            return
    with contextlib.suppress(Exception):
        await producer._sender.close()
    with contextlib.suppress(Exception):
        await producer.client.close()
