"""Topics at the broker, and producers that lose nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    ProducerFenced,
    TopicAlreadyExistsError,
    for_code,
)

from app.connections import AccessRefused, kafka_access, kafka_refusal
from app.settings import Settings
from app.telemetry.latency import ClientLatency
from app.topics import REGISTRY, TopicSpec

logger = logging.getLogger(__name__)

MAX_BATCH_BYTES = 1024 * 1024
"""Of one record batch, before compression."""


class TopicsNotReady(RuntimeError):
    """The broker cannot be reached, or refuses a topic of the registry."""


def make_producer(
    settings: Settings,
    *,
    linger_ms: int | None = None,
    idempotent: bool = True,
    latency: ClientLatency | None = None,
) -> AIOKafkaProducer:
    """A producer with acks from all replicas; the caller starts and stops it. `latency` is told how long sends take.

    An idempotent one writes nothing twice when it tries again. In turn a batch that the broker refuses for good (one
    too large, say) leaves a gap in its sequence, and it can write to that partition no more (aiokafka 0.14).
    """
    compression = settings.kafka.compression
    producer = AIOKafkaProducer(
        **kafka_access(settings),
        acks="all",
        enable_idempotence=idempotent,
        compression_type=None if compression == "none" else compression,
        linger_ms=settings.kafka.linger_ms if linger_ms is None else linger_ms,
        max_batch_size=MAX_BATCH_BYTES,
        max_request_size=max(spec.max_message_bytes for spec in REGISTRY),
    )
    _pace_metadata(producer.client)
    if latency is not None:
        latency.watch_producer(producer)
    return producer


def make_relay_producer(settings: Settings, latency: ClientLatency | None = None) -> AIOKafkaProducer:
    """A producer for records that are sent one after another, each again until it is acknowledged.

    Not an idempotent one: a record that it gave up while no broker answered would leave a gap in its sequence, and no
    record that followed would be taken, for ever (aiokafka 0.14).
    """
    return make_producer(settings, linger_ms=5, idempotent=False, latency=latency)


def make_transactional_producer(
    settings: Settings, transactional_id: str, timeout_s: int, *, linger_ms: int
) -> AIOKafkaProducer:
    """A producer of transactions; the broker aborts one that is open for `timeout_s`. The caller starts and stops it.

    Starting it ends the open transaction of whoever held the id before, and shuts that one out.
    """
    compression = settings.kafka.compression
    producer = AIOKafkaProducer(
        **kafka_access(settings),
        transactional_id=transactional_id,
        transaction_timeout_ms=timeout_s * 1000,
        acks="all",
        compression_type=None if compression == "none" else compression,
        linger_ms=linger_ms,
        max_batch_size=MAX_BATCH_BYTES,
        max_request_size=max(spec.max_message_bytes for spec in REGISTRY),
    )
    _pace_metadata(producer.client)
    return producer


def producer_id(producer: AIOKafkaProducer) -> int:
    """What the coordinator knows a started transactional producer by. aiokafka shows it nowhere else."""
    number: int = producer._txn_manager.producer_id
    return number


def sender_of(producer: AIOKafkaProducer) -> asyncio.Task[None]:
    """The task that sends; it ends with what ended the producer. aiokafka shows it nowhere else."""
    sender: asyncio.Task[None] = producer._sender.sender_task
    return sender


def silence_fenced() -> None:
    """Let the running loop tell nothing of futures with `ProducerFenced`: aiokafka leaves many behind at one fencing.

    The error itself has been raised to whoever waited.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), ProducerFenced):
            return
        if before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(handle)


def _pace_metadata(client: Any) -> None:
    """Let a metadata update that failed take a while: aiokafka's sender asks again at once, and while no broker answers
    that is a loop without a pause, which starves the worker's heartbeats.
    """
    update = client._metadata_update

    async def paced(*args: Any, **kwargs: Any) -> bool:
        updated: bool = await update(*args, **kwargs)
        if not updated:
            await asyncio.sleep(0.1)
        return updated

    client._metadata_update = paced


async def ensure_topics(settings: Settings, timeout_s: float = 60.0) -> list[str]:
    """Create the registry's topics that are missing; returns their names. Waits for the broker up to `timeout_s`.

    Raises `TopicsNotReady`, and `app.connections.AccessRefused` as soon as a broker turns us away.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await _create_missing(settings)
        except (KafkaConnectionError, NodeNotReadyError, OSError) as error:
            if (refusal := await kafka_refusal(settings)) is not None:
                raise AccessRefused(refusal) from error
            if asyncio.get_running_loop().time() > deadline:
                servers = settings.kafka.bootstrap_servers
                raise TopicsNotReady(f"Kafka at {servers} did not answer in {timeout_s:.0f} s: {error}") from error
            await asyncio.sleep(0.5)


async def _create_missing(settings: Settings) -> list[str]:
    admin = AIOKafkaAdminClient(**kafka_access(settings))
    await admin.start()
    try:
        present = set(await admin.list_topics())
        missing = [spec for spec in REGISTRY if spec.name not in present]
        if missing:
            response = await admin.create_topics([_new_topic(spec, settings) for spec in missing])
            for name, code, *rest in response.topic_errors:
                error = for_code(code)
                if code and error is not TopicAlreadyExistsError:
                    raise TopicsNotReady(f"Kafka refused topic {name}: {error.__name__} {rest[0] if rest else ''}")
            logger.info("created topics: %s", ", ".join(spec.name for spec in missing))
        return [spec.name for spec in missing]
    except KafkaError as error:
        if isinstance(error, KafkaConnectionError | NodeNotReadyError):
            raise
        raise TopicsNotReady(f"Kafka could not list or create topics: {error!r}") from error
    finally:
        await admin.close()


def _new_topic(spec: TopicSpec, settings: Settings) -> NewTopic:
    return NewTopic(
        name=spec.name,
        num_partitions=settings.kafka.partitions,
        replication_factor=settings.kafka.replication_factor,
        topic_configs={
            "retention.ms": str(spec.retention_ms),
            "max.message.bytes": str(spec.max_message_bytes),
            "min.insync.replicas": str(min(2, settings.kafka.replication_factor)),
        },
    )
