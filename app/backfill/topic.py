"""The input topic from an offset or a time on, to its end as it was at the start, or to where one says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.routing.message import InboundMessage
from app.backfill.source import Range, Ranges, Step, bounded
from app.history import STALL_S, Record, open_reader, partitions_of, stalled
from app.settings import Settings
from app.topics import AUDIT_EVENTS

_POLL_MS = 500
_RECORDS = 1000


class Bound(NamedTuple):
    """Where to begin or to end (before it): an edge of the topic, an offset, or a time in ms since the epoch."""

    kind: Literal["earliest", "latest", "offset", "time"]
    value: int = 0
    partition: int | None = None
    """The only one that is meant, where an offset names it."""

    def __str__(self) -> str:
        place = "" if self.partition is None else f"{self.partition}:"
        return self.kind if self.kind in ("earliest", "latest") else f"{self.kind} {place}{self.value}"


class PartitionAbsent(ValueError):
    """The topic has no such partition."""


class TopicSource:
    """`otel-audit-events` between two bounds; of one partition if asked for.

    Raises `ValueError` where the bounds name different partitions.
    """

    def __init__(self, settings: Settings, start: Bound, end: Bound, partition: int | None = None) -> None:
        named = {number for number in (partition, start.partition, end.partition) if number is not None}
        if len(named) > 1:
            numbers = " and ".join(map(str, sorted(named)))
            raise ValueError(f"partitions {numbers} are named at once: name one, everywhere the same")
        self._settings = settings
        self._start = start
        self._end = end
        self._partition = named.pop() if named else None
        self.gone = 0
        """Messages asked for by offset that the topic's retention has removed; known once `ranges` was asked."""

    def describe(self) -> dict[str, Any]:
        """What was asked for."""
        return {
            "topic": AUDIT_EVENTS.name,
            "from": str(self._start),
            "to": str(self._end),
            "partition": self._partition,
        }

    async def ranges(self) -> Ranges:
        """The partitions' offsets as of now. Raises `PartitionAbsent` and what `app.history` raises."""
        async with open_reader(self._settings) as reader:
            places = await partitions_of(reader, AUDIT_EVENTS.name)
            if self._partition is not None:
                places = [place for place in places if place.partition == self._partition]
                if not places:
                    raise PartitionAbsent(f"{AUDIT_EVENTS.name} has no partition {self._partition}")
            first: dict[TopicPartition, int] = await reader.beginning_offsets(places)
            last: dict[TopicPartition, int] = await reader.end_offsets(places)
            starts = await _resolve(reader, self._start, first, last)
            ends = await _resolve(reader, self._end, first, last)
        if self._start.kind == "offset":
            asked = {place: self._end.value if self._end.kind == "offset" else ends[place] for place in places}
            self.gone = sum(max(0, min(asked[place], first[place]) - self._start.value) for place in places)
        return {place.partition: Range(min(starts[place], ends[place]), ends[place]) for place in places}

    async def steps(self, ranges: Ranges, messages: int) -> AsyncGenerator[Step, None]:
        """Read all partitions side by side. Raises `HistoryStalled`."""
        left = {
            TopicPartition(AUDIT_EVENTS.name, number): part.end
            for number, part in ranges.items()
            if part.end is not None and part.next < part.end
        }
        if not left:
            return
        clock = asyncio.get_running_loop().time
        async with open_reader(self._settings) as reader:
            reader.assign(list(left))
            for place in left:
                reader.seek(place, ranges[place.partition].next)
            moved = clock()
            positions = {place: ranges[place.partition].next for place in left}
            while left:
                fetched = await reader.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS)
                for step in _steps(fetched, left, messages):
                    yield step
                    moved = clock()
                reached = {place: await reader.position(place) for place in left}
                if reached != positions:
                    moved, positions = clock(), reached
                    # Past what a reader never sees, too: a transaction's end has an offset of its own.
                    yield Step([], {place.partition: min(at, left[place]) for place, at in reached.items()})
                elif clock() - moved > STALL_S:
                    raise stalled({place: (positions[place], end) for place, end in left.items()})
                done = [place for place, at in reached.items() if at >= left[place]]
                reader.pause(*done)
                for place in done:
                    del left[place], positions[place]


def _steps(fetched: Mapping[TopicPartition, list[Record]], ends: Mapping[TopicPartition, int], most: int) -> list[Step]:
    messages = [
        _inbound(record)
        for place, records in fetched.items()
        if place in ends
        for record in records
        if record.offset < ends[place]
    ]
    return [
        Step(batch, {message.partition: message.offset + 1 for message in batch}) for batch in bounded(messages, most)
    ]


def _inbound(record: Record) -> InboundMessage:
    headers = {name.lower(): value for name, value in record.headers if value is not None}
    return InboundMessage(record.topic, record.partition, record.offset, record.value, record.key, headers)


async def _resolve(
    reader: AIOKafkaConsumer,
    bound: Bound,
    first: Mapping[TopicPartition, int],
    last: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    """The bound as an offset of every partition, within what the partition holds."""
    if bound.kind == "earliest":
        return dict(first)
    if bound.kind == "latest":
        return dict(last)
    if bound.kind == "offset":
        return {place: min(max(bound.value, first[place]), last[place]) for place in first}
    found = await reader.offsets_for_times(dict.fromkeys(first, bound.value))
    return {place: last[place] if at is None else min(at.offset, last[place]) for place, at in found.items()}
