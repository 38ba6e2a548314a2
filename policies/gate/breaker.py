"""A circuit breaker: a service that fails again and again is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Closed, it lets calls through. `threshold` failures in a row open it for `reset_seconds`; then one call at a
    time is let through as a trial, whose success closes it. For use on one event loop.
    """

    def __init__(self, threshold: int, reset_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        if threshold < 1 or reset_seconds < 0:
            raise ValueError(
                f"a breaker needs threshold >= 1 and reset_seconds >= 0, not {threshold} and {reset_seconds}"
            )
        self._threshold = threshold
        self._reset_seconds = reset_seconds
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._on_trial = False

    @property
    def is_open(self) -> bool:
        """Whether calls are being refused, but for trials."""
        return self._opened_at is not None

    def admit(self) -> bool:
        """Whether a call may be made now. An admitted call ends in `succeeded`, `failed` or `abandoned`."""
        if self._opened_at is None:
            return True
        if self._on_trial or self._clock() - self._opened_at < self._reset_seconds:
            return False
        self._on_trial = True
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._opened_at = None
        self._on_trial = False

    def failed(self) -> None:
        self._failures += 1
        self._on_trial = False
        if self._failures >= self._threshold:
            self._opened_at = self._clock()

    def abandoned(self) -> None:
        """The call was cancelled and says nothing of the service."""
        self._on_trial = False
