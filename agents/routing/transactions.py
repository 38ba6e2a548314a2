"""Exactly-once delivery: what came of a partition's messages, and their offsets, in one Kafka transaction.

Each input partition has a transactional id of its own. Kafka lets one producer write under it: whoever opens it ends
the transaction of whoever held it before, and shuts that one out. So the committed offset that is read *after* opening
stands until somebody else opens, who then shuts us out; what lies below it was handled, and is left out here. That
holds whatever the consumer group believes: a worker that comes back after its session, a message fetched twice, a
commit whose answer was lost. Nothing is aborted by hand: a transaction that fails ends with its producer, and the next
producer under the id aborts it (or completes it, if its commit had begun).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, NamedTuple, Protocol, TypeVar

from agents.routing.message import InboundMessage
from agents.routing.pipeline import Decided, Pipeline
from agents.routing.publish import OutRecord

log = logging.getLogger(__name__)

T = TypeVar("T")
Place = tuple[str, int]
"""Topic and partition of the input."""


class Lane(Protocol):
    """The one writer of what comes of an input partition."""

    max_record_bytes: int
    committed: int
    """What was committed of the partition when this lane had been opened: all below is handled."""

    async def publish(self, records: Iterable[OutRecord], next_offset: int) -> None:
        """Write the records and commit the input up to `next_offset`: all of it or nothing.

        Raises `PublisherBroken` where another has taken over, or nothing more can be written: open a new lane.
        """


OpenLane = Callable[[Place], AbstractAsyncContextManager[Lane]]
"""Opens a partition's lane, which shuts out whoever had one open."""


class _Part(NamedTuple):
    place: Place
    next_offset: int
    decided: Decided


class _Sink:
    """A lane as the pipeline sees it, for one batch."""

    def __init__(self, lane: Lane, next_offset: int) -> None:
        self.max_record_bytes = lane.max_record_bytes
        self._lane = lane
        self._next_offset = next_offset

    async def publish(self, records: Iterable[OutRecord]) -> None:
        await self._lane.publish(records, self._next_offset)


class TransactionalHandler:
    """A pipeline as the loop that reads Kafka sees it, with a transaction for each partition of a batch.

    Args:
        pipeline: decides; what it decides is published through the lanes.
        open_lane: see `OpenLane`.
        assigned: the partitions that are this worker's now. Lanes of others are closed.
    """

    def __init__(
        self, pipeline: Pipeline, open_lane: OpenLane, assigned: Callable[[], Collection[Place]] | None = None
    ) -> None:
        self._pipeline = pipeline
        self._open_lane = open_lane
        self._assigned = assigned
        self._lanes: dict[Place, tuple[Lane, AsyncExitStack]] = {}
        self._taken: dict[Place, int] = {}
        """Up to where each partition's messages were prepared since its lane was opened."""
        self._finishing: set[Place] = set()

    async def __aenter__(self) -> TransactionalHandler:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(list(self._lanes))

    async def prepare(self, messages: Sequence[InboundMessage]) -> list[_Part]:
        """Decide on a batch, by partition; raises `TooManyDeadLetters`, which stops the worker."""
        await self._close_foreign()
        groups = [(place, list(group)) for place, group in itertools.groupby(sorted(messages, key=_order), key=_place)]
        await _all(self._open(place) for place, _ in groups if place not in self._lanes)
        parts = []
        for place, group in groups:
            taken = self._taken[place]
            # By offset: one batch may hold chunks from before and after a move, with the same messages.
            new = list({message.offset: message for message in group if message.offset >= taken}.values())
            if len(new) < len(group):
                log.info("%s: %d messages below %d were handled already", place, len(group) - len(new), taken)
            if new:
                decided = await self._pipeline.decide(new)
                self._taken[place] = new[-1].offset + 1
                parts.append(_Part(place, new[-1].offset + 1, decided))
        return parts

    async def finish(self, prepared: Sequence[_Part]) -> None:
        """Publish a batch, each partition's part with its offsets; returns once Kafka has committed all of them."""
        self._finishing = {part.place for part in prepared}
        await _all(
            self._pipeline.deliver(part.decided, _Sink(self._lanes[part.place][0], part.next_offset))
            for part in prepared
        )
        self._finishing = set()

    async def _open(self, place: Place) -> None:
        stack = AsyncExitStack()
        lane = await stack.enter_async_context(self._open_lane(place))
        self._lanes[place] = (lane, stack)
        self._taken[place] = lane.committed

    async def _close_foreign(self) -> None:
        if self._assigned is not None:
            assigned = self._assigned()
            await self._close([at for at in self._lanes if at not in assigned and at not in self._finishing])

    async def _close(self, places: Iterable[Place]) -> None:
        stacks = [self._lanes.pop(place)[1] for place in places]
        await _all(stack.aclose() for stack in stacks)


async def _all(works: Iterable[Coroutine[Any, Any, T] | Awaitable[T]]) -> None:
    """Wait for all of them to end, then raise the first failure: nothing is left running behind."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _place(message: InboundMessage) -> Place:
    return (message.topic, message.partition)


def _order(message: InboundMessage) -> tuple[str, int, int]:
    return (message.topic, message.partition, message.offset)
