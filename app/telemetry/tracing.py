"""Traces: switched on by `telemetry.otlp_endpoint`, delivered beside the work and never at its cost.

What has to be known of them without the OpenTelemetry SDK stands here; the SDK is loaded only where traces are on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agents.curation.trace import CurationTrace, Untraced
from agents.routing.trace import BatchTrace, ContextOnly
from agents.training.trace import CycleTrace
from agents.training.trace import Untraced as CycleUntraced
from app.settings.sections import TelemetrySettings
from app.store import Database

if TYPE_CHECKING:
    from app.telemetry.spans import Tracing

log = logging.getLogger(__name__)

FLUSH_WITHIN_S = 3.0
"""How long a stop waits for spans that are not delivered yet."""


class SpanCounts:
    """What became of ended spans: `ended == exported + failed + dropped + waiting`, over all tracers of a process.

    The thread that ends spans writes `ended` and `dropped`, the one that exports them the other two.
    """

    __slots__ = ("dropped", "ended", "exported", "failed")

    def __init__(self) -> None:
        self.ended = 0
        self.dropped = 0
        """The queue was full, or the worker stopped before they were delivered."""
        self.exported = 0
        self.failed = 0
        """The receiver was away or refused them."""

    @property
    def waiting(self) -> int:
        """How many ended spans are on their way to the receiver."""
        return self.ended - self.dropped - self.exported - self.failed

    def snapshot(self) -> dict[str, int]:
        """Return the counts by name, and `waiting`."""
        return {name: getattr(self, name) for name in (*self.__slots__, "waiting")}


@asynccontextmanager
async def open_tracer(settings: TelemetrySettings, service: str, counts: SpanCounts) -> AsyncIterator[Tracing | None]:
    """The process's tracer; on exit, what has ended is delivered within `FLUSH_WITHIN_S`, or counted as dropped.

    Args:
        settings: without an endpoint, or at a rate of 0, there are no spans, and None.
        service: the worker's `service.name`, which is also its consumer group.
        counts: gets what becomes of the spans.
    """
    if settings.otlp_endpoint is None or settings.trace_sample_rate == 0.0:
        yield None
        return
    from app.telemetry.spans import Tracing  # the SDK takes memory and start-up time

    tracing = Tracing(settings.otlp_endpoint, settings.trace_sample_rate, service, counts)
    try:
        yield tracing
    finally:
        await asyncio.to_thread(tracing.close, FLUSH_WITHIN_S)


@asynccontextmanager
async def open_tracing(
    settings: TelemetrySettings, service: str, counts: SpanCounts
) -> AsyncIterator[Callable[[], BatchTrace]]:
    """What begins the trace of a router's batch; see `open_tracer`."""
    async with open_tracer(settings, service, counts) as tracing:
        yield ContextOnly if tracing is None else tracing.batch


@asynccontextmanager
async def open_curation_tracing(
    settings: TelemetrySettings, service: str, counts: SpanCounts
) -> AsyncIterator[CurationTrace]:
    """What follows records through curation; see `open_tracer`."""
    async with open_tracer(settings, service, counts) as tracing:
        if tracing is None:
            yield Untraced()
            return
        from app.telemetry.curation_spans import CurationSpans

        yield CurationSpans(tracing)


@asynccontextmanager
async def open_cycle_tracing(
    settings: TelemetrySettings, service: str, counts: SpanCounts, database: Database
) -> AsyncIterator[CycleTrace]:
    """What follows cycles through their stages; see `open_tracer`."""
    async with open_tracer(settings, service, counts) as tracing:
        if tracing is None:
            yield CycleUntraced()
            return
        from app.telemetry.cycle_spans import CycleSpans

        yield CycleSpans(tracing, database)
