"""How an agent takes messages from Faust without ever losing one.

An offset is acknowledged only once everything derived from its message is safe elsewhere. Faust's own batching
(`stream.take`) acknowledges a batch when its generator closes, so also when the agent is cancelled in the middle of
one; this loop therefore reads a stream without acknowledgements, gathers batches itself and acknowledges by hand.
Its events are whole chunks of a partition (`app.transport`). While one batch is finished (published, stored) the next
is prepared, and the one after that gathers, so batches grow with the load and the processor never waits for a broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import faust

from agents.flow import Flow
from agents.routing.backoff import Backoff
from agents.routing.message import NO_HEADERS, Halt, InboundMessage, where

log = logging.getLogger(__name__)


class Handler(Protocol):
    """Handles batches, in the order of each partition. Handling a batch again must change nothing.

    Either may raise: the handler is then closed, a new one is opened, and every batch that is not finished is handled
    again from the start. `Halt` stops the worker.
    """

    async def prepare(self, messages: Sequence[InboundMessage]) -> Any:
        """Do what may be done while the batch before is finished; returns what `finish` takes."""

    async def finish(self, prepared: Any) -> object:
        """Do the rest; when it returns, everything derived from the batch is safe elsewhere."""


OpenHandler = Callable[[], AbstractAsyncContextManager[Handler]]
"""Opens what a handler needs (clients, producers) in the running loop, and closes it on exit."""


@dataclass(frozen=True, slots=True)
class ConsumeConfig:
    """How the agent gathers batches.

    Args:
        batch_messages: a batch is full once it has so many messages; the chunk that fills it is taken whole.
        batch_bytes: a batch is full once its values reach this size; also how much waits beside it in memory.
        linger_s: how long a batch that is not full waits for more. A batch costs some 2 ms to claim and publish, so
            batches of a few would spend all on that.
        drain_timeout_s: at a stop, how long the batch in hand may take before it is left for redelivery.
    """

    batch_messages: int = 5000
    batch_bytes: int = 4 * 1024 * 1024
    linger_s: float = 0.02
    drain_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if self.batch_messages < 1 or self.batch_bytes < 1:
            raise ValueError(f"batch_messages={self.batch_messages}, batch_bytes={self.batch_bytes}: both must be >= 1")


def consume(
    app: faust.App,
    name: str,
    topics: Sequence[str],
    open_handler: OpenHandler,
    config: ConsumeConfig | None = None,
    flow: Flow | None = None,
) -> Any:
    """Declare an agent on `app` that hands batches of raw messages to a handler. Nothing connects before the start.

    `flow` is told how the loop does.
    """
    settings = config or ConsumeConfig()
    topic = app.topic(
        *topics, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=False
    )

    async def agent(stream: Any) -> None:
        await ConsumeLoop(app, stream.noack(), open_handler, settings, name, flow).run()

    return app.agent(topic, name=name)(agent)


class Inbox:
    """Events on their way from the stream to the loop, bounded by number and bytes: a full inbox holds Kafka back."""

    def __init__(self, config: ConsumeConfig) -> None:
        self._config = config
        self._events: list[Any] = []
        self._messages = 0
        self._bytes = 0
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    async def put(self, event: Any) -> None:
        """Add an event; waits while the inbox is full."""
        await self._room.wait()
        records = event.message.value.records
        self._events.append(event)
        self._messages += len(records)
        self._bytes += sum(len(record.value or b"") for record in records)
        self._some.set()
        if self._messages >= self._config.batch_messages or self._bytes >= self._config.batch_bytes:
            self._room.clear()
            self._full.set()

    async def ready(self) -> None:
        """Return once `take` gives a full batch, or what has come after the linger, or once the inbox is closed."""
        await self._some.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.linger_s):
                await self._full.wait()

    def take(self) -> list[Any]:
        """Return the events that are there; none only if the inbox is closed, or was not `ready`."""
        events, self._events = self._events, []
        self._messages = self._bytes = 0
        self._room.set()
        if not self.closed:
            self._some.clear()
            self._full.clear()
        return events

    def close(self) -> None:
        """No more events will come."""
        self.closed = True
        self._some.set()
        self._full.set()


class ConsumeLoop:
    """Reads, has handled and acknowledges, for as long as the worker runs.

    Nothing but a stop or a `Halt` ends it: whatever else fails is tried again with back-off, for as long as it takes,
    since Faust would acknowledge the events of an agent that raised.
    """

    def __init__(
        self,
        app: Any,
        stream: Any,
        open_handler: OpenHandler,
        config: ConsumeConfig,
        name: str,
        flow: Flow | None = None,
    ) -> None:
        self._name = name
        self._app = app
        self._stream = stream
        self._open_handler = open_handler
        self._config = config
        self._inbox = Inbox(config)
        self._batches: deque[list[Any]] = deque()
        """Taken and not yet finished, oldest first: at most two."""
        self._flow = flow

    async def run(self) -> None:
        """Run until the stream ends or the task is cancelled."""
        if self._flow is not None:
            self._flow.begin(self._app.consumer, self._batches)
        reader = asyncio.create_task(self._read(), name=f"{self._name}-reader")
        worker = asyncio.create_task(self._work(), name=f"{self._name}-worker")
        stopper = asyncio.create_task(self._stop_when_overdue(worker), name=f"{self._name}-stopper")
        tasks = (reader, worker, stopper)
        try:
            # The reader closes the inbox however it ends, and the worker ends once that is empty.
            await asyncio.wait((worker,))
        finally:
            for task in tasks:
                task.cancel()
            await _finish(tasks, 2 * self._config.drain_timeout_s)
            # References would keep Faust waiting for messages that are left for redelivery.
            self._batches.clear()
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
        """Keep a handler open and batches going through it; a broken one is closed and opened anew."""
        backoff = Backoff()
        while not (self._inbox.closed and not self._batches):
            try:
                async with _closed_whole(self._open_handler(), self._config.drain_timeout_s) as handler:
                    await self._handle_all(handler, backoff)
            except Halt as halt:
                log.critical("%s stops: %s", self._name, halt)
                await self._app.crash(halt)
                return
            except Exception as error:  # noqa: BLE001 - see the class: an agent that raised would lose its events
                attempt = backoff.attempts + 1
                log.error("%s is interrupted by %s and starts anew (attempt %d)", self._name, where(error), attempt)
                await backoff.wait()

    async def _handle_all(self, handler: Handler, backoff: Backoff) -> None:
        """Prepare each batch while the one before is finished; returns at the end of the stream."""
        finishing: asyncio.Task[None] | None = None
        again = deque(self._batches)  # what the handler before this one left
        try:
            while batch := again.popleft() if again else await self._next(finishing):
                # A rebalance leaves older chunks behind; whoever owns their partitions now fetches them again.
                current = [event for event in batch if self._is_current(event)]
                prepared = await handler.prepare(_inbound(current)) if current else None
                if finishing is not None:
                    await finishing
                finishing = asyncio.create_task(self._finish_batch(handler, current, prepared, backoff))
            if finishing is not None:
                await finishing
        except Halt:
            if finishing is not None:  # what was decided before still goes out
                await finishing
            raise
        finally:
            if finishing is not None:
                finishing.cancel()
                await asyncio.wait((finishing,))
                if not finishing.cancelled():
                    finishing.exception()  # somebody has looked at it: it is the one raised, or the lesser of two

    async def _next(self, finishing: asyncio.Task[None] | None) -> list[Any]:
        """Wait for a batch, but no longer than the one before goes well; an empty one means the end of the stream."""
        ready = asyncio.ensure_future(self._inbox.ready())
        try:
            if finishing is not None:
                await asyncio.wait((ready, finishing), return_when=asyncio.FIRST_COMPLETED)
                if finishing.done():
                    finishing.result()
            await ready
        finally:
            ready.cancel()
        batch = self._inbox.take()
        if batch:
            self._batches.append(batch)
        return batch

    async def _finish_batch(self, handler: Handler, events: list[Any], prepared: Any, backoff: Backoff) -> None:
        if events:
            await handler.finish(prepared)
            if self._flow is not None:
                self._flow.finished(event.message.value for event in events)
        for event in events:
            await self._stream.ack(event)
        # At once, beside the next batch: a kill then repeats two batches at most, not all of a commit interval.
        committed = await self._app.consumer.commit()
        if committed and self._flow is not None:
            self._flow.committed()
        self._batches.popleft()
        backoff.attempts = 0

    def _is_current(self, event: Any) -> bool:
        generation = event.message.generation_id
        return generation is None or generation == self._app.consumer_generation_id

    async def _stop_when_overdue(self, worker: asyncio.Task[None]) -> None:
        await self._app.wait_until_stopped()
        await asyncio.wait((worker,), timeout=self._config.drain_timeout_s)
        if not worker.done() and self._batches:
            left = sum(len(event.message.value.records) for batch in self._batches for event in batch)
            log.warning("%s: %d messages are left uncommitted at the stop", self._name, left)
        worker.cancel()


@contextlib.asynccontextmanager
async def _closed_whole(opened: AbstractAsyncContextManager[Handler], timeout_s: float) -> AsyncIterator[Handler]:
    """Enter `opened`; on the way out let it close to the end even if this task is cancelled meanwhile."""
    handler = await opened.__aenter__()
    try:
        yield handler
    finally:
        closing = asyncio.ensure_future(opened.__aexit__(None, None, None))
        await _finish([closing], timeout_s)
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            log.warning("Closing the handler raised %s", where(error))


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


def _inbound(events: Iterable[Any]) -> list[InboundMessage]:
    return [to_inbound(record) for event in events for record in event.message.value.records]


def to_inbound(record: Any) -> InboundMessage:
    """Return a Kafka record as handlers take it."""
    headers = _headers(record.headers) if record.headers else NO_HEADERS
    return InboundMessage(record.topic, record.partition, record.offset, record.value, record.key, headers)


def _headers(headers: Sequence[tuple[str, bytes]]) -> Mapping[str, bytes]:
    return {name.lower(): value for name, value in headers if value is not None}
