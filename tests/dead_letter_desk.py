"""One test's dead letters on a broker that tests share: each has a reason of its own, which no other's letters have."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer

from agents.routing.dead_letters import REASON, dead_letter
from agents.routing.message import InboundMessage, Reason, Rejected
from app.dlq import look
from app.dlq.handle import Order, Outcome, handle
from app.dlq.survey import REPLAYED, Selection
from app.embedded.kafka import KafkaBroker
from app.embedded.mock_broker import MockBroker
from app.history import Record, open_reader, partitions_of, read_range
from app.settings import Settings

INPUT, DEAD = "otel-audit-events", "audit-dead-letters"
PARTITIONS = 4
MB = 1024 * 1024

Broker = MockBroker | KafkaBroker
T = TypeVar("T")


@dataclass
class Desk:
    """One test's letters on a shared broker, and what its runs announced."""

    broker: Broker
    reason: str
    settings: Settings
    announced: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def transactional(self) -> bool:
        return self.broker.kind == "kafka"

    async def put(self, count: int, *, omitted: int = 0, size: int = 10) -> list[str]:
        """Write letters over all partitions, the last ones without their value; returns their places."""
        places = []
        async with AIOKafkaProducer(bootstrap_servers=self.broker.bootstrap, acks="all") as producer:
            for number in range(count):
                value = None if number >= count - omitted else b"v%d " % number + b"x" * size
                message = InboundMessage(INPUT, number % PARTITIONS, number, b"", b"k%d" % number)
                if value is not None:
                    message.value, message.headers = value, {"content-type": b"application/json"}
                out = dead_letter(Rejected(message, 0, Reason.INVALID_JSON, "detail", value), 7 * MB)
                headers = [(name, told) for name, told in out.headers if name != REASON]
                headers.append((REASON, self.reason.encode()))
                sent = await producer.send_and_wait(
                    DEAD, out.value, key=out.key, partition=number % PARTITIONS, headers=headers
                )
                places.append(f"{sent.partition}:{sent.offset}")
        return places

    def order(self, verb: Any = REPLAYED, **changes: Any) -> Order:
        selection = {name: changes.pop(name) for name in ("places", "since_ms") if name in changes}
        chosen = Selection(reason=self.reason, **selection)
        return replace(Order(verb, chosen, "tester", "because", transactional=self.transactional), **changes)

    async def run(self, order: Order) -> Outcome:
        async def told(event_type: str, body: dict[str, Any]) -> str:
            self.announced.append((event_type, body))
            return f"entry-{len(self.announced)}"

        return await handle(self.settings, order, told, lambda outcome: None)

    async def states(self) -> Counter[str]:
        found, _ = await look.listing(self.settings, Selection(reason=self.reason), 10_000, every=True)
        return Counter(item.state for item in found)

    async def outstanding(self) -> int:
        return (await look.summary(self.settings, Selection(reason=self.reason)))[self.reason]


async def eventually(read: Callable[[], Awaitable[Collection[T]]], count: int) -> Collection[T]:
    """What `read` returns once that is so many; fails after 30 s."""
    deadline = asyncio.get_running_loop().time() + 30
    while len(found := await read()) < count:
        assert asyncio.get_running_loop().time() < deadline, f"{found!r} are too few"
        await asyncio.sleep(0.05)
    return found


async def contents(settings: Settings, topic: str) -> list[Record]:
    """All that is committed in a topic, once nothing of it is still to become visible."""
    async with open_reader(settings) as reader, open_reader(settings, committed=False) as all_of_it:
        places = await partitions_of(reader, topic)
        written = sum((await all_of_it.end_offsets(places)).values())

        async def visible() -> range:
            return range(sum((await reader.end_offsets(places)).values()))

        await eventually(visible, written)
        starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
    return [r for place in places async for r in read_range(settings, place, starts[place], ends[place])]


async def desk_on(broker: Broker, reason: str) -> Desk:
    settings = Settings.model_validate({"kafka": {"bootstrap_servers": broker.bootstrap, "linger_ms": 5}})
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        for topic in (INPUT, DEAD):
            await eventually(partial(producer.partitions_for, topic), PARTITIONS)
    return Desk(broker, reason, settings)


async def replays(desk: Desk, known: set[tuple[int, int]]) -> list[Record]:
    """What came into the input topic since `known` was read."""
    return [r for r in await contents(desk.settings, INPUT) if (r.partition, r.offset) not in known]


async def known_input(desk: Desk) -> set[tuple[int, int]]:
    return {(record.partition, record.offset) for record in await contents(desk.settings, INPUT)}
