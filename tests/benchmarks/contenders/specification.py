"""The specification's router, written plainly: an event at a time, the standard library's JSON, send and wait."""

from __future__ import annotations

import asyncio
import json

import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from app.kafka import make_producer
from app.settings import load_settings
from app.topics import AUDIT_EVENTS
from benchmarks.contenders.launch import Orders
from benchmarks.meter import Meter
from benchmarks.mix import Event
from benchmarks.plain import (
    DEDUP_WINDOW_S,
    claim_key,
    classify,
    decode,
    enrich,
    is_routine,
    is_sampled,
    stdlib_loads,
)


async def route(event: Event, service: str, client: redis.Redis, producer: AIOKafkaProducer) -> None:
    """Route one event; returns once it is acknowledged."""
    classification = classify(event)
    if is_routine(event, classification):
        return
    event_id = event["event_id"]
    if not await client.set(claim_key(event_id, service), 1, nx=True, ex=DEDUP_WINDOW_S):
        return
    if not is_sampled(event_id, service, classification):
        return
    topic = enrich(event, service, classification)
    await producer.send_and_wait(topic, json.dumps(event).encode(), event_id.encode())


async def consume(orders: Orders) -> None:
    """Read the topic from its beginning until all its records are routed."""
    settings = load_settings()
    meter = Meter(orders.records, orders.reading)
    client = redis.Redis.from_url(settings.redis.url)
    # Whoever waits for each record gains nothing by lingering, and would wait that long for every one.
    producer = make_producer(settings, linger_ms=0)
    consumer = AIOKafkaConsumer(
        orders.topic,
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=f"{settings.kafka.group_prefix}-specification",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=AUDIT_EVENTS.max_message_bytes,
    )
    async with producer, consumer:
        async for message in consumer:
            events = decode(message.value, orders.form, stdlib_loads)
            for event in events:
                await route(event, orders.form.service, client, producer)
            meter.acknowledged(len(events))
            if meter.is_complete:
                break
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(consume(Orders.parse()))
