"""The curation agent: routed events from Kafka into the store, cycles out of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import faust
import orjson

from agents.consume import OpenHandler, consume
from agents.curation.curator import CuratedRecord, Curator
from agents.curation.trace import CurationTrace, Followed, Untraced
from agents.flow import Flow
from agents.routing.message import InboundMessage, where
from agents.routing.trace import message_context
from app.topics import EVALUATIONS, FEEDBACK, TRIGGERS, VIOLATIONS
from models.example import Lineage

logger = logging.getLogger(__name__)

TOPICS = (VIOLATIONS.name, TRIGGERS.name, FEEDBACK.name, EVALUATIONS.name)
CHECK_INTERVAL_S = 1.0
RETENTION_INTERVAL_S = 600.0
MAX_TRACE_ID_CHARS = 64


@dataclass(slots=True)
class CuratedBatch:
    """What a batch of messages says, and the spans of those that are followed."""

    records: list[CuratedRecord] = field(default_factory=list)
    followed: list[Followed] = field(default_factory=list)


class CurationHandler:
    """Stores batches. A record that is no routed event is counted and left: only the router writes these topics."""

    def __init__(self, curator: Curator, trace: CurationTrace | None = None) -> None:
        self.curator = curator
        self._trace = trace or Untraced()

    async def prepare(self, messages: Sequence[InboundMessage]) -> CuratedBatch:
        """Read the messages' events."""
        batch = CuratedBatch()
        for message in messages:
            self._read(message, batch)
        return batch

    async def finish(self, prepared: CuratedBatch) -> None:
        """Store the events; returns once the store has them."""
        if prepared.records:
            await asyncio.to_thread(self.curator.store, prepared.records)
        for followed in prepared.followed:
            followed.end()

    def _read(self, message: InboundMessage, batch: CuratedBatch) -> None:
        try:
            event: Any = orjson.loads(message.value or b"")
            metadata = event["routing_metadata"]["identity"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            metadata = None
        if not isinstance(metadata, dict):
            self.curator.counts["unreadable"] += 1
            logger.error(
                "not a routed event at %s; it stays in the topic until retention ends",
                message.owner(0),
                extra=_trace_of(message),
            )
            return
        trace_id = event.get("trace_id")
        followed = self._follow(message, event)
        lineage = Lineage(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            trace_id=trace_id if isinstance(trace_id, str) and len(trace_id) <= MAX_TRACE_ID_CHARS else None,
            trace_links=None if followed is None else followed.links,
        )
        batch.records.append(CuratedRecord(event, lineage))
        if followed is not None:
            batch.followed.append(followed)

    def _follow(self, message: InboundMessage, event: Mapping[str, Any]) -> Followed | None:
        try:
            return self._trace.follow(message, event)
        except Exception as error:  # noqa: BLE001 - a fault of the tracer must not hold the record up
            logger.warning("a span was not begun: %s", where(error))
            return None


def _trace_of(message: InboundMessage) -> dict[str, str]:
    """The trace that a message names, for a log line."""
    context = message_context(message.headers) if message.headers else None
    return {} if context is None else {"trace_id": context[3:35].decode()}


def register(
    app: faust.App, open_handler: OpenHandler, curator: Callable[[], Curator], flow: Flow | None = None
) -> None:
    """Declare the agent and the watch that opens cycles on `app`.

    Nothing connects before the worker starts: `curator` is first called then, in a thread.
    """
    consume(app, "curation", TOPICS, open_handler, flow=flow)

    @app.timer(interval=CHECK_INTERVAL_S)
    async def open_cycles() -> None:
        try:
            opened = await asyncio.to_thread(lambda: curator().open_due_cycles())
        except Exception as error:  # noqa: BLE001 - the next tick asks again, for as long as it lasts
            logger.warning("cycles not checked: %s", type(error).__name__)
            return
        for cycle in opened:
            logger.info("opened a cycle for %s", cycle.model_id, extra={"cycle_id": cycle.cycle_id})

    @app.timer(interval=RETENTION_INTERVAL_S)
    async def forget_old_text() -> None:
        try:
            while await asyncio.to_thread(lambda: curator().forget_old_text()):
                pass
        except Exception as error:  # noqa: BLE001 - the next tick goes on
            logger.warning("text beyond its retention not forgotten: %s", type(error).__name__)
