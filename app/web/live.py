"""`/events`: figures that pages keep up to date, as server-sent events (the HTML standard's `text/event-stream`).

One task a worker reads the store once a second for all who listen, and none while nobody does. What depends on the
caller is not in the stream: it says that something changed, and the page asks again as that caller.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator

import orjson
import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.engine import Connection

from app.store import reports
from app.store.tables import cycle_progress, cycles, examples, pending_feedback
from app.web.console.overview import summed_flow, summed_lag
from app.web.console.parts import Console
from app.web.identity import Identity, Right

logger = logging.getLogger(__name__)

EVERY_S = 1.0
MOST_LISTENERS = 100
CHECKED_EVERY = 15
"""So many events lie between two looks at whether the listener still may."""


class Ticker:
    """Reads what the stream tells, once for all listeners."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._changed = asyncio.Condition()
        self._event = b""
        self._task: asyncio.Task[None] | None = None
        self._listeners = 0
        self.closing = False

    def admit(self) -> None:
        """Raises HTTPException 503 for one listener too many."""
        if self._listeners >= MOST_LISTENERS:
            raise HTTPException(503, f"{MOST_LISTENERS} pages listen already", {"Retry-After": "30"})

    async def listen(self) -> AsyncIterator[bytes]:
        """Every new event until the worker ends."""
        self._listeners += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="live-pages")
        try:
            yield b"retry: 3000\n\n"
            while not self.closing:
                if self._event:
                    yield self._event
                async with self._changed:
                    await self._changed.wait()
        finally:
            self._listeners -= 1

    def close(self) -> None:
        """End all streams: the worker stops."""
        self.closing = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._listeners:
                told = await self._read()
                self._event = b"data: " + orjson.dumps(told) + b"\n\n"
                async with self._changed:
                    self._changed.notify_all()
                await asyncio.sleep(EVERY_S)
        finally:
            async with self._changed:
                self._changed.notify_all()

    async def _read(self) -> dict[str, object]:
        try:
            return await self._console.read(lambda connection: _told(self._console, connection))
        except HTTPException as away:
            return {"problem": away.detail}
        except Exception:
            # The task must outlive it: listeners wait for the next event.
            logger.exception("the live pages' figures could not be read")
            return {"problem": "the figures cannot be read; see the worker's log"}


def add(app: FastAPI, console: Console) -> Ticker:
    """Add the stream; returns what ends it."""
    ticker = Ticker(console)
    may = Depends(console.guard.needs(Right.VIEW))

    @app.get("/events", response_class=StreamingResponse)
    async def events(request: Request, identity: Identity = may) -> StreamingResponse:
        """Figures and a mark of what changed, each second, as server-sent events."""

        ticker.admit()

        async def stream() -> AsyncIterator[bytes]:
            sent = 0
            async for event in ticker.listen():
                yield event
                sent += 1
                if sent % CHECKED_EVERY == 0 and not await _still_may(console, request, identity):
                    return

        return StreamingResponse(stream(), media_type="text/event-stream")

    return ticker


async def _still_may(console: Console, request: Request, identity: Identity) -> bool:
    """Whether the listener's credential is still good: a token may have been taken back, or have run out."""
    try:
        now = await console.guard.identify(request)
    except HTTPException as refusal:
        return refusal.status_code >= 500
    return now is not None and now.key == identity.key


def _told(console: Console, connection: Connection) -> dict[str, object]:
    told = {one.worker: one for one in reports.read(connection) if not one.is_silent}
    mine = console.reporter
    told[mine.worker] = reports.WorkerReport(mine.worker, console.role.value, mine.report(), 0.0)
    flow = summed_flow(list(told.values()))
    figures: dict[str, float] = {f"records.{name}": value for name, value in flow.records.items()}
    figures |= {f"rate.{name}": round(value, 1) for name, value in flow.rates.items()}
    figures |= {f"class.{name}": value for name, value in flow.by_classification.items()}
    figures |= {f"lag.{role}": value for role, value in summed_lag(list(told.values())).items()}
    return {"figures": figures, "mark": _mark(connection)}


def _mark(connection: Connection) -> str:
    """Changes with whatever a page shows besides: cycles, their progress, examples and reviews."""
    newest = [
        connection.execute(sa.select(sa.func.max(column))).scalar_one()
        for column in (examples.c.created_at, pending_feedback.c.created_at)
    ]
    moving = connection.execute(
        sa.select(cycles.c.cycle_id, cycles.c.version).order_by(cycles.c.created_at.desc()).limit(30)
    ).all()
    at_work = connection.execute(
        sa.select(cycle_progress.c.cycle_id, cycle_progress.c.stage, cycle_progress.c.done)
        .where(cycle_progress.c.cycle_id.in_([row.cycle_id for row in moving]))
        .order_by(cycle_progress.c.cycle_id)
    ).all()
    return hashlib.blake2b(repr((newest, moving, at_work)).encode(), digest_size=8).hexdigest()
