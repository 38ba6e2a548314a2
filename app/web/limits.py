"""How often one caller may ask: token buckets in memory, one a caller and kind of request."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CALLERS = 10_000
"""More callers than that are not told apart for long: the one that was seen least lately is forgotten."""


class RateLimit:
    """Lets a caller ask `per_minute` times a minute, and as many at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float | None:
        """None where the caller may ask now, else in how many seconds they may."""
        left = self._left(caller)
        if left < 1.0:
            return (1.0 - left) * 60.0 / self._most
        self._keep(caller, left - 1.0)
        return None

    def is_spent(self, caller: str) -> bool:
        """Whether the caller may not ask now; counts nothing."""
        return self._left(caller) < 1.0

    def _left(self, caller: str) -> float:
        left, at = self._buckets.get(caller, (self._most, 0.0))
        return min(self._most, left + (self._clock() - at) * self._most / 60.0)

    def _keep(self, caller: str, left: float) -> None:
        self._buckets[caller] = (left, self._clock())
        self._buckets.move_to_end(caller)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
