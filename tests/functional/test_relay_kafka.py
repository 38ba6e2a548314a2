"""The outbox relay and a Kafka without a leader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from systems import read_topics, wait_until

from app.embedded.kafka import KafkaBroker
from app.kafka import make_relay_producer
from app.relay import OutboxRelay
from app.settings import Settings
from app.store import Database, outbox


class NoAudit:
    """Nothing is logged here."""

    async def log_body(self, body: dict[str, Any]) -> None:
        raise AssertionError(body)


def write(database: Database, topic: str, number: int) -> None:
    with database.write() as connection:
        outbox.publish(connection, topic, "key", {"number": number})


def untold(database: Database) -> int:
    with database.read() as connection:
        return len(outbox.pending(connection, 100))


@pytest.mark.kafka
@pytest.mark.timeout(300)
async def test_a_record_that_was_given_up_without_a_leader_does_not_stop_the_relay_for_ever(
    real_kafka: KafkaBroker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    topic = unique("told")
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    database.migrate()
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": real_kafka.bootstrap}})
    producer = make_relay_producer(settings)
    producer._message_accumulator._batch_ttl = 2.0  # 40 s in production: what is not sent by then is given up
    await producer.start()
    relay = OutboxRelay(database, NoAudit(), producer, "holder")
    running = asyncio.create_task(relay.run())
    try:
        write(database, topic, 1)
        await asyncio.to_thread(wait_until, lambda: untold(database) == 0, "the first record is told")
        cluster = producer._message_accumulator._cluster
        with pytest.MonkeyPatch.context() as patch:  # as brokers tell that elect a leader, for longer than that
            patch.setattr(cluster, "leader_for_partition", lambda _: -1)
            write(database, topic, 2)
            await asyncio.sleep(4.0)
            assert untold(database) == 1
        write(database, topic, 3)
        await asyncio.to_thread(wait_until, lambda: untold(database) == 0, "the rest is told", 60.0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await producer.stop()
        database.close()
    told = [record.value for record in (await asyncio.to_thread(read_topics, real_kafka.bootstrap, [topic]))[topic]]
    assert list(dict.fromkeys(told)) == [b'{"number":1}', b'{"number":2}', b'{"number":3}'], "in order, copies aside"
