"""Topics read from one offset to another, outside of any consumer group: what was committed, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from app.connections import kafka_access
from app.settings import Settings

STALL_S = 60.0
"""How long Kafka may give nothing of what it says it has."""
STOP_WITHIN_S = 10.0

_POLL_MS = 500
_RECORDS = 500

Record: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"


class TopicAbsent(RuntimeError):
    """The broker does not have the topic."""


class HistoryStalled(RuntimeError):
    """Kafka does not hand out what lies before the end it named. Transient: ask again."""


@asynccontextmanager
async def open_reader(settings: Settings, *, committed: bool = True) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer that belongs to no group; with `committed`, ends and records stop at the first open transaction.

    Assign it partitions once: aiokafka can miss that it is to stop while it changes from some to others.
    Raises `aiokafka.errors.KafkaError` where the broker cannot be reached.
    """
    reader = AIOKafkaConsumer(
        **kafka_access(settings),
        isolation_level="read_committed" if committed else "read_uncommitted",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    try:
        await reader.start()
        yield reader
    finally:
        # As a task of its own: aiokafka may end it as cancelled, which this one is not.
        await asyncio.wait([asyncio.ensure_future(reader.stop())], timeout=STOP_WITHIN_S)


async def partitions_of(reader: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """The topic's partitions, sorted; uses up the reader's one assignment. Raises `TopicAbsent`."""
    if topic not in await reader.topics():
        raise TopicAbsent(f"the broker has no topic {topic}: make it with `flywheel topics create`")
    first = TopicPartition(topic, 0)
    # A consumer learns of a topic's partitions by being assigned one and asking about it; it shall fetch nothing.
    reader.assign([first])
    reader.seek(first, 0)
    reader.pause(first)
    async with asyncio.timeout(STALL_S):
        await reader.beginning_offsets([first])
    return [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]


async def read_range(settings: Settings, place: TopicPartition, start: int, end: int) -> AsyncGenerator[Record, None]:
    """The committed records of one partition from `start` on and before `end`, in order.

    Memory holds one fetch: 1 MiB, or one batch of records if that is larger.

    Raises:
        HistoryStalled: nothing came for `STALL_S` seconds.
    """
    if start >= end:
        return
    async with open_reader(settings) as reader:
        reader.assign([place])
        reader.seek(place, start)
        clock = asyncio.get_running_loop().time
        moved, position = clock(), start
        while position < end:
            batch = await reader.getmany(place, timeout_ms=_POLL_MS, max_records=_RECORDS)
            for record in batch.get(place, ()):
                if record.offset >= end:
                    return
                yield record
            # Goes past what a reader never sees, too: a transaction's end has an offset of its own.
            reached = await reader.position(place)
            if reached > position:
                moved, position = clock(), reached
            elif clock() - moved > STALL_S:
                raise stalled({place: (position, end)})


def stalled(left: Mapping[TopicPartition, tuple[int, int]]) -> HistoryStalled:
    """The error that names where reading stopped: offset and end by partition."""
    where = ", ".join(f"{place.topic} {place.partition} at {at} of {end}" for place, (at, end) in left.items())
    return HistoryStalled(
        f"Kafka handed out nothing for {STALL_S:.0f} s ({where}): see to the broker, and run it again"
    )
