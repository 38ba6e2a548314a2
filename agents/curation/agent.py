"""The curation agent: routed events from Kafka into the store, cycles out of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import faust
import orjson

from agents.consume import OpenHandler, consume
from agents.curation.curator import CuratedRecord, Curator
from agents.flow import Flow
from agents.routing.message import InboundMessage
from app.topics import EVALUATIONS, FEEDBACK, TRIGGERS, VIOLATIONS
from models.example import Lineage

logger = logging.getLogger(__name__)

TOPICS = (VIOLATIONS.name, TRIGGERS.name, FEEDBACK.name, EVALUATIONS.name)
CHECK_INTERVAL_S = 1.0
RETENTION_INTERVAL_S = 600.0
MAX_TRACE_ID_CHARS = 64


class CurationHandler:
    """Stores batches. A record that is no routed event is counted and left: only the router writes these topics."""

    def __init__(self, curator: Curator) -> None:
        self.curator = curator

    async def prepare(self, messages: Sequence[InboundMessage]) -> list[CuratedRecord]:
        """Read the messages' events."""
        return [record for message in messages if (record := self._read(message)) is not None]

    async def finish(self, prepared: list[CuratedRecord]) -> None:
        """Store the events; returns once the store has them."""
        if prepared:
            await asyncio.to_thread(self.curator.store, prepared)

    def _read(self, message: InboundMessage) -> CuratedRecord | None:
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
            )
            return None
        trace_id = event.get("trace_id")
        lineage = Lineage(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            trace_id=trace_id if isinstance(trace_id, str) and len(trace_id) <= MAX_TRACE_ID_CHARS else None,
        )
        return CuratedRecord(event, lineage)


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
