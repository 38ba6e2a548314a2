"""What flows while something is broken: a stream that never runs dry, a watch on commits, and a look at all topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from fault_traffic import NUMBER_HEADER, Told
from systems import wait_until

INPUT, GROUP, PARTITIONS = "otel-audit-events", "flywheel-route", 4
QUIET: dict[str, Any] = {"log_level": 0}
"""librdkafka tells of every lost connection, and brokers are stopped here on purpose."""
Offsets = dict[int, int]
"""Partition of the input topic to an offset."""


class Stream:
    """Sends messages from a thread of its own, through an idempotent producer, and never runs dry.

    The pace slows towards the end, so that events flow however long a fault takes, until `finish` lets the rest go.

    Args:
        bootstrap: the broker.
        messages: what is sent, in this order.
        rounds: how many faults it must outlast; the more, the slower it flows and the smaller are bursts.
    """

    ROUND_S = 15.0

    def __init__(self, bootstrap: str, messages: Sequence[Told], rounds: int) -> None:
        self.sent = 0
        """Tellings handed to the producer."""
        self.total = messages[-1].tellings.stop
        self._full_s = self.ROUND_S * rounds  # at full pace all of it would take so long
        self._slowing_s = self._full_s / 3  # and what is left is spread over at least this
        self._burst = self.total * min(0.06, 0.24 / rounds)
        self._messages = messages
        self._at_once = 0
        self._failure: BaseException | None = None
        self._producer = Producer(
            {
                **QUIET,
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "message.timeout.ms": 300_000,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1_000_000,
            }
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_sent(self, share: float) -> None:
        """Wait until this share of the stream is sent."""
        self._wait_for(share * self.total, f"{share:.0%} of the stream is sent")

    def burst(self) -> None:
        """Send some of it at once (a quarter of what is left at most): no worker is idle right after."""
        self._at_once = self.sent + int(min(self._burst, (self.total - self.sent) / 4))
        deadline = time.monotonic() + 30.0
        while self.sent < self._at_once and time.monotonic() < deadline:
            time.sleep(0.002)  # the caller strikes while the workers are at it
        self._wait_for(self._at_once, "the burst is sent")

    def finish(self) -> None:
        """Send the rest and wait until everything is acknowledged."""
        self._at_once = self.total
        wait_until(lambda: not self._thread.is_alive(), "the stream ends", 300.0)
        self._wait_for(self.total, "all is sent")

    def _wait_for(self, sent: float, what: str) -> None:
        wait_until(lambda: self._failure is not None or self.sent >= sent, what)
        assert self._failure is None, f"the stream broke: {self._failure!r}"

    def _run(self) -> None:
        try:
            due = 0.0
            last = time.monotonic()
            for told in self._messages:
                while told.tellings.start >= max(due, self._at_once):
                    self._producer.poll(0.005)
                    now = time.monotonic()
                    left = self.total - self.sent
                    due = max(due, self._at_once) + (now - last) * min(
                        self.total / self._full_s, left / self._slowing_s
                    )
                    last = now
                self._send(told)
                self.sent = told.tellings.stop
            assert self._producer.flush(240) == 0, "not all was acknowledged"
        except BaseException as error:
            self._failure = error
            raise

    def _send(self, told: Told) -> None:
        headers = [(NUMBER_HEADER, str(told.number).encode())]
        place = {} if told.key else {"partition": told.number % PARTITIONS}
        while True:
            try:
                self._producer.produce(INPUT, told.value, told.key, headers=headers, on_delivery=self._told, **place)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _told(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failure = KafkaException(error)


@dataclass
class Seen:
    """Committed offsets and log ends of the input topic at one moment."""

    committed: Offsets
    ends: Offsets

    @property
    def lag(self) -> int:
        """Messages that are not committed."""
        return self.waiting(self.ends.keys())

    def waiting(self, partitions: Iterable[int]) -> int:
        """Messages of these partitions that are not committed."""
        return sum(self.ends[number] - self.committed[number] for number in partitions)


class Watch:
    """Reads the group's committed offsets all the time: none may ever go back."""

    DEAF_S = 10.0
    """After so long without an answer it asks by new connections: librdkafka may go on asking a broker that was the
    group's coordinator once."""

    def __init__(self, bootstrap: str) -> None:
        self._config = {**QUIET, "bootstrap.servers": bootstrap, "group.id": GROUP, "enable.auto.commit": False}
        self._consumer = Consumer(self._config)
        self._answered = time.monotonic()
        self._error: KafkaException | None = None
        self._highest: Offsets = dict.fromkeys(range(PARTITIONS), 0)
        self._went_back: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def now(self, within_s: float = 60.0) -> Seen:
        """Committed offsets and ends as they are now."""
        found: list[Seen] = []

        def ask() -> bool:
            try:
                found.append(self._ask())
            except KafkaException:
                return False
            return True

        try:
            wait_until(ask, "the broker tells what is committed", within_s)
        except pytest.fail.Exception as late:
            raise AssertionError(f"{late}: {self._error}") from late
        return found[-1]

    def wait_done(self, within_s: float = 180.0) -> None:
        """Wait until everything that lies on the input topic is committed."""
        wait_until(lambda: self.now().lag == 0, "everything is committed", within_s)

    def check(self) -> None:
        """Fail if a committed offset has ever gone back."""
        assert not self._went_back, f"committed offsets went back: {self._went_back}"

    def close(self) -> None:
        """End the watch."""
        self._stop.set()
        self._thread.join(30)
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self._ask()
            except KafkaException:  # the broker is away
                continue

    def _ask(self) -> Seen:
        places = [TopicPartition(INPUT, number) for number in range(PARTITIONS)]
        with self._lock:
            try:
                committed = {p.partition: _valid(p) for p in self._consumer.committed(places, timeout=5)}
                ends = {p.partition: self._consumer.get_watermark_offsets(p, timeout=5)[1] for p in places}
            except KafkaException as error:
                self._error = error
                if time.monotonic() > self._answered + self.DEAF_S:
                    self._consumer.close()
                    self._consumer, self._answered = Consumer(self._config), time.monotonic()
                raise
            self._answered = time.monotonic()
            for partition, offset in committed.items():
                if offset < self._highest[partition]:
                    self._went_back.append(f"partition {partition} from {self._highest[partition]} to {offset}")
                self._highest[partition] = max(offset, self._highest[partition])
        return Seen(committed, ends)


def _valid(place: TopicPartition) -> int:
    if place.error is not None:
        raise KafkaException(place.error)
    return max(int(place.offset), 0)


def read_all(bootstrap: str, topics: Iterable[str], within_s: float = 120.0) -> Mapping[str, list[Message]]:
    """All that lies on the topics now, each partition in its order."""
    found: dict[str, list[Message]] = {topic: [] for topic in topics}
    config = {**QUIET, "bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False}
    consumer = Consumer({**config, "enable.partition.eof": True, "isolation.level": "read_committed"})
    try:
        places = [TopicPartition(topic, number, 0) for topic in found for number in range(PARTITIONS)]
        consumer.assign(places)
        deadline = time.monotonic() + within_s
        unread = {(place.topic, place.partition) for place in places}
        while unread:
            assert time.monotonic() < deadline, f"not read within {within_s:.0f} s: {unread}"
            for message in consumer.consume(2000, timeout=0.5):
                error = message.error()
                if error is None:
                    found[message.topic()].append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic(), message.partition()))
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return found
