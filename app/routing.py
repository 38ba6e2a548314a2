"""The routing pipeline as settings describe it: for the worker, and for whatever routes without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from agents.routing.bounds import DecodeLimits
from agents.routing.counters import Counters
from agents.routing.dedup import Claims
from agents.routing.live import LiveValues
from agents.routing.pipeline import Pipeline
from agents.routing.publish import BatchBuilder, Publisher
from agents.routing.trace import BatchTrace, ContextOnly
from agents.routing.watch import DeadLetterWatch
from app import wiring
from app.kafka import MAX_BATCH_BYTES, make_producer
from app.live import LiveWatcher, configured_values
from app.redis import make_redis
from app.settings import Settings
from app.telemetry.latency import ClientLatency
from app.transport.batches import GzipBatchBuilder


def decode_limits(settings: Settings) -> DecodeLimits:
    """What a producer may send."""
    routing = settings.routing
    return DecodeLimits(
        max_message_bytes=routing.max_message_bytes,
        max_records=routing.max_records,
        max_depth=routing.max_depth,
        max_string_chars=routing.max_string,
    )


class Routing:
    """Routing in one process: its counters, which outlast any pipeline, and what it tells of itself."""

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.watcher: LiveWatcher | None = None

    def snapshot(self) -> dict[str, Any]:
        """The counters, and the live settings in force."""
        live = self.watcher.snapshot() if self.watcher is not None else {"revision": 0, "values": {}}
        return self.counters.snapshot() | {"live": live}


def batch_maker(settings: Settings, *, transactional: bool = False) -> Callable[[], BatchBuilder] | None:
    """What makes an empty batch; None: the producer itself."""
    if settings.kafka.compression != "gzip":
        return None
    return partial(GzipBatchBuilder, MAX_BATCH_BYTES, transactional=transactional)


@asynccontextmanager
async def open_pipeline(
    settings: Settings,
    routing: Routing,
    trace: Callable[[], BatchTrace] = ContextOnly,
    latency: ClientLatency | None = None,
) -> AsyncIterator[Pipeline]:
    """The pipeline over Redis and an idempotent producer, opened in the running loop, under the live settings."""
    configured = configured_values(settings)
    producer = make_producer(settings, latency=latency)
    client = make_redis(settings, latency=latency)
    claims = Claims(
        client, settings.routing.dedup_window_s, settings.routing.dedup_buckets, clustered=settings.redis.cluster
    )
    pipeline = Pipeline(
        configured.rules,
        decode_limits(settings),
        wiring.scrubber(settings).scrub_event,
        claims,
        Publisher(producer, new_batch=batch_maker(settings)),
        routing.counters,
        on_outage=configured.on_outage,
        watch=DeadLetterWatch(configured.dead_letter_limits),
        trace=trace,
    )

    def take_over(values: LiveValues) -> None:
        pipeline.rules = values.rules
        pipeline.on_outage = values.on_outage
        pipeline.watch.limits = values.dead_letter_limits

    path = Path(settings.data_dir) / "live-routing.json"
    routing.watcher = LiveWatcher(client, configured, take_over, path, settings.routing.live_poll_s)
    try:
        await producer.start()
        async with routing.watcher.watching():
            yield pipeline
    finally:
        await producer.stop()
        await client.aclose()
