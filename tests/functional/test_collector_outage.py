"""Kafka stops, and the collector is restarted and killed in between: what was acknowledged comes out.

FLYWHEEL_OUTAGE_S sets how long Kafka is away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_parts import Topic, collector_program, log, logs, outage_s, plain, running_collector, send
from services import unavailable

from app.embedded.collector import CollectorServer
from app.embedded.errors import ProgramMissing
from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.mock_broker import MockBroker
from app.embedded.ports import free_port
from app.embedded.run_directory import RunDirectory

TOPIC = "otel-audit-events"


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker of the test's own, to be stopped."""
    collector_program()
    with RunDirectory.create(tmp_path / "kafka") as run:
        broker = KafkaBroker(run, default_cache(os.environ))
        try:
            broker.start()
        except ProgramMissing as missing:
            unavailable(missing.what, missing.command)
        yield broker
        broker.stop()


class Sender:
    """Sends numbered records and knows which were acknowledged."""

    def __init__(self, server: CollectorServer) -> None:
        self._server = server
        self.acknowledged: list[str] = []

    def send(self, count: int) -> None:
        """One request of `count` records."""
        names = [f"record-{len(self.acknowledged) + number}" for number in range(count)]
        send(self._server, "logs", logs([log(name) for name in names]))
        self.acknowledged += names

    def send_for(self, seconds: float) -> None:
        """Requests of all sizes for a while."""
        end = time.monotonic() + seconds
        count = 1
        while time.monotonic() < end:
            self.send(count)
            count = count % 40 + 1


@pytest.mark.timeout(120)
def test_of_several_brokers_one_that_answers_is_enough(mock_broker: MockBroker, tmp_path: Path) -> None:
    """A list of them was taken for the name of one host, so a collector that was started then reached none."""
    topic = Topic(mock_broker.bootstrap, "several", "logs")
    brokers = f"127.0.0.1:{free_port()},{mock_broker.bootstrap}"
    with running_collector(tmp_path, brokers, "mock", {"logs": "several"}) as server:
        send(server, "logs", logs([log("told")]))
        topic.wait(lambda: [plain(record["body"]) for record in topic.records()] == ["told"], "it comes out")
    topic.close()


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_an_outage_of_kafka_loses_nothing_over_a_restart_and_a_kill(kafka: KafkaBroker, tmp_path: Path) -> None:
    topic = Topic(kafka.bootstrap, TOPIC, "logs")
    arrived = lambda: {plain(record["body"]) for record in topic.records()}  # noqa: E731 - read again at each look
    with running_collector(tmp_path, kafka.bootstrap, "real", {"logs": TOPIC}) as server:
        sender = Sender(server)
        sender.send(10)
        topic.wait(lambda: len(arrived()) == 10, "records come out before the outage")

        kafka.stop()
        began = time.monotonic()
        sender.send_for(outage_s() / 3)
        server.stop()
        server.start()
        sender.send_for(outage_s() / 3)
        # Straight after an answer: what is acknowledged is on disk.
        server.kill()
        server.start()
        sender.send(25)
        server.kill()
        server.start()
        while time.monotonic() < began + outage_s():
            sender.send(5)
        assert len(arrived()) == 10, "nothing was there to write to"
        kafka.start()

        topic.wait(lambda: arrived() >= set(sender.acknowledged), "all acknowledged records come out", 120.0)
        sender.send(10)
        topic.wait(lambda: arrived() >= set(sender.acknowledged), "records come out after the outage")
        print(f"{len(sender.acknowledged)} records were acknowledged")
        assert arrived() == set(sender.acknowledged)
    topic.close()
