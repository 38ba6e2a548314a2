"""Where contenders run: a private Apache Kafka and Redis, topics made anew, and input laid ready."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from app.embedded.kafka.jars import default_cache
from app.embedded.run_directory import RunDirectory
from app.embedded.system import System
from app.kafka import ensure_topics
from app.settings import Settings, load_settings
from app.topics import AUDIT_EVENTS, REGISTRY
from benchmarks.expected import OUTPUTS
from benchmarks.messages import Message

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
_ADMIN_WITHIN_S = 60.0
_PROTOCOL_BYTES = 512
_LOG_WARNING = 4
PARTITION_UA = -1
"""librdkafka's name for a partition that the partitioner is to choose."""


class StageFailed(RuntimeError):
    """The broker would not do what the benchmark needs."""


class Stage:
    """Broker and Redis, and what lies in them.

    Args:
        system: with its stores started.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.bootstrap: str = system.settings.kafka.bootstrap_servers
        # Emptying a Redis of millions of keys takes it seconds.
        self.redis = redis.Redis.from_url(system.settings.redis.url, socket_timeout=_ADMIN_WITHIN_S)

    @property
    def settings(self) -> Settings:
        """What contenders are run with, but for what a case changes."""
        return self.system.settings

    def clear(self) -> None:
        """Make the output topics anew and empty Redis."""
        self.redis.flushall()
        self.clear_outputs()

    def clear_outputs(self) -> None:
        """Make the output topics anew; what Redis holds stays."""
        self.drop(OUTPUTS)
        asyncio.run(ensure_topics(self.settings))
        self._await(self._admin(), [spec.name for spec in REGISTRY], there=True)

    def fill(self, topic: str, messages: Iterable[Message]) -> int:
        """Make an input topic anew, put the messages in it, and return how many records they hold."""
        self.drop([topic])
        self._create(topic)
        return self.lay(topic, messages)

    def lay(self, topic: str, messages: Iterable[Message]) -> int:
        """Put the messages in an input topic beside what it holds, and return how many records they hold.

        Uncompressed, so that no contender's figures hold the cost of unpacking them.
        """
        producer = Producer(
            {
                **client_settings(self.bootstrap),
                "acks": "all",
                "linger.ms": 20,
                "batch.size": 1024 * 1024,
                "message.max.bytes": AUDIT_EVENTS.max_message_bytes - _PROTOCOL_BYTES,
            }
        )
        records = 0
        for number, message in enumerate(messages):
            records += message.records
            # Without a key in turn, so that every partition has its share also of few messages.
            partition = number % self.settings.kafka.partitions if message.key is None else PARTITION_UA
            while not _produced(producer, topic, message, partition):
                producer.poll(0.1)
        if left := producer.flush(_ADMIN_WITHIN_S):
            raise StageFailed(f"{left} messages for {topic} were not acknowledged in {_ADMIN_WITHIN_S:.0f} s")
        return records

    def drop(self, topics: Iterable[str]) -> None:
        """Delete the topics that are there, and return once they are gone."""
        admin = self._admin()
        present = admin.list_topics(timeout=_ADMIN_WITHIN_S).topics
        doomed = [topic for topic in topics if topic in present]
        if not doomed:
            return
        for future in admin.delete_topics(doomed, operation_timeout=_ADMIN_WITHIN_S).values():
            future.result(_ADMIN_WITHIN_S)
        self._await(admin, doomed, there=False)

    def _await(self, admin: AdminClient, topics: Iterable[str], *, there: bool) -> None:
        """Wait until the broker shows the topics, or shows them no more: what the controller did comes to it later."""
        deadline = time.monotonic() + _ADMIN_WITHIN_S
        wanted = set(topics)
        while True:
            shown = wanted & admin.list_topics(timeout=_ADMIN_WITHIN_S).topics.keys()
            left = wanted - shown if there else shown
            if not left:
                return
            if time.monotonic() > deadline:
                state = "missing" if there else "there"
                raise StageFailed(f"{', '.join(sorted(left))} still {state} after {_ADMIN_WITHIN_S:.0f} s")
            time.sleep(0.05)

    def _admin(self) -> AdminClient:
        """A client for one use: one that is kept complains when the broker is stopped."""
        return AdminClient(client_settings(self.bootstrap))

    def _create(self, topic: str) -> None:
        admin = self._admin()
        new = NewTopic(
            topic,
            self.settings.kafka.partitions,
            1,
            config={"max.message.bytes": str(AUDIT_EVENTS.max_message_bytes), "retention.ms": "-1"},
        )
        try:
            admin.create_topics([new])[topic].result(_ADMIN_WITHIN_S)
        except KafkaException as error:
            raise StageFailed(f"topic {topic} could not be made: {error}") from error
        self._await(admin, [topic], there=True)


@contextmanager
def open_stage(changes: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Stage]:
    """Start Kafka and Redis; all of it ends with the block. Settings come from the environment, as a worker's do.

    Args:
        changes: of settings, section by section.

    Raises:
        EmbeddedError: one of them cannot be provided.
    """
    with RunDirectory.create(REPOSITORY / "var" / "run") as run:
        system = System(run, load_settings(), "real", default_cache(os.environ), private=True)
        system.change({"pii": {"router": "off"}, "log": {"level": "WARNING", "format": "text"}})
        system.change(changes or {})
        try:
            system.start_stores()
            stage = Stage(system)
            stage.clear()
            yield stage
            stage.redis.close()
        finally:
            system.stop()
            # Gigabytes of events; the logs stay.
            shutil.rmtree(run.data, ignore_errors=True)


def client_settings(bootstrap: str) -> dict[str, str | int | bool]:
    """What all clients of librdkafka are made with here: they tell of errors, not of connections that were closed."""
    return {"bootstrap.servers": bootstrap, "log.connection.close": False, "log_level": _LOG_WARNING}


def _produced(producer: Producer, topic: str, message: Message, partition: int) -> bool:
    try:
        producer.produce(topic, message.value, message.key, partition)
    except BufferError:
        return False
    producer.poll(0)
    return True
