"""Exactly-once delivery without Kafka: what a lane's committed offset leaves out, and which lanes are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from agents.routing.message import NO_HEADERS, InboundMessage
from agents.routing.pipeline import Decided, Pipeline, RecordSink
from agents.routing.publish import OutRecord, PublisherBroken
from agents.routing.trace import ContextOnly
from agents.routing.transactions import Place, TransactionalHandler


class Broker:
    """Committed offsets and what was written with them; a lane that is not the latest of its place is fenced."""

    def __init__(self) -> None:
        self.committed: dict[Place, int] = {}
        self.written: list[bytes] = []
        self.holders: dict[Place, FakeLane] = {}
        self.open: set[Place] = set()

    @asynccontextmanager
    async def lane(self, place: Place) -> AsyncIterator[FakeLane]:
        lane = self.holders[place] = FakeLane(self, place)
        self.open.add(place)
        yield lane
        self.open.discard(place)


class FakeLane:
    max_record_bytes = 1000

    def __init__(self, broker: Broker, place: Place) -> None:
        self.committed = broker.committed.get(place, 0)
        self._broker, self._place = broker, place

    async def publish(self, records: Iterable[OutRecord], next_offset: int) -> None:
        await asyncio.sleep(0)
        if self._broker.holders[self._place] is not self:
            raise PublisherBroken("fenced")
        self._broker.written += [record.value for record in records]
        self._broker.committed[self._place] = next_offset


class Copying:
    """A pipeline that routes each message as it is."""

    async def decide(self, messages: Sequence[InboundMessage]) -> Decided:
        batch = Decided(ContextOnly())
        batch.out = [OutRecord("out", None, cast("bytes", message.value)) for message in messages]
        return batch

    async def deliver(self, batch: Decided, sink: RecordSink) -> None:
        await sink.publish(batch.out)


def handler(broker: Broker, assigned: set[Place] | None = None) -> TransactionalHandler:
    of = None if assigned is None else lambda: assigned
    return TransactionalHandler(cast("Pipeline", Copying()), broker.lane, of)


def messages(partition: int, *offsets: int) -> list[InboundMessage]:
    return [InboundMessage("in", partition, at, b"%d-%d" % (partition, at), None, NO_HEADERS) for at in offsets]


async def route(by: TransactionalHandler, given: list[InboundMessage]) -> Any:
    await by.finish(await by.prepare(given))


async def test_offsets_are_committed_with_what_came_of_each_partition() -> None:
    broker = Broker()
    async with handler(broker) as ours:
        await route(ours, [*messages(1, 5, 6), *messages(0, 0, 1, 2)])
    assert broker.committed == {("in", 0): 3, ("in", 1): 7}
    assert sorted(broker.written) == [b"0-0", b"0-1", b"0-2", b"1-5", b"1-6"]
    assert not broker.open


async def test_what_was_committed_before_the_lane_opened_is_left_out() -> None:
    broker = Broker()
    broker.committed["in", 0] = 2
    async with handler(broker) as ours:
        await route(ours, messages(0, 0, 1, 2, 3))
    assert broker.written == [b"0-2", b"0-3"]


async def test_a_message_fetched_again_while_its_batch_is_finished_is_left_out() -> None:
    broker = Broker()
    async with handler(broker) as ours:
        first = await ours.prepare(messages(0, 0, 1))
        second = await ours.prepare(messages(0, 0, 1, 2))
        await ours.finish(first)
        await ours.finish(second)
    assert broker.written == [b"0-0", b"0-1", b"0-2"]


async def test_a_message_that_is_in_a_batch_twice_is_routed_once() -> None:
    broker = Broker()
    async with handler(broker) as ours:
        await route(ours, [*messages(0, 0, 1), *messages(0, 0, 1, 2)])
    assert broker.written == [b"0-0", b"0-1", b"0-2"]


async def test_a_zombie_writes_nothing_and_after_taking_back_nothing_twice() -> None:
    broker = Broker()
    zombie, heir = handler(broker), handler(broker)
    held = await zombie.prepare(messages(0, 0, 1))
    await route(heir, messages(0, 0, 1, 2))
    with pytest.raises(PublisherBroken, match="fenced"):
        await zombie.finish(held)
    await route(handler(broker), messages(0, 0, 1, 2, 3))  # as the zombie's loop does: a new handler, the same batch
    assert broker.written == [b"0-0", b"0-1", b"0-2", b"0-3"]
    with pytest.raises(PublisherBroken, match="fenced"):
        await route(heir, messages(0, 3))


async def test_lanes_of_partitions_that_left_are_closed_once_they_are_finished() -> None:
    broker, assigned = Broker(), {("in", 0), ("in", 1)}
    async with handler(broker, assigned) as ours:
        await route(ours, [*messages(0, 0), *messages(1, 0)])
        assert broker.open == {("in", 0), ("in", 1)}
        assigned.discard(("in", 1))
        await route(ours, messages(0, 1))
        assert broker.open == {("in", 0)}
