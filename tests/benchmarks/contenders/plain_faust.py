"""A Faust agent as most people would write it: `async for` over the topic, every step awaited, event by event."""

from __future__ import annotations

from typing import Any

import faust
import orjson
import redis.asyncio as redis

from app.settings import Settings, load_settings
from app.telemetry.logs import set_up_logging
from app.topics import AUDIT_EVENTS
from benchmarks.contenders.launch import Orders, end_process, run_faust
from benchmarks.meter import Meter
from benchmarks.mix import Event
from benchmarks.plain import (
    DEDUP_WINDOW_S,
    TOPICS,
    claim_key,
    classify,
    decode,
    enrich,
    is_routine,
    is_sampled,
)


def make_app(settings: Settings, orders: Orders, meter: Meter) -> Any:
    """Declare the app and its one agent."""
    kafka = settings.kafka
    folder = settings.data_dir / "faust" / kafka.group_prefix
    folder.mkdir(parents=True)
    app = faust.App(
        f"{kafka.group_prefix}-plain",
        broker=f"kafka://{kafka.bootstrap_servers}",
        store="memory://",
        datadir=str(folder),
        autodiscover=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=AUDIT_EVENTS.max_message_bytes,
        producer_acks=-1,
        producer_compression_type=None if kafka.compression == "none" else kafka.compression,
        producer_linger=kafka.linger_ms / 1000,
        producer_max_batch_size=1024 * 1024,
        producer_max_request_size=AUDIT_EVENTS.max_message_bytes,
        worker_redirect_stdouts=False,
    )
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    source = app.topic(orders.topic, **raw)
    outputs = {name: app.topic(name, **raw) for name, _ in TOPICS.values()}
    service = orders.form.service
    claims: list[redis.Redis] = []

    @app.agent(source)  # type: ignore[untyped-decorator]
    async def route(stream: Any) -> None:
        claims.append(redis.Redis.from_url(settings.redis.url))
        async for value in stream:
            events = decode(value, orders.form)
            for event in events:
                await route_one(event, claims[0])
            if meter.is_last(len(events)):
                await app.producer.flush()
            meter.acknowledged(len(events))

    async def route_one(event: Event, client: redis.Redis) -> None:
        classification = classify(event)
        if is_routine(event, classification):
            return
        event_id = event["event_id"]
        if not await client.set(claim_key(event_id, service), 1, nx=True, ex=DEDUP_WINDOW_S):
            return
        if not is_sampled(event_id, service, classification):
            return
        topic = enrich(event, service, classification)
        await outputs[topic].send(key=event_id.encode(), value=orjson.dumps(event))

    return app


def main() -> None:
    """Run the worker until all its input is consumed."""
    orders = Orders.parse()
    settings = load_settings()
    set_up_logging("plain-faust", settings.log.level, settings.log.format)
    meter = Meter(orders.records, orders.reading, on_end=end_process)
    run_faust(make_app(settings, orders, meter))


if __name__ == "__main__":
    main()
