"""What an agent's loop has in hand, how far behind it is, and how late: read at scrape time, from other threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from threading import Lock
from typing import Any, Protocol

from agents.histogram import Histogram

DELAY_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class Source(Protocol):
    """What `app.transport.ChunkConsumer` tells. Every method may be called from any thread."""

    def lag(self) -> Mapping[Any, int]:
        """How many offsets lie between what is committed and the end, by assigned partition (`topic`, `partition`)."""

    def open_records(self) -> int:
        """How many fetched records are not yet done."""

    def committed(self) -> Mapping[Any, tuple[int, int]]:
        """What is committed, and the end, by assigned partition."""


class Fetched(Protocol):
    """Records of one partition, in order, whose `timestamp` is Kafka's, in milliseconds since the Unix epoch."""

    records: Sequence[Any]


class Flow:
    """One agent's loop, as metrics see it. The loop writes a few figures a batch; `snapshot` may run anywhere."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = Lock()
        self._source: Source | None = None
        self._batches: Sized = ()
        self._last_commit = clock()
        self._oldest = Histogram(DELAY_BOUNDS_S)
        self._newest = Histogram(DELAY_BOUNDS_S)

    def begin(self, source: Source, batches: Sized) -> None:
        """The loop runs: it reads `source`, and has `batches` in hand (a live collection)."""
        self._source = source
        self._batches = batches

    def committed(self) -> None:
        """Offsets of finished batches were committed."""
        self._last_commit = self._clock()

    def finished(self, chunks: Iterable[Fetched]) -> None:
        """A batch is safe elsewhere: note how long ago its oldest and its newest record were written to Kafka.

        A chunk's first record is taken for its oldest and its last for its newest; where producers' clocks disagree
        that is off by as much. A record from the future is no seconds late. Records without a timestamp do not count.
        """
        ends = [(chunk.records[0].timestamp, chunk.records[-1].timestamp) for chunk in chunks]
        told = [(first, last) for first, last in ends if first and last and first > 0]
        if not told:
            return
        now = self._clock()
        oldest, newest = min(first for first, _ in told), max(last for _, last in told)
        with self._lock:
            self._oldest.observe(max(0.0, now - oldest / 1000.0))
            self._newest.observe(max(0.0, now - newest / 1000.0))

    def positions(self) -> dict[Any, tuple[int, int]]:
        """(committed offset, end) by partition; what `CommitWatch` looks at."""
        return {} if self._source is None else dict(self._source.committed())

    def snapshot(self) -> dict[str, Any]:
        """Return `lag` by topic and partition, `records_open`, `batches_in_hand`, `delay` in seconds,
        and `last_commit` in Unix time.
        """
        lag: dict[str, dict[str, int]] = {}
        source = self._source
        if source is not None:
            for place, behind in source.lag().items():
                lag.setdefault(place.topic, {})[str(place.partition)] = behind
        with self._lock:
            delay = {"oldest": self._oldest.snapshot(), "newest": self._newest.snapshot()}
        return {
            "lag": lag,
            "records_open": 0 if source is None else source.open_records(),
            "batches_in_hand": len(self._batches),
            "delay": delay,
            "last_commit": self._last_commit,
        }
