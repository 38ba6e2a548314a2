"""Counts of observations by size, as Prometheus' histograms have them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any


class Histogram:
    """Counts observations by upper bound. Whoever observes and reads in different threads brings a lock.

    Args:
        bounds: inclusive upper bounds, rising; a last one without bound is added.
    """

    __slots__ = ("_counts", "_sum", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"bounds={bounds!r}: give at least one, each above the one before")
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def snapshot(self) -> dict[str, Any]:
        """Return `count`, `sum`, and under `buckets` how many observations were at most each bound, by its text."""
        below = list(accumulate(self._counts))
        names = (*map(str, self.bounds), "+Inf")
        return {"count": below[-1], "sum": self._sum, "buckets": dict(zip(names, below, strict=True))}
