"""How far the consumer groups are, asked of the broker: a worker that died, or reads no more, cannot tell itself."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from agents.curation.agent import TOPICS as CURATED
from agents.monitoring.metrics import GroupPosition
from app.connections import kafka_access
from app.roles import Role
from app.settings import Settings
from app.topics import AUDIT_EVENTS, CYCLES

WITHIN_S = 30.0

READS = {Role.ROUTE: (AUDIT_EVENTS.name,), Role.CURATE: CURATED, Role.TRAIN: (CYCLES.name,)}
"""What each role that reads Kafka reads."""


async def read_groups(settings: Settings) -> list[GroupPosition]:
    """Committed offsets and lag of every role's group. Raises `aiokafka.errors.KafkaError` and TimeoutError."""
    access = kafka_access(settings)
    admin = AIOKafkaAdminClient(**access)
    reader = AIOKafkaConsumer(**access, enable_auto_commit=False)
    try:
        async with asyncio.timeout(WITHIN_S):
            await admin.start()
            await reader.start()
            found: list[GroupPosition] = []
            for role, topics in READS.items():
                found += await _positions(admin, reader, f"{settings.kafka.group_prefix}-{role.value}", topics)
            return found
    finally:
        await reader.stop()
        await admin.close()


async def _positions(
    admin: AIOKafkaAdminClient, reader: AIOKafkaConsumer, group: str, topics: tuple[str, ...]
) -> list[GroupPosition]:
    descriptions = await admin.describe_topics(list(topics))
    places = [
        TopicPartition(topic["topic"], partition["partition"])
        for topic in descriptions
        for partition in topic["partitions"]
    ]
    ends = await reader.end_offsets(places)
    begins = await reader.beginning_offsets(places)
    committed = await admin.list_consumer_group_offsets(group, partitions=places)
    offsets: Counter[str] = Counter()
    lags: Counter[str] = Counter()
    for place, end in ends.items():
        told = committed.get(place)
        # Without a commit the group begins at the first record there is.
        offset = begins[place] if told is None or told.offset < 0 else told.offset
        offsets[place.topic] += offset
        lags[place.topic] += max(0, end - offset)
    return [GroupPosition(group, topic, offsets[topic], lags[topic]) for topic in topics]
