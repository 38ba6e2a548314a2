"""The trace of an optimization cycle: a span for each stage that moved it on, under one span for the whole cycle.

A cycle outlives workers, so its trace id and the id of its own span follow from the cycle's id: whoever works on it
adds to the same trace. The span of the whole cycle is told by the worker that brings it to its end (a cycle that is
cancelled has its stages' spans alone). It, and that of the stage that takes the
snapshot, link to the spans of the events that are used. Cycles are few: every one is traced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from hashlib import blake2b

import sqlalchemy as sa
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, StatusCode, TraceFlags
from opentelemetry.trace import set_span_in_context as within

from agents.routing.message import where
from agents.training.trace import StageTrace
from app.store import Database, cycles, examples
from app.telemetry.correlation import correlated
from app.telemetry.spans import MAX_LINKS, ROOT, Tracing, remote, traceparent_of
from models.cycle import Cycle, CycleState

log = logging.getLogger(__name__)


def cycle_context(cycle_id: str) -> SpanContext:
    """The context of a cycle's own span."""
    digest = blake2b(cycle_id.encode(), digest_size=24, person=b"flywheel-cycle").digest()
    trace_id, span_id = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big")
    return SpanContext(trace_id or 1, span_id or 1, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class CycleSpans:
    """Makes the spans; a fault of the tracer changes nothing for the cycle."""

    def __init__(self, tracing: Tracing, database: Database) -> None:
        self._tracing = tracing
        self._database = database

    @contextmanager
    def stage(self, cycle: Cycle) -> Iterator[StageTrace]:
        """See `CycleTrace.stage`. A stage that only waits has no span."""
        parent = within(NonRecordingSpan(cycle_context(cycle.cycle_id)))
        span = self._tracing.tracer.start_span(f"cycle {cycle.state}", context=parent, attributes=_attributes(cycle))
        work = _Stage(span)
        with correlated(traceparent_of(span)):
            yield work
        if work.error is not None:
            span.set_status(StatusCode.ERROR, work.error)
            span.end()
        elif work.following is not None:
            self._end(span, cycle, work.following)

    def ended(self, cycle: Cycle) -> None:
        """See `CycleTrace.ended`: tell the span of the whole cycle."""
        try:
            links = self._links(cycle.cycle_id)
            begun = datetime.fromisoformat(cycle.created_at)
            with self._tracing.ids.fixed(cycle_context(cycle.cycle_id)):
                whole = self._tracing.tracer.start_span(
                    "optimization cycle",
                    context=ROOT,
                    attributes=_attributes(cycle),
                    links=links,
                    start_time=int(begun.timestamp() * 1e9),
                )
            whole.end()
        except Exception as error:  # noqa: BLE001 - the cycle goes on without its spans
            log.warning("A cycle's span was not told: %s", where(error), extra={"cycle_id": cycle.cycle_id})

    def _end(self, span: Span, cycle: Cycle, following: Cycle) -> None:
        try:
            span.set_attribute("flywheel.cycle.next_state", following.state.value)
            if cycle.state is CycleState.PREPARING:
                for link in self._links(cycle.cycle_id):
                    span.add_link(link.context)
            span.end()
        except Exception as error:  # noqa: BLE001 - as above
            log.warning("A stage's span was not told: %s", where(error), extra={"cycle_id": cycle.cycle_id})

    def _links(self, cycle_id: str) -> list[Link]:
        """To the spans of the examples in the cycle's manifest, `MAX_LINKS` at most."""
        with self._database.read() as connection:
            try:
                manifest = cycles.get_manifest(connection, cycle_id)
            except sa.exc.NoResultFound:
                return []
            ids = [member.example_id for member in (*manifest.members, *manifest.held_out)]
            found = examples.trace_links(connection, ids, MAX_LINKS)
        contexts = dict.fromkeys(context for links in found for context in links.split(","))
        return [Link(remote(context.encode())) for context in list(contexts)[:MAX_LINKS]]


class _Stage:
    """One run of a stage."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.following: Cycle | None = None
        self.error: str | None = None

    def moved(self, following: Cycle) -> None:
        """See `StageTrace.moved`."""
        self.following = following

    def failed(self, error: Exception) -> None:
        """See `StageTrace.failed`. Only the error's kind: its text may hold anything."""
        self.error = type(error).__name__


def _attributes(cycle: Cycle) -> dict[str, str]:
    return {
        "flywheel.cycle.id": cycle.cycle_id,
        "flywheel.cycle.state": cycle.state.value,
        "flywheel.cycle.trigger": cycle.trigger_type.value,
        "flywheel.model.id": cycle.model_id,
        "flywheel.domain": cycle.domain,
    }
