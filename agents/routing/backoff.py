"""Waiting between attempts while something is away."""

from __future__ import annotations

import asyncio
import random


class Backoff:
    """Exponential back-off with full jitter, so that workers do not come back all at once.

    Source of the formula: "full jitter", a uniform draw from 0 to min(cap, base * 2**n).
    """

    def __init__(self, base_s: float = 0.1, cap_s: float = 5.0) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self.attempts = 0

    async def wait(self) -> None:
        """Sleep before the next attempt."""
        ceiling = min(self._cap_s, self._base_s * 2 ** min(self.attempts, 16))
        self.attempts += 1
        # Never quite zero: an attempt that fails at once must not become a busy loop.
        await asyncio.sleep(max(ceiling / 10, random.uniform(0, ceiling)))  # noqa: S311 - jitter is no secret
