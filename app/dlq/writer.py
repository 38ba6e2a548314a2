"""Writing records all together or not at all, by one command at a time.

The transactional id does both: Kafka makes a transaction's records visible at once, and whoever starts under the id
ends the transaction of whoever held it before and shuts that one out for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IllegalOperation, KafkaError, ProducerFenced

from app.kafka import make_producer, make_transactional_producer, producer_id, sender_of, silence_fenced
from app.settings import Settings

TRANSACTIONAL_ID = "flywheel-dlq"
START_WITHIN_S = 60.0
TRANSACTION_S = 30
"""A transaction that is open for longer is aborted by the broker: so long can a killed command hold readers back."""
STOP_WITHIN_S = 10.0


class Fenced(RuntimeError):
    """Another run of the command has taken over. What was acknowledged stands; nothing more is written here."""

    def __init__(self) -> None:
        super().__init__(
            "another `flywheel dlq` has taken over (or this one stood still for too long), so this run ends here: "
            "what it acknowledged stands, and nothing is handled twice; see `flywheel dlq ls`, and run it again if "
            "letters are left"
        )


class NotExclusive(RuntimeError):
    """The broker has no transactions, or does not shut out their former holder."""


class WriteUncertain(RuntimeError):
    """Kafka did not answer in time: the last batch may have been written, whole, or not at all."""


class Addressed(NamedTuple):
    """A record to write; without `partition` its key decides."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


class Writer:
    """Writes batches of records, each in a transaction of its own, or without one if there are none to be had."""

    def __init__(self, producer: AIOKafkaProducer, *, transactional: bool) -> None:
        self._producer = producer
        self._transactional = transactional

    async def partitions(self, topic: str) -> set[int]:
        """The topic's partitions."""
        found: set[int] = await self._producer.partitions_for(topic)
        return found

    async def write(self, records: Iterable[Addressed]) -> None:
        """Write the records; when this returns all are acknowledged. Cancelled or failed, none of them are.

        Raises:
            Fenced: another writer has taken over.
            WriteUncertain: Kafka did not answer within `TRANSACTION_S`.
            KafkaError: the broker refuses a record.
        """
        try:
            async with asyncio.timeout(TRANSACTION_S):
                if self._transactional:
                    await self._in_transaction(records)
                else:
                    await self._send(records)
        except ProducerFenced:
            raise Fenced from None
        except TimeoutError:
            raise WriteUncertain(
                f"Kafka did not take a batch within {TRANSACTION_S} s: see to the broker, and run it again; "
                "it goes on where it stopped"
            ) from None

    async def _in_transaction(self, records: Iterable[Addressed]) -> None:
        try:
            await self._producer.begin_transaction()
            # Committing does not look at what became of the records.
            await self._send(records)
            await self._producer.commit_transaction()
        except ProducerFenced:
            raise
        except (IllegalOperation, AssertionError) as error:
            # What it says of every call after the one that its sender ended on; the reason is with the sender.
            raise (_ended_by(self._producer) or error) from None
        except BaseException:
            # Asked of a transaction that is being committed, or of a broken producer, aiokafka asserts.
            with contextlib.suppress(KafkaError, AssertionError, TimeoutError):
                async with asyncio.timeout(STOP_WITHIN_S):
                    await self._producer.abort_transaction()
            raise

    async def _send(self, records: Iterable[Addressed]) -> None:
        sent = [
            await self._producer.send(
                record.topic, record.value, key=record.key, partition=record.partition, headers=record.headers
            )
            for record in records
        ]
        await asyncio.gather(*sent)


@asynccontextmanager
async def open_writer(settings: Settings, *, transactional: bool = True) -> AsyncIterator[Writer]:
    """A writer. Once it is open no other can write any more, and what they wrote is whole.

    Without transactions there is no such promise, and a batch that is interrupted may be written in part.

    Raises:
        NotExclusive: the broker does not do what transactions are for.
        KafkaError, TimeoutError: the broker does not answer.
    """
    if not transactional:
        async with _started(make_producer(settings, linger_ms=5)) as producer:
            yield Writer(producer, transactional=False)
        return
    silence_fenced()
    async with _started(_transactional_producer(settings)) as first:
        earlier = producer_id(first)
    async with _started(_transactional_producer(settings)) as producer:
        if producer_id(producer) != earlier:
            raise NotExclusive(
                f"the broker at {settings.kafka.bootstrap_servers} gives one transactional id two producers, so it "
                "cannot keep a letter from being handled twice (librdkafka's mock broker is such a one): use Apache "
                "Kafka, or accept that with --no-transactions"
            )
        yield Writer(producer, transactional=True)


def _transactional_producer(settings: Settings) -> AIOKafkaProducer:
    return make_transactional_producer(settings, TRANSACTIONAL_ID, TRANSACTION_S, linger_ms=5)


@asynccontextmanager
async def _started(producer: AIOKafkaProducer) -> AsyncIterator[AIOKafkaProducer]:
    try:
        async with asyncio.timeout(START_WITHIN_S):
            await producer.start()
        yield producer
    finally:
        # It flushes first, which takes as long as the broker is away.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                await producer.stop()


def _ended_by(producer: AIOKafkaProducer) -> BaseException | None:
    """What ended the task that sends, if it has ended."""
    sender = sender_of(producer)
    return sender.exception() if sender.done() and not sender.cancelled() else None
