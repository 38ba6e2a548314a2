"""What must lie in the output topics, by a plain model; and whether it does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from app.topics import DEAD_LETTERS
from benchmarks.messages import Form
from benchmarks.mix import Event
from benchmarks.plain import TOPICS, classify, is_routine, is_sampled

OUTPUTS = (*(topic for topic, _ in TOPICS.values()), DEAD_LETTERS.name)
_READ_WITHIN_S = 60.0


class OutputUnreadable(RuntimeError):
    """An output topic could not be read to its end."""


@dataclass(slots=True)
class Expected:
    """The ids that each output topic must hold, once each."""

    form: Form
    ids: dict[str, set[str]] = field(default_factory=lambda: {topic: set() for topic in OUTPUTS})

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, noting what must come of them. A set is all that deduplication takes here."""
        for event in events:
            self.add(event)
            yield event

    def add(self, event: Event) -> None:
        """Note what must come of an event."""
        classification = classify(event)
        if is_routine(event, classification):
            return
        if is_sampled(event["event_id"], self.form.service, classification):
            self.ids[TOPICS[classification][0]].add(event["event_id"])

    @property
    def total(self) -> int:
        """How many records all topics must hold."""
        return sum(len(ids) for ids in self.ids.values())

    def differences(self, found: dict[str, Counter[str]]) -> list[str]:
        """Say, topic by topic, what is missing, too much or there more than once; nothing where all is right."""
        told = []
        for topic, ids in self.ids.items():
            there = found[topic]
            missing, extra = len(ids - there.keys()), len(there.keys() - ids)
            repeated = there.total() - len(there)
            if missing or extra or repeated:
                told.append(f"{topic}: {missing} missing, {extra} unexpected, {repeated} repeated, of {len(ids)}")
        return told


def read_outputs(client: Mapping[str, str | int | bool]) -> dict[str, Counter[str]]:
    """Count each event id in each output topic; a record that is in the wrong topic counts under an id of its own.

    Args:
        client: settings of librdkafka that reach the broker.

    Raises:
        OutputUnreadable: the topics could not be read to their ends in time.
    """
    consumer = Consumer(
        {
            **client,
            "group.id": "benchmark-verification",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        return _read(consumer)
    except KafkaException as error:
        raise OutputUnreadable(f"the output topics cannot be read: {error}") from error
    finally:
        consumer.close()


def _read(consumer: Consumer) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {topic: Counter() for topic in OUTPUTS}
    topics = consumer.list_topics(timeout=_READ_WITHIN_S).topics
    left = {(topic, partition) for topic in OUTPUTS for partition in topics[topic].partitions}
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for topic, partition in left])
    deadline = time.monotonic() + _READ_WITHIN_S
    while left:
        if time.monotonic() > deadline:
            raise OutputUnreadable(f"these partitions were not read to their end in {_READ_WITHIN_S:.0f} s: {left}")
        # It returns when it has all that were asked for, or at the end of its time: so ask often.
        for message in consumer.consume(5_000, timeout=0.05):
            error = message.error()
            if error is None:
                found[message.topic()][_id(message.value(), message.topic())] += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard((message.topic(), message.partition()))
            else:
                raise KafkaException(error)
    return found


def _id(value: bytes, topic: str) -> str:
    if topic == DEAD_LETTERS.name:
        return "a dead letter"
    event = orjson.loads(value)
    stamped = event["routing_metadata"]["topic"], TOPICS[event["event_classification"]][0]
    return str(event["event_id"]) if stamped == (topic, topic) else f"not for {topic}: {event['event_id']}"
