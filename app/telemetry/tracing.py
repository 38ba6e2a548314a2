"""Traces: switched on by `telemetry.otlp_endpoint`, delivered beside the work and never at its cost.

What has to be known of them without the OpenTelemetry SDK stands here; the SDK is loaded only where traces are on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from agents.routing.trace import BatchTrace, ContextOnly
from app.settings.sections import TelemetrySettings

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
async def open_tracing(
    settings: TelemetrySettings, service: str, counts: SpanCounts
) -> AsyncIterator[Callable[[], BatchTrace]]:
    """What begins a batch's trace; on exit, what has ended is delivered within `FLUSH_WITHIN_S`, or counted as dropped.

    Args:
        settings: without an endpoint, or at a rate of 0, there are no spans.
        service: the worker's `service.name`, which is also its consumer group.
        counts: gets what becomes of the spans.
    """
    if settings.otlp_endpoint is None or settings.trace_sample_rate == 0.0:
        yield ContextOnly
        return
    from app.telemetry.spans import Tracing  # the SDK takes memory and start-up time

    tracing = Tracing(settings.otlp_endpoint, settings.trace_sample_rate, service, counts)
    try:
        yield tracing.batch
    finally:
        await asyncio.to_thread(tracing.close, FLUSH_WITHIN_S)
