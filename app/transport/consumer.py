"""A Faust transport over aiokafka that hands agents chunks: an event for all that a fetch brought of a partition.

Faust spends 60-100 us on each event, so for topics of single records that is nearly all a worker does. What Faust
keeps by record (acknowledged offsets, gaps, the offset read last) is replaced by `chunks.Positions`, because with
chunks its own accounting would commit over holes. The contract, and what was read in Faust 0.15.3, is in `README.md`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Set
from typing import Any

from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from faust.types.tuples import ack_lock
from mode.utils.futures import notify

from app.transport.chunks import Chunk, Positions
from app.transport.fetching import At, ChunkConsumerThread, Fetched

log = logging.getLogger(__name__)

_OF_THE_REQUEST_TIMEOUT = 0.9


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
        fetched, active = await self._wait_next_records(timeout)
        if not isinstance(fetched, Fetched) or self.should_stop:
            return
        left = set()
        for tp, records in fetched.items():
            at = fetched.at[tp]
            if not records:
                continue
            if at.era != self._thread.era(tp):
                left.add(tp)  # it was moved meanwhile, and is read from there on
            elif self._wanted(tp, active):
                yield tp, self._take(tp, records, at)
            else:
                left.add(tp)
                # The client's position is past records that will not be delivered: they are read again.
                await self._thread.give_back(tp, fetched)
        for tp, at in fetched.at.items():
            if tp not in left:
                self._begin(tp, at.era, at.position)
                self.positions.read_to(tp, at.era, at.position)

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: a full stream holds the fetcher back as it is. Faust would leave the partition out of fetches, and
        wait up to a second for the others, or for none, though there is room again after milliseconds.
        """

    def _wanted(self, tp: TP, active: Set[TP] | None) -> bool:
        return self.flow_active and (active is None or tp in active)

    def _take(self, tp: TP, records: list[Any], at: At) -> ConsumerMessage:
        first = records[0].offset
        self._begin(tp, at.era, first)
        chunk = Chunk(records)
        self.positions.add(tp, at.era, chunk)
        # Faust drops what begins before this, and takes what begins later for a gap; here neither is so.
        self._read_offset[tp] = first
        self.app.monitor.track_tp_end_offset(tp, at.end)
        return self._chunk_message(tp, chunk)

    def _begin(self, tp: TP, era: int, offset: int) -> None:
        """Let commits follow a partition that has moved back."""
        committed = self._committed_offset[tp]
        if self.positions.era(tp) != era and committed is not None and offset < committed:
            log.warning("%s is read from %d on again, and was committed up to %d", tp, offset, committed)
            self._committed_offset[tp] = offset

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

    # --- acknowledging -------------------------------------------------------------------------------------------

    def ack(self, message: ConsumerMessage) -> bool:
        """Mark a message's chunk as done; False if it was already, or never reached an agent."""
        with ack_lock:
            # Faust's stream in plain Python acknowledges what it skips during a rebalance; that is not yet tracked.
            if message.acked or not message.tracked:
                return False
            message.acked = True
            message.value.done = True
            self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)
        return True

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is done; False if there was nothing to commit, or another commit took it along."""
        # One that is under way may have begun before the latest was done; Faust would leave that to the next.
        await self.maybe_wait_for_commit_to_finish()
        return bool(await super().commit(topics, start_new_transaction))

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self.positions.places() if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        # Between a move and the first fetch after it, what is known here is of the time before.
        return self.positions.committable(tp) if self.positions.era(tp) == self._thread.era(tp) else None

    # --- moving --------------------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Go back to what is committed, on all partitions.

        Raises:
            TimeoutError: Kafka did not answer. Faust, which gives up a little later without a word, would never
                resume.
        """
        async with asyncio.timeout(_OF_THE_REQUEST_TIMEOUT * self.app.conf.broker_request_timeout):
            await super().perform_seek()

    async def _seek(self, partition: TP, offset: int) -> None:
        # Faust moves the client from this thread, while the client's own may be taking records.
        await self.seek_wait({partition: offset})

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Wait for the chunks that are out, commit them, and forget the partitions."""
        await super().on_partitions_revoked(revoked)
        self.positions.forget(revoked)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust's search for stalled streams reads a position that is not there during a seek, and raises."""

    # --- telling -------------------------------------------------------------------------------------------------

    def lag(self) -> dict[TP, int]:
        """Return, for each assigned partition, how many offsets lie between what is committed and the end.

        May be called from any thread. A partition that has not been fetched from yet is left out.
        """
        ends = {tp: self._thread.end(tp) for tp in self._assigned()}
        committed = self._committed_offset.get
        return {tp: max(0, end - (committed(tp) or 0)) for tp, end in ends.items() if end is not None}

    def committed(self) -> dict[TP, tuple[int, int]]:
        """Return (committed offset, end) for each assigned partition that was fetched from. From any thread."""
        ends = {tp: self._thread.end(tp) for tp in self._assigned()}
        committed = self._committed_offset.get
        return {tp: (committed(tp) or 0, end) for tp, end in ends.items() if end is not None}

    def open_records(self) -> int:
        """How many fetched records are not yet done. May be called from any thread."""
        return self.positions.open_records()

    def _assigned(self) -> Iterable[TP]:
        return self.assignment() if self._thread._consumer is not None else ()


class ChunkTransport(driver.Transport):
    """Faust's aiokafka transport with `ChunkConsumer`s."""

    Consumer = ChunkConsumer


class UncommittedConsumer(ChunkConsumer):
    """Notes as committed what is acknowledged, and commits nothing: offsets are in the transactions of what came of it.

    A commit beside them could put the group back behind what another owner's transaction has committed meanwhile.
    """

    async def _commit(self, offsets: Any) -> bool:  # noqa: ARG002 - Faust's signature
        return True


class UncommittedTransport(driver.Transport):
    """Faust's aiokafka transport with `UncommittedConsumer`s."""

    Consumer = UncommittedConsumer
