"""A good loop over aiokafka: what it fetched is handled together, one Redis round trip for all, a send per event."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from app.kafka import make_producer
from app.settings import load_settings
from benchmarks.contenders.launch import Orders
from benchmarks.meter import Meter
from benchmarks.mix import Event
from benchmarks.plain import DEDUP_WINDOW_S, claim_key, classify, decode, enrich, is_routine, is_sampled

_LINGER_MS = 20
"""Where it was fastest, of 0, 5, 20 and 100."""


async def route(events: list[Event], service: str, client: redis.Redis, producer: AIOKafkaProducer) -> None:
    """Route what was fetched together; returns once all of it is acknowledged."""
    kept = []
    for event in events:
        classification = classify(event)
        if not is_routine(event, classification) and is_sampled(event["event_id"], service, classification):
            kept.append((event, classification))
    if not kept:
        return
    async with client.pipeline(transaction=False) as pipeline:
        for event, _ in kept:
            pipeline.set(claim_key(event["event_id"], service), 1, nx=True, ex=DEDUP_WINDOW_S)
        firsts = await pipeline.execute()
    sends: list[Any] = []
    for (event, classification), first in zip(kept, firsts, strict=True):
        if first:
            topic = enrich(event, service, classification)
            sends.append(await producer.send(topic, orjson.dumps(event), event["event_id"].encode()))
    await asyncio.gather(*sends)


async def consume(orders: Orders) -> None:
    """Read the topic from its beginning until all its records are routed."""
    settings = load_settings()
    meter = Meter(orders.records, orders.reading)
    client = redis.Redis.from_url(settings.redis.url)
    # It waits for a batch's acknowledgements before it fetches on, so longer lingering only makes it idle.
    producer = make_producer(settings, linger_ms=min(settings.kafka.linger_ms, _LINGER_MS))
    consumer = AIOKafkaConsumer(
        orders.topic,
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=f"{settings.kafka.group_prefix}-aiokafka",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    async with producer, consumer:
        while not meter.is_complete:
            fetched = await consumer.getmany(timeout_ms=1000)
            events = [
                event
                for messages in fetched.values()
                for message in messages
                for event in decode(message.value, orders.form)
            ]
            if events:
                await route(events, orders.form.service, client, producer)
                await consumer.commit()
                meter.acknowledged(len(events))
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(consume(Orders.parse()))
