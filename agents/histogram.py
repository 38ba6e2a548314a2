"""Counts of observations by size, as Prometheus' histograms have them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any


class Histogram:
    """Counts observations by upper bound. Whoever observes and reads in different threads brings a lock.

    Args:
        bounds: inclusive upper bounds, rising; a last one without bound is added.
    """

    __slots__ = ("_counts", "_exemplars", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"bounds={bounds!r}: give at least one, each above the one before")
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: dict[int, tuple[str, float, float]] = {}
        self._sum = 0.0

    def observe(self, value: float, trace_id: str | None = None) -> None:
        """Count one observation; with a `trace_id` it is its bucket's exemplar until another comes."""
        bucket = bisect_left(self.bounds, value)
        self._counts[bucket] += 1
        self._sum += value
        if trace_id is not None:
            self._exemplars[bucket] = (trace_id, value, time.time())

    def snapshot(self) -> dict[str, Any]:
        """Return `count`, `sum`, and under `buckets` how many observations were at most each bound, by its text.

        `exemplars`, where there are any: by the same texts, trace id, value and Unix time.
        """
        below = list(accumulate(self._counts))
        names = (*map(str, self.bounds), "+Inf")
        found: dict[str, Any] = {"count": below[-1], "sum": self._sum, "buckets": dict(zip(names, below, strict=True))}
        if self._exemplars:
            found["exemplars"] = {names[bucket]: told for bucket, told in self._exemplars.items()}
        return found
