"""The Kafka client's thread: what it takes from the client, and everything that moves the client's positions.

All of it runs in the client's own loop, so records, positions and eras are told as they were at one moment.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiokafka
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from app.transport.sticky import StickyAssignor

log = logging.getLogger(__name__)

READ_COMMITTED = "read_committed"


class At(NamedTuple):
    """Where a partition stands after a fetch."""

    era: int
    """Another number whenever anything but reading moved it."""
    position: int
    """The offset that is fetched next."""
    end: int | None
    """The high watermark, once a fetch has told it."""


class Fetched(dict[Any, Any]):
    """Records by partition, and where each assigned partition stood right after they were taken."""

    at: Mapping[Any, At]


class ChunkConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # Faust is untyped here
    """Reads only what producers have committed, and numbers the eras in which a partition is read on and on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._numbers = itertools.count(1)
        self._eras: dict[Any, int] = {}
        self._read_to: dict[Any, int] = {}
        self._assigned: Any = None
        """The client's assignment to which the eras belong: an object of its own after each rebalance."""
        super().__init__(*args, **kwargs)

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust offers this only together with its own exactly_once. It takes effect when the consumer starts.
        consumer._isolation_level = READ_COMMITTED
        # Faust has no setting for it where an app has no tables.
        consumer._partition_assignment_strategy = (StickyAssignor(),)
        return consumer

    async def on_thread_stop(self) -> None:
        """Stop the client, whatever its own tasks were at.

        aiokafka cancels its fetches as it stops. One that was just waiting because its connection had broken hands the
        cancellation on, though nobody cancelled us; Faust would then never learn that this thread has ended, and the
        worker would wait for it until it is killed.
        """
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            await self._consumer._client.close()

    # --- asked from any thread -----------------------------------------------------------------------------------

    def era(self, tp: TP) -> int | None:
        """The era in which a partition is read now; None where it is not assigned, or not looked at yet."""
        return self._eras.get(tp) if self._assignment() is self._assigned else None

    def end(self, tp: TP) -> int | None:
        """The high watermark that the latest fetch has told; None where none has."""
        assignment = self._assignment()
        state = assignment.state_value(tp) if assignment is not None else None
        return None if state is None else state.highwater

    def _assignment(self) -> Any:
        subscription = self._consumer._subscription.subscription if self._consumer is not None else None
        return None if subscription is None else subscription.assignment

    # --- reading -------------------------------------------------------------------------------------------------

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Fetched:
        fetched = Fetched(await super()._fetch_records(consumer, *args, **kwargs))
        # Without an await in between: no seek or rebalance comes between the records and where they ended.
        fetched.at = self._look(fetched)
        return fetched

    def _look(self, records: Mapping[Any, Any]) -> dict[Any, At]:
        assignment = self._see_assignment()
        found: dict[Any, At] = {}
        for tp in assignment.tps if assignment is not None else ():
            state = assignment.state_value(tp)
            if not state.has_valid_position:
                continue
            taken = records.get(tp)
            begun = taken[0].offset if taken else state.position
            if begun < self._read_to.get(tp, 0):
                # The broker had no longer what was asked for (a log made anew or cut): the client begins at its start.
                log.warning("%s goes back from %d to %d", tp, self._read_to[tp], begun)
                self._begin(tp)
            self._read_to[tp] = state.position
            found[tp] = At(self._eras[tp], state.position, state.highwater)
        return found

    async def give_back(self, tp: TP, fetched: Fetched) -> None:
        """Have the fetched records of a partition read again, unless it was moved since."""
        await self.call_thread(self._give_back, tp, fetched)

    async def _give_back(self, tp: TP, fetched: Fetched) -> None:
        era, position, _ = fetched.at[tp]
        if self.era(tp) != era:
            return
        state = self._assigned.state_value(tp)
        if state.has_valid_position and state.position == position:
            self._ensure_consumer().seek(tp, fetched[tp][0].offset)
            self._read_to[tp] = state.position

    # --- moving --------------------------------------------------------------------------------------------------

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go back to what is committed; where nothing is, to the beginning (aiokafka would stay where it is)."""
        found: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return found

    async def _seek_to_committed(self) -> dict[Any, int | None]:
        consumer = self._ensure_consumer()
        committed: dict[Any, int | None] = {}
        for tp in consumer.assignment():
            committed[tp] = offset = await consumer.committed(tp)
            self._begin(tp)
            if offset is None:
                await consumer.seek_to_beginning(tp)
            else:
                consumer.seek(tp, offset)
        return committed

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:
        # Nothing is awaited before the client has been moved.
        self._begin(*partitions)
        await super()._seek_wait(consumer, partitions)

    async def seek_to_beginning(self, *partitions: Any) -> None:
        """Go to the first offset there is."""
        await self.call_thread(self._seek_to_beginning, *partitions)

    async def _seek_to_beginning(self, *partitions: Any) -> None:
        self._begin(*partitions)
        await self._ensure_consumer().seek_to_beginning(*partitions)

    def _begin(self, *tps: Any) -> None:
        self._see_assignment()
        for tp in tps:
            self._eras[tp] = next(self._numbers)
            self._read_to.pop(tp, None)

    def _see_assignment(self) -> Any:
        assignment = self._assignment()
        if assignment is not self._assigned:
            # In this order: whoever asks in between finds no era.
            self._eras = {}
            self._assigned = assignment
            self._read_to = {}
            self._eras = {tp: next(self._numbers) for tp in assignment.tps} if assignment is not None else {}
        return assignment
