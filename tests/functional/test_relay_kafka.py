"""The outbox relay and a Kafka that goes away."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import unavailable
from systems import read_topics, wait_until

from app.embedded.errors import ProgramMissing
from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.run_directory import RunDirectory
from app.kafka import make_relay_producer
from app.relay import OutboxRelay
from app.settings import Settings
from app.store import Database, outbox

TOPIC = "told"


class NoAudit:
    """Nothing is logged here."""

    async def log_body(self, body: dict[str, Any]) -> None:
        raise AssertionError(body)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A Kafka that the test may stop."""
    with RunDirectory.create(tmp_path / "run") as run:
        broker = KafkaBroker(run, default_cache(os.environ), heap_mb=256)
        try:
            broker.start()
        except ProgramMissing as missing:
            unavailable(missing.what, missing.command)
        yield broker
        broker.stop()


def write(database: Database, number: int) -> None:
    with database.write() as connection:
        outbox.publish(connection, TOPIC, "key", {"number": number})


def untold(database: Database) -> int:
    with database.read() as connection:
        return len(outbox.pending(connection, 100))


@pytest.mark.kafka
@pytest.mark.timeout(300)
async def test_a_record_that_was_given_up_while_kafka_was_away_does_not_stop_the_relay_for_ever(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    database.migrate()
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": broker.bootstrap}})
    producer = make_relay_producer(settings)
    producer._message_accumulator._batch_ttl = 2.0  # 40 s in production: what is not sent by then is given up
    await producer.start()
    relay = OutboxRelay(database, NoAudit(), producer, "holder")
    running = asyncio.create_task(relay.run())
    try:
        write(database, 1)
        await asyncio.to_thread(wait_until, lambda: untold(database) == 0, "the first record is told")
        await asyncio.to_thread(broker.stop)
        write(database, 2)
        await asyncio.sleep(6.0)  # given up twice
        assert untold(database) == 1
        await asyncio.to_thread(broker.start)
        write(database, 3)
        await asyncio.to_thread(wait_until, lambda: untold(database) == 0, "the rest is told", 60.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await producer.stop()
        database.close()
    told = [record.value for record in (await asyncio.to_thread(read_topics, broker.bootstrap, [TOPIC]))[TOPIC]]
    assert list(dict.fromkeys(told)) == [b'{"number":1}', b'{"number":2}', b'{"number":3}'], "in order, copies aside"
