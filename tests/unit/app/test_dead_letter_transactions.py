"""Each letter is handled once and whole, whoever else writes, and whatever ends a run: on Apache Kafka."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from dead_letter_desk import DEAD, INPUT, MB, Desk, contents, desk_on, eventually, known_input, replays

from agents.routing.dead_letters import OWNER
from app.dlq import handle as handling
from app.dlq import writer
from app.dlq.handle import Outcome, Unsettled, handle
from app.dlq.writer import Addressed, Fenced, NotExclusive, open_writer
from app.embedded.kafka import KafkaBroker
from app.embedded.mock_broker import MockBroker


@pytest.fixture
async def kafka(real_kafka: KafkaBroker, unique: Callable[[str], str]) -> Desk:
    """For what librdkafka's mock broker cannot do: it shows aborted records and shuts nobody out."""
    return await desk_on(real_kafka, unique("reason"))


@pytest.fixture
async def mock(mock_broker: MockBroker, unique: Callable[[str], str]) -> Desk:
    return await desk_on(mock_broker, unique("reason"))


async def test_a_broker_without_transactions_is_refused(mock: Desk) -> None:
    await mock.put(1)
    with pytest.raises(NotExclusive, match="--no-transactions"):
        await mock.run(mock.order(transactional=True))
    assert await mock.outstanding() == 1


def to_input(desk: Desk, value: bytes, partition: int = 0) -> Addressed:
    return Addressed(INPUT, partition, None, value, [("reason", desk.reason.encode())])


async def mine(desk: Desk) -> list[bytes | None]:
    reason = desk.reason.encode()
    return [r.value for r in await contents(desk.settings, INPUT) if dict(r.headers).get("reason") == reason]


@asynccontextmanager
async def open_transaction(desk: Desk, name: str) -> AsyncIterator[AIOKafkaProducer]:
    """A stranger's transaction in the dead-letter topic, open within the block and aborted after it."""
    producer = AIOKafkaProducer(bootstrap_servers=desk.broker.bootstrap, transactional_id=name)
    async with producer:
        await producer.begin_transaction()
        await producer.send_and_wait(DEAD, b"open", partition=0)
        yield producer
        await producer.abort_transaction()


@pytest.mark.kafka
async def test_whoever_opens_a_writer_shuts_the_one_before_out(kafka: Desk) -> None:
    async with open_writer(kafka.settings) as first:
        await first.write([to_input(kafka, b"first")])
        async with open_writer(kafka.settings) as second:
            with pytest.raises(Fenced, match="taken over"):
                await first.write([to_input(kafka, b"late"), to_input(kafka, b"late", 1)])
            await second.write([to_input(kafka, b"second")])
    assert await eventually(partial(mine, kafka), 2) == [b"first", b"second"]


@pytest.mark.kafka
async def test_shut_out_between_two_records_of_a_batch_it_is_told_why(
    kafka: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the producer says of the second record no more than that no transaction is open."""
    send = AIOKafkaProducer.send

    async def send_and_see(producer: AIOKafkaProducer, *args: Any, **kwargs: Any) -> Any:
        sent = await send(producer, *args, **kwargs)
        await asyncio.wait([producer._sender.sender_task], timeout=20)
        return sent

    async with open_writer(kafka.settings) as first, open_writer(kafka.settings) as second:
        with monkeypatch.context() as patched:
            patched.setattr(AIOKafkaProducer, "send", send_and_see)
            with pytest.raises(Fenced, match="taken over"):
                await first.write([to_input(kafka, b"late"), to_input(kafka, b"late", 1)])
        with pytest.raises(Fenced, match="taken over"):
            await first.write([to_input(kafka, b"later")])
        await second.write([to_input(kafka, b"second")])
    assert await eventually(partial(mine, kafka), 1) == [b"second"]


@pytest.mark.kafka
async def test_a_run_that_is_taken_over_in_the_middle_handles_nothing_twice(
    kafka: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await known_input(kafka)
    await kafka.put(12)
    monkeypatch.setattr(handling, "BATCH_LETTERS", 2)
    taken_over = asyncio.Event()
    second: list[Outcome] = []

    async def told(event_type: str, body: dict[str, Any]) -> str:
        # The first run has surveyed everything and holds its list; now another one does all of it.
        if not taken_over.is_set():
            taken_over.set()
            second.append(await kafka.run(kafka.order(limit=5)))
        return "entry"

    with pytest.raises(Fenced):
        await handle(kafka.settings, kafka.order(), told, lambda outcome: None)
    assert second[0].done == 5
    assert (await kafka.run(kafka.order())).done == 7
    owners = Counter(dict(record.headers)[OWNER] for record in await replays(kafka, before))
    assert len(owners) == 12
    assert set(owners.values()) == {1}


@pytest.mark.kafka
async def test_a_batch_is_written_whole_or_not_at_all(kafka: Desk) -> None:
    async with open_writer(kafka.settings) as writing:
        # Over the bound of the topic, so refused; what went before it in the batch is withdrawn.
        with pytest.raises(MessageSizeTooLargeError):
            await writing.write([to_input(kafka, b"small"), to_input(kafka, b"x" * (9 * MB), 1)])
        await writing.write([to_input(kafka, b"next")])
    assert await eventually(partial(mine, kafka), 1) == [b"next"]


@pytest.mark.kafka
async def test_a_batch_that_is_cancelled_leaves_nothing(kafka: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_writer(kafka.settings) as writing:
        monkeypatch.setattr(writer, "TRANSACTION_S", 0.0)
        with pytest.raises(writer.WriteUncertain, match="run it again"):
            await writing.write([to_input(kafka, b"late")])
        monkeypatch.undo()
        await writing.write([to_input(kafka, b"next")])
    assert await eventually(partial(mine, kafka), 1) == [b"next"]


@pytest.mark.kafka
async def test_marks_behind_an_open_transaction_are_waited_for(
    kafka: Desk, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await kafka.put(4)
    async with open_transaction(kafka, unique("stranger")):
        monkeypatch.setattr(handling, "SETTLED_WITHIN_S", 0.5)
        with pytest.raises(Unsettled, match="partition 0"):
            await kafka.run(kafka.order())
        monkeypatch.undo()
        waiting = asyncio.create_task(kafka.run(kafka.order()))
        await asyncio.sleep(0.5)
        assert not waiting.done()
    assert (await waiting).done == 4
