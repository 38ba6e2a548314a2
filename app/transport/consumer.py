"""A Faust transport over aiokafka that hands agents chunks: an event for all that a fetch brought of a partition.

Faust spends 60-100 us on each event, so for topics of single records that is nearly all a worker does. What Faust
keeps by record (acknowledged offsets, gaps, the offset read last) is replaced by `chunks.Positions`, because with
chunks its own accounting would commit over holes. The contract, and what was read in Faust 0.15.3, is in `README.md`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import aiokafka
from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from faust.types.tuples import ack_lock
from mode.utils.futures import notify

from app.transport.chunks import Chunk, Positions

log = logging.getLogger(__name__)

READ_COMMITTED = "read_committed"


class Fetched(dict[Any, Any]):
    """Records by partition, and each partition's position right after they were taken."""

    positions: Mapping[Any, int]


class ChunkConsumerThread(driver.AIOKafkaConsumerThread):
    """The Kafka client's thread: reads only what producers have committed, and tells positions with the records."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust offers this only together with its own exactly_once. It takes effect when the consumer starts.
        consumer._isolation_level = READ_COMMITTED
        return consumer

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Fetched:
        fetched = Fetched(await super()._fetch_records(consumer, *args, **kwargs))
        # Without an await in between: no seek or rebalance comes between the records and these positions.
        subscription = consumer._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        states = {} if assignment is None else {tp: assignment.state_value(tp) for tp in assignment.tps}
        fetched.positions = {tp: state.position for tp, state in states.items() if state and state.has_valid_position}
        return fetched


class ChunkConsumer(driver.Consumer):
    """Delivers `ConsumerMessage`s whose value is a `Chunk` and whose offset is that of its first record."""

    _thread: ChunkConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reset = self.app.conf.consumer_auto_offset_reset
        if reset != "earliest":
            # Where nothing is committed yet, reading anew means from the beginning.
            raise ImproperlyConfigured(f"consumer_auto_offset_reset={reset!r}: use 'earliest', or records may be lost")
        self.positions: Positions[TP] = Positions()

    def _new_consumer_thread(self) -> ChunkConsumerThread:
        return ChunkConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # --- reading -------------------------------------------------------------------------------------------------

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Fetch once and yield a message for each partition that has records."""
        epoch = self.positions.epoch
        fetched, active = await self._wait_next_records(timeout)
        if fetched is None or self.should_stop:
            return
        for tp, records in fetched.items():
            if not records:
                continue
            wanted = active is None or tp in active or tp in self._buffered_partitions
            if not (wanted and self.flow_active and epoch == self.positions.epoch):
                # The client's position is past records that will not be delivered: read them again.
                log.info("%s: what was fetched at %d is read again", tp, records[0].offset)
                await self._read_again()
                return
            chunk = Chunk(records)
            self.positions.add(tp, chunk)
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            yield tp, self._chunk_message(tp, chunk)
        if epoch == self.positions.epoch:
            for tp, offset in getattr(fetched, "positions", {}).items():
                self.positions.read_to(tp, offset)

    async def _read_again(self) -> None:
        try:
            await self.perform_seek()
        except Exception:
            if self.flow_active:
                raise
            # A rebalance is under way, and seeks when it is done.
            log.info("the seek waits for the rebalance", exc_info=True)

    def _chunk_message(self, tp: TP, chunk: Chunk) -> ConsumerMessage:
        first, last = chunk.records[0], chunk.records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            first.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            [],
            b"",
            chunk,
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """A chunk begins more than one offset after the last one began, which is no gap."""

    # --- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, message: ConsumerMessage) -> bool:
        """Mark a message's chunk as done; False if it was already."""
        with ack_lock:
            if message.acked:
                return False
            message.acked = True
            message.value.done = True
            self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self.positions.places() if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self.positions.committable(tp)

    # --- moving --------------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Go back to what is committed, on all partitions."""
        self.positions.new_epoch()
        await super().perform_seek()
        # A fetch that began before the seek was done belongs to neither side of it.
        self.positions.new_epoch()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go back to what is committed; where nothing is, to the beginning (aiokafka would stay where it is)."""
        committed: Mapping[TP, int] = await super().seek_to_committed()
        fresh = [tp for tp, offset in committed.items() if not offset or offset < 0]
        if fresh:
            await self._thread.seek_to_beginning(*fresh)
        return committed

    async def seek(self, partition: TP, offset: int) -> None:
        """Go to an offset of one partition."""
        self.positions.new_epoch()
        await super().seek(partition, offset)
        self.positions.new_epoch()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Wait for the chunks that are out, commit them, and forget the partitions."""
        await super().on_partitions_revoked(revoked)
        self.positions.forget(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin anew."""
        self.positions.new_epoch()
        await super().on_partitions_assigned(assigned, generation_id)

    # --- telling -------------------------------------------------------------------------------------------------

    def lag(self) -> dict[TP, int]:
        """Return, for each assigned partition, how many offsets lie between what is committed and the end.

        May be called from any thread. A partition that has not been fetched from yet is left out.
        """
        found: dict[TP, int] = {}
        for tp in self._assigned():
            # It may be revoked meanwhile.
            with contextlib.suppress(AssertionError, AttributeError, KeyError):
                end = self.highwater(tp)
                if end is not None:
                    found[tp] = max(0, end - (self._committed_offset.get(tp) or 0))
        return found

    def open_records(self) -> int:
        """How many fetched records are not yet done. May be called from any thread."""
        return self.positions.open_records()

    def _assigned(self) -> Iterable[TP]:
        return self.assignment() if self._thread._consumer is not None else ()


class ChunkTransport(driver.Transport):
    """Faust's aiokafka transport with `ChunkConsumer`s."""

    Consumer = ChunkConsumer
