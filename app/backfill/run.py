"""One run of a backfill: from where its name's progress is, batch by batch, to the end or a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

from agents.routing.counters import Counters
from agents.routing.pipeline import Pipeline
from app.backfill.progress import Progress, ProgressFile
from app.backfill.source import Ranges, Source, Step
from app.store.database import utc_now

OpenPipeline = Callable[[Counters], AbstractAsyncContextManager[Pipeline]]
Watch = Callable[[Progress], None]
"""Told of the progress after every batch."""


@dataclass(frozen=True)
class Pace:
    """How much at a time: messages a batch, messages in this run at most, records a second at most."""

    batch_messages: int = 1000
    limit: int | None = None
    rate: float | None = None


async def run_backfill(
    source: Source, file: ProgressFile, open_pipeline: OpenPipeline, pace: Pace, watch: Watch
) -> Progress:
    """Route what is left of a backfill. A batch counts once it is acknowledged and its progress is on the disk.

    Killed between the two, the next run routes that batch again: as a redelivery, with the same owners.

    Raises:
        Halt: nearly all of it would be dead letters; nothing of that batch is taken.
        ProgressRefused: the name is of another backfill, or another run has it.
        SourceUnreadable, and what `app.history` raises: reading cannot go on; progress is kept.
        PublisherBroken, KafkaError: publishing cannot go on; progress is kept.
    """
    with file.held():
        progress = file.load(source.describe())
        if progress is None:
            progress = Progress.begin(file.name, source.describe(), await source.ranges())
            file.save(progress)
        if progress.finished_at is None and await _route(source, file, open_pipeline, pace, progress, watch):
            progress.finished_at = utc_now()
            file.save(progress)
    return progress


async def _route(
    source: Source, file: ProgressFile, open_pipeline: OpenPipeline, pace: Pace, progress: Progress, watch: Watch
) -> bool:
    """Route until the end, and say whether that was reached: the limit may come first."""
    clock = asyncio.get_running_loop().time
    started, left = clock(), pace.limit
    counters = Counters()
    async with (
        open_pipeline(counters) as pipeline,
        aclosing(source.steps(progress.ranges, _batch_messages(pace))) as steps,
    ):
        async for whole in steps:
            step = whole if left is None else _first(whole, left)
            before = counters.snapshot()
            if step.messages:
                await pipeline.route(step.messages)
            after = counters.snapshot()
            progress.advance(len(step.messages), step.reached, before, after)
            await asyncio.to_thread(file.save, progress)
            watch(progress)
            if left is not None:
                left -= len(step.messages)
                if left == 0:
                    return _is_finished(progress.ranges)
            if pace.rate is not None:
                await asyncio.sleep(max(0.0, started + after["in"] / pace.rate - clock()))
    return True


def _batch_messages(pace: Pace) -> int:
    """No more in a batch than a second may have."""
    return pace.batch_messages if pace.rate is None else max(1, min(pace.batch_messages, int(pace.rate)))


def _first(step: Step, most: int) -> Step:
    """The step cut to its first `most` messages."""
    if len(step.messages) <= most:
        return step
    kept = step.messages[:most]
    return Step(kept, {message.partition: message.offset + 1 for message in kept})


def _is_finished(ranges: Ranges) -> bool:
    return all(part.end is not None and part.next >= part.end for part in ranges.values())
