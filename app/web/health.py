"""`/health/live` and `/health/ready`: whether to restart this worker, and whether to send it requests.

Faust consumers are known to die quietly: the process lives, its web answers, and nothing is read any more. So alive is
who commits while there is something to commit; a worker that waits for Redis or Kafka in good order stands still just
the same, and a restart does no harm then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException
from sqlalchemy.engine import Connection

from app.roles import Role
from app.store.database import DatabaseUnavailable
from app.web.console.parts import Console

STORE_WITHIN_S = 3.0
_NEEDS_STORE = frozenset({Role.CURATE, Role.TRAIN, Role.MONITOR})


class CommitWatch:
    """Tells for how long nothing was committed while there was lag.

    `ends` and `committed` by partition: what `Flow.positions` gives. Ask it now and then; it looks at each asking.
    """

    def __init__(self, stalled_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stalled_s = stalled_s
        self._clock = clock
        self._seen: dict[Any, tuple[int, float]] = {}

    def stalled(self, positions: Mapping[Any, tuple[int, int]]) -> dict[Any, float]:
        """The partitions whose committed offset has not moved for too long though the end lies beyond; seconds."""
        now = self._clock()
        self._seen = {place: self._seen.get(place, (-1, now)) for place in positions}
        found = {}
        for place, (committed, end) in positions.items():
            before, since = self._seen[place]
            if committed != before or committed >= end:
                self._seen[place] = (committed, now)
            elif now - since > self._stalled_s:
                found[place] = now - since
        return found


def add(app: FastAPI, console: Console) -> None:
    """Add both; they ask for no token and tell little."""
    state = console.state
    watch = CommitWatch(console.settings.web.stalled_s)

    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """Whether the worker commits what it reads; 503 where it has not for `web.stalled_s` though there is lag."""
        stalled = watch.stalled(state.flow.positions()) if state.flow is not None else {}
        if stalled:
            longest = max(stalled.values())
            raise HTTPException(503, f"nothing is committed on {len(stalled)} partitions since {longest:.0f} s")
        return {"status": "live"}

    @app.get("/health/ready", tags=["health"])
    async def ready() -> dict[str, str]:
        """Whether the worker is up and what it works with answers; Faust starts the web once its agents run."""
        if console.role in _NEEDS_STORE:
            try:
                async with asyncio.timeout(STORE_WITHIN_S):
                    await console.read(_ask)
            except (TimeoutError, HTTPException, sa.exc.SQLAlchemyError, DatabaseUnavailable):
                raise HTTPException(503, "the store does not answer") from None
        return {"status": "ready"}


def _ask(connection: Connection) -> None:
    connection.execute(sa.text("SELECT 1"))
