"""The routing agent: connects the pipeline to Kafka through Faust. How it loses nothing stands in `agents.consume`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import faust

from agents.consume import ConsumeConfig, Handler, consume
from agents.flow import Flow
from agents.routing.message import InboundMessage
from agents.routing.pipeline import Decided, Pipeline
from agents.routing.transactions import OpenLane, Place, TransactionalHandler
from app.topics import AUDIT_EVENTS

OpenPipeline = Callable[[], AbstractAsyncContextManager[Pipeline]]
"""Opens what a pipeline needs (producer, Redis) in the running loop, and closes it on exit."""


class RoutingHandler:
    """A pipeline as the loop that reads Kafka sees it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def prepare(self, messages: Sequence[InboundMessage]) -> Decided:
        """Decide on a batch; raises `TooManyDeadLetters`, which stops the worker."""
        return await self._pipeline.decide(messages)

    async def finish(self, prepared: Decided) -> None:
        """Publish a batch; returns once Kafka has acknowledged all that came of it."""
        await self._pipeline.deliver(prepared)


def register(
    app: faust.App,
    open_pipeline: OpenPipeline,
    config: ConsumeConfig | None = None,
    topic: str = AUDIT_EVENTS.name,
    flow: Flow | None = None,
    open_lane: OpenLane | None = None,
) -> Any:
    """Declare the routing agent on `app` and return it. Nothing connects before the worker starts.

    With `open_lane` it delivers exactly once; the app's consumer must then leave commits to the lanes.
    """

    def assigned() -> set[Place]:
        return {(tp.topic, tp.partition) for tp in app.consumer.assignment()}

    @asynccontextmanager
    async def open_handler() -> AsyncIterator[Handler]:
        async with open_pipeline() as pipeline:
            if open_lane is None:
                yield RoutingHandler(pipeline)
                return
            async with TransactionalHandler(pipeline, open_lane, assigned) as handler:
                yield handler

    return consume(app, "routing", (topic,), open_handler, config, flow)
