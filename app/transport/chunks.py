"""Chunks of a partition, and how far it may be committed. Pure: knows neither Faust nor Kafka's client."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Reading:
    """One partition in one era."""

    era: int
    out: deque[Chunk] = field(default_factory=deque)
    read_to: int | None = None
    done_to: int | None = None


class Positions(Generic[Place]):
    """Which chunks of each partition are out, and the offset up to which everything is done.

    Within an era a partition is read on and on: its chunks are added in the order of their offsets, each where the one
    before ended; offsets between (compacted records, transaction markers) need no acknowledgement. The committable
    offset is the end of the last chunk before which none is open: there can be no hole, whatever the order in which
    chunks are done.

    Whatever else moves a partition (an assignment, a seek) begins its next era, which has a higher number: chunks of
    the one before may still be done, and nobody asks for them any more.
    """

    def __init__(self) -> None:
        self._readings: dict[Place, _Reading] = {}

    def add(self, place: Place, era: int, chunk: Chunk) -> None:
        """A chunk goes out to an agent.

        Raises:
            ValueError: it begins before the one that went out before it ended, or is of an era that is over;
                committing would skip records.
        """
        reading = self._reading(place, era)
        end = max(reading.out[-1].next_offset if reading.out else 0, reading.done_to or 0, reading.read_to or 0)
        if chunk.records[0].offset < end:
            raise ValueError(f"{place}: a chunk begins at {chunk.records[0].offset}, and all before {end} was read")
        reading.out.append(chunk)

    def read_to(self, place: Place, era: int, offset: int) -> None:
        """Everything below `offset` was fetched, and what of it are records has been added.

        Raises:
            ValueError: the era is over.
        """
        self._reading(place, era).read_to = offset

    def forget(self, places: Iterable[Place]) -> None:
        """Forget partitions that are another's now."""
        for place in places:
            self._readings.pop(place, None)

    def era(self, place: Place) -> int | None:
        """The era in which a partition is read; None where nothing is known of it."""
        reading = self._readings.get(place)
        return None if reading is None else reading.era

    def places(self) -> list[Place]:
        """Partitions about which anything is known."""
        return list(self._readings)

    def committable(self, place: Place) -> int | None:
        """Return the offset up to which everything of a partition is done; None while nothing is."""
        reading = self._readings.get(place)
        if reading is None:
            return None
        while reading.out and reading.out[0].done:
            reading.done_to = reading.out.popleft().next_offset
        if not reading.out and reading.read_to is not None:
            # Nothing is out: what follows the last record (markers, compacted offsets) is done as well.
            reading.done_to = max(reading.done_to or 0, reading.read_to)
        return reading.done_to

    def open_records(self) -> int:
        """How many records are out and not yet done. May be called from any thread."""
        chunks = [chunk for reading in list(self._readings.values()) for chunk in list(reading.out)]
        return sum(len(chunk.records) for chunk in chunks if not chunk.done)

    def _reading(self, place: Place, era: int) -> _Reading:
        reading = self._readings.get(place)
        if reading is None or reading.era < era:
            reading = self._readings[place] = _Reading(era)
        elif reading.era > era:
            raise ValueError(f"{place}: era {era} is over, {reading.era} is read")
        return reading
