"""The training agent: cycle records wake the runner, which works from SQL; beside it champions are watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import faust

from agents.consume import Handler, consume
from agents.flow import Flow
from agents.routing.message import InboundMessage
from agents.training.champion_watch import ChampionWatch
from agents.training.context import StageContext
from agents.training.runner import CycleRunner
from app.topics import CYCLES

logger = logging.getLogger(__name__)

OpenContext = Callable[[], AbstractAsyncContextManager[StageContext]]


class Waker:
    """A record is acknowledged at once: the row it speaks of exists already, and waiting cycles run from SQL."""

    def __init__(self, runner: CycleRunner) -> None:
        self.runner = runner

    async def prepare(self, messages: Sequence[InboundMessage]) -> int:
        """Count the records."""
        return len(messages)

    async def finish(self, prepared: int) -> None:
        """Wake the runner."""
        if prepared:
            self.runner.wake()


def register(app: faust.App, open_context: OpenContext, flow: Flow | None = None) -> None:
    """Declare the agent on `app`. Nothing connects before the worker starts."""

    @asynccontextmanager
    async def open_handler() -> AsyncIterator[Handler]:
        async with open_context() as context:
            runner = CycleRunner(context)
            tasks = (
                asyncio.create_task(runner.run(), name="cycle-runner"),
                asyncio.create_task(ChampionWatch(context, context.holder).run(), name="champion-watch"),
            )
            try:
                yield Waker(runner)
            finally:
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    consume(app, "training", (CYCLES.name,), open_handler, flow=flow)
