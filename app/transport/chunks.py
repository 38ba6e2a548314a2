"""Chunks of a partition, and how far it may be committed. Pure: knows neither Faust nor Kafka's client."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

Place = TypeVar("Place", bound=Hashable)


class Chunk:
    """Records of one partition, in order, that were fetched together and are acknowledged together.

    Args:
        records: as the Kafka client fetched them; at least one.

    `done` is set when everything that came of the records is safe.
    """

    __slots__ = ("done", "next_offset", "records")

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records
        self.next_offset: int = records[-1].offset + 1
        self.done = False


class Positions(Generic[Place]):
    """Which chunks of each partition are out, and the offset up to which everything is done.

    A partition's chunks are added in the order of their offsets, each where the one before ended; offsets between
    (compacted records, transaction markers) need no acknowledgement. The committable offset is the end of the last
    chunk before which none is open: there can be no hole, whatever the order in which chunks are done.

    Reading on is the only way to move. Whatever else moves a partition's position (an assignment, a seek) begins a
    new epoch: chunks of an older one may still be done, and nobody asks for them any more.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._open: dict[Place, deque[Chunk]] = {}
        self._read_to: dict[Place, int] = {}
        self._done_to: dict[Place, int] = {}

    def new_epoch(self) -> None:
        """Forget every chunk that is out."""
        self.epoch += 1
        self._open.clear()
        self._read_to.clear()
        self._done_to.clear()

    def forget(self, places: Iterable[Place]) -> None:
        """Forget what is known of partitions that are another's now."""
        for place in places:
            self._open.pop(place, None)
            self._read_to.pop(place, None)
            self._done_to.pop(place, None)

    def add(self, place: Place, chunk: Chunk) -> None:
        """A chunk goes out to an agent.

        Raises:
            ValueError: it begins before the one that went out before it ended; committing would skip records.
        """
        out = self._open.setdefault(place, deque())
        end = out[-1].next_offset if out else self._done_to.get(place, 0)
        if chunk.records[0].offset < end:
            raise ValueError(f"{place}: a chunk begins at {chunk.records[0].offset}, and the one before ended at {end}")
        out.append(chunk)

    def read_to(self, place: Place, offset: int) -> None:
        """Everything below `offset` was fetched, and what of it are records has been added."""
        self._read_to[place] = offset

    def places(self) -> list[Place]:
        """Partitions about which anything is known."""
        return list(self._open.keys() | self._read_to.keys())

    def committable(self, place: Place) -> int | None:
        """Return the offset up to which everything of a partition is done; None while nothing is."""
        out = self._open.get(place)
        while out and out[0].done:
            self._done_to[place] = out.popleft().next_offset
        if not out and place in self._read_to:
            # Nothing is out: what follows the last record (markers, compacted offsets) is done as well.
            self._done_to[place] = max(self._done_to.get(place, 0), self._read_to[place])
        return self._done_to.get(place)

    def open_records(self) -> int:
        """How many records are out and not yet done. May be called from any thread."""
        chunks = [chunk for out in list(self._open.values()) for chunk in list(out)]
        return sum(len(chunk.records) for chunk in chunks if not chunk.done)
