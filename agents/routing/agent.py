"""The routing agent: connects the pipeline to Kafka through Faust.

An offset is acknowledged only once everything derived from its message has been acknowledged by Kafka. Faust's own
batching (`stream.take`) acknowledges a batch when its generator closes, so also when the agent is cancelled in the
middle of one; this agent therefore reads a stream without acknowledgements, gathers batches itself and acknowledges
by hand. While one batch is being published the next gathers, so batches grow with the load and add no waiting
without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import faust

from agents.routing.backoff import Backoff
from agents.routing.message import InboundMessage, where
from agents.routing.pipeline import Pipeline
from app.topics import AUDIT_EVENTS

log = logging.getLogger(__name__)

DepsFactory = Callable[[], AbstractAsyncContextManager[Pipeline]]
"""Opens what a pipeline needs (producer, Redis) in the running loop, and closes it on exit."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How the agent gathers batches.

    Args:
        topic: the topic it reads.
        batch_messages: at most so many messages in one batch.
        batch_bytes: a batch is full once its values reach this size; also how much waits beside it in memory.
        drain_timeout_s: at a stop, how long the batch in hand may take before it is left for redelivery.
    """

    topic: str = AUDIT_EVENTS.name
    batch_messages: int = 1000
    batch_bytes: int = 2 * 1024 * 1024
    drain_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.batch_messages < 1 or self.batch_bytes < 1:
            raise ValueError(f"batch_messages={self.batch_messages}, batch_bytes={self.batch_bytes}: both must be >= 1")


def register(app: faust.App, deps_factory: DepsFactory, config: AgentConfig | None = None) -> Any:
    """Declare the routing agent on `app` and return it. Nothing connects before the worker starts."""
    settings = config or AgentConfig()
    topic = app.topic(
        settings.topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=False
    )

    async def route(stream: Any) -> None:
        await RoutingLoop(app, stream.noack(), deps_factory, settings).run()

    return app.agent(topic, name="routing")(route)


class Inbox:
    """Events on their way from the stream to the loop, bounded by number and bytes: a full inbox holds Kafka back."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._events: deque[Any] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self.closed = False

    async def put(self, event: Any) -> None:
        """Add an event; waits while the inbox is full."""
        while len(self._events) >= self._config.batch_messages or self._bytes >= self._config.batch_bytes:
            await self._wait()
        self._events.append(event)
        self._bytes += _size(event)
        self._changed.set()

    async def take(self) -> list[Any]:
        """Return what is there, at least one event and at most all that fits; an empty list once closed and empty."""
        while not self._events:
            if self.closed:
                return []
            await self._wait()
        events, self._events = list(self._events), deque()
        self._bytes = 0
        self._changed.set()
        return events

    def close(self) -> None:
        """No more events will come."""
        self.closed = True
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class RoutingLoop:
    """Reads, routes and acknowledges, for as long as the worker runs.

    Nothing but a stop ends it: whatever fails is tried again with back-off, for as long as it takes, since Faust
    would acknowledge the events of an agent that raised.
    """

    def __init__(self, app: Any, stream: Any, deps_factory: DepsFactory, config: AgentConfig) -> None:
        self._app = app
        self._stream = stream
        self._deps_factory = deps_factory
        self._config = config
        self._inbox = Inbox(config)
        self._batch: list[Any] = []

    async def run(self) -> None:
        """Run until the stream ends or the task is cancelled."""
        reader = asyncio.create_task(self._read(), name="routing-reader")
        worker = asyncio.create_task(self._work(), name="routing-worker")
        stopper = asyncio.create_task(self._stop_when_overdue(worker), name="routing-stopper")
        tasks = (reader, worker, stopper)
        try:
            # The reader closes the inbox however it ends, and the worker ends once that is empty.
            await asyncio.wait((worker,))
        finally:
            for task in tasks:
                task.cancel()
            await _finish(tasks, 2 * self._config.drain_timeout_s)
            # References would keep Faust waiting for messages that are left for redelivery.
            self._batch = []
            self._inbox = Inbox(self._config)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _read(self) -> None:
        try:
            async for event in self._stream.events():
                await self._inbox.put(event)
        finally:
            self._inbox.close()

    async def _work(self) -> None:
        """Keep a pipeline open and batches going through it; a broken one is closed and opened anew."""
        backoff = Backoff()
        while not (self._inbox.closed and not self._batch):
            try:
                async with _closed_whole(self._deps_factory(), self._config.drain_timeout_s) as pipeline:
                    await self._route_all(pipeline, backoff)
            except Exception as error:  # noqa: BLE001 - see the class: an agent that raised would lose its events
                log.error(
                    "Routing is interrupted by %s and starts anew (attempt %d)", where(error), backoff.attempts + 1
                )
                await backoff.wait()

    async def _route_all(self, pipeline: Pipeline, backoff: Backoff) -> None:
        while True:
            if not self._batch:
                self._batch = await self._inbox.take()
                if not self._batch:
                    return
            # A rebalance leaves older messages behind; whoever owns their partitions now fetches them again.
            current = [event for event in self._batch if self._is_current(event)]
            if current:
                await pipeline.route([to_inbound(event) for event in current])
                for event in current:
                    await self._stream.ack(event)
            self._batch = []
            backoff.attempts = 0

    def _is_current(self, event: Any) -> bool:
        generation = event.message.generation_id
        return generation is None or generation == self._app.consumer_generation_id

    async def _stop_when_overdue(self, worker: asyncio.Task[None]) -> None:
        await self._app.wait_until_stopped()
        await asyncio.wait((worker,), timeout=self._config.drain_timeout_s)
        if not worker.done() and self._batch:
            log.warning("%d messages could not be routed before the stop; they stay uncommitted", len(self._batch))
        worker.cancel()


@asynccontextmanager
async def _closed_whole(opened: AbstractAsyncContextManager[Pipeline], timeout_s: float) -> AsyncIterator[Pipeline]:
    """Enter `opened`; on the way out let it close to the end even if this task is cancelled meanwhile."""
    pipeline = await opened.__aenter__()
    try:
        yield pipeline
    finally:
        closing = asyncio.ensure_future(opened.__aexit__(None, None, None))
        await _finish([closing], timeout_s)
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            log.warning("Closing the pipeline raised %s", where(error))


async def _finish(tasks: Sequence[asyncio.Future[Any]], timeout_s: float) -> None:
    """Wait for tasks to end, for `timeout_s` at most, however often Faust cancels the one that waits.

    Faust cancels an agent more than once while it stops; what is closed half leaves connections and records behind.
    """
    cancelled = False
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not all(task.done() for task in tasks):
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            log.warning("Closing took longer than %.0f s and is given up", timeout_s)
            break
        try:
            await asyncio.wait(tasks, timeout=left)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def to_inbound(event: Any) -> InboundMessage:
    """Return a Faust event's message as the pipeline takes it."""
    message = event.message
    return InboundMessage(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        value=message.value,
        key=message.key,
        headers=_headers(message.headers),
    )


def _headers(headers: Mapping[str, bytes] | Sequence[tuple[str, bytes]] | None) -> dict[str, bytes]:
    if not headers:
        return {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return {name.lower(): value for name, value in pairs if value is not None}


def _size(event: Any) -> int:
    return len(event.message.value or b"")
