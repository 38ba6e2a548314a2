"""The agent's loop over a stream that a test controls: acknowledgement, retry, stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from agents.consume import ConsumeConfig, ConsumeLoop, to_inbound
from agents.routing.message import Halt, InboundMessage
from app.transport import Chunk

WITHIN_S = 10.0


def event(offset: int, generation: int = 1) -> Any:
    """A chunk of one record."""
    record = SimpleNamespace(topic="in", partition=0, offset=offset, key=None, value=b"x" * 10, headers=())
    return SimpleNamespace(
        message=SimpleNamespace(offset=offset, value=Chunk([record]), generation_id=generation), record=record
    )


class Stream:
    """Yields what is put in; remembers acknowledgements in order."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.acked: list[int] = []

    async def events(self) -> AsyncIterator[Any]:
        while (item := await self.queue.get()) is not None:
            yield item

    async def ack(self, item: Any) -> None:
        self.acked.append(item.message.offset)


class App:
    consumer_generation_id = 1

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.consumer = self
        self.commits = 0
        self.crashed: BaseException | None = None

    async def commit(self) -> None:
        self.commits += 1

    async def crash(self, reason: BaseException) -> None:
        self.crashed = reason

    async def wait_until_stopped(self) -> None:
        await self.stopping.wait()


class Rig:
    """A loop, and a handler whose `finish` the test gives."""

    def __init__(self, route: Callable[[Sequence[InboundMessage]], Any], **config: Any) -> None:
        self.app, self.stream = App(), Stream()
        self.opened = self.closed = 0
        self.close_s = 0.0
        self.finish = route
        self.prepared: list[list[int]] = []
        self.loop = ConsumeLoop(self.app, self.stream, self.open, ConsumeConfig(linger_s=0.01, **config), "test")
        self.task = asyncio.create_task(self.loop.run())

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        self.opened += 1
        try:
            yield self
        finally:
            await asyncio.sleep(self.close_s)
            self.closed += 1

    async def prepare(self, messages: Sequence[InboundMessage]) -> Sequence[InboundMessage]:
        self.prepared.append([message.offset for message in messages])
        return messages

    async def end(self) -> None:
        await self.stream.queue.put(None)
        await asyncio.wait_for(self.task, WITHIN_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def test_nothing_is_acknowledged_before_it_is_routed() -> None:
    may_finish = asyncio.Event()
    routed: list[int] = []

    async def route(messages: Sequence[InboundMessage]) -> None:
        await may_finish.wait()
        routed.extend(message.offset for message in messages)

    rig = Rig(route)
    for offset in range(5):
        await rig.stream.queue.put(event(offset))
    await until(lambda: rig.stream.queue.empty())
    assert rig.stream.acked == []
    may_finish.set()
    await until(lambda: rig.stream.acked == [0, 1, 2, 3, 4])
    await rig.end()
    assert routed == [0, 1, 2, 3, 4]
    assert (rig.opened, rig.closed) == (1, 1)


async def test_a_failure_reopens_the_pipeline_and_tries_the_same_batch_again() -> None:
    seen: list[list[int]] = []

    async def route(messages: Sequence[InboundMessage]) -> None:
        seen.append([message.offset for message in messages])
        if len(seen) < 3:
            raise RuntimeError("broken")

    rig = Rig(route)
    await rig.stream.queue.put(event(7))
    await until(lambda: rig.stream.acked == [7])
    await rig.end()
    assert seen == [[7], [7], [7]]
    assert rig.opened == rig.closed == 3


async def test_a_cancelled_batch_is_not_acknowledged_and_the_pipeline_is_closed_whole() -> None:
    routing = asyncio.Event()

    async def route(messages: Sequence[InboundMessage]) -> None:
        routing.set()
        await asyncio.sleep(3600)

    rig = Rig(route)
    rig.close_s = 0.1
    await rig.stream.queue.put(event(1))
    await asyncio.wait_for(routing.wait(), WITHIN_S)
    rig.task.cancel()
    await asyncio.sleep(0.02)
    rig.task.cancel()  # Faust cancels more than once
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(rig.task, WITHIN_S)
    assert rig.stream.acked == []
    assert (rig.opened, rig.closed) == (1, 1)


async def test_a_stop_gives_the_batch_in_hand_a_deadline() -> None:
    async def route(messages: Sequence[InboundMessage]) -> None:
        await asyncio.sleep(3600)

    rig = Rig(route, drain_timeout_s=0.2)
    await rig.stream.queue.put(event(1))
    await until(lambda: rig.opened == 1)
    rig.app.stopping.set()
    await asyncio.wait_for(rig.task, WITHIN_S)
    assert rig.stream.acked == []
    assert rig.closed == 1


async def test_messages_of_an_older_generation_are_left_to_their_new_owner() -> None:
    routed: list[int] = []

    async def route(messages: Sequence[InboundMessage]) -> None:
        routed.extend(message.offset for message in messages)

    rig = Rig(route)
    await rig.stream.queue.put(event(1, generation=0))
    await rig.stream.queue.put(event(2))
    await until(lambda: rig.stream.acked == [2])
    await rig.end()
    assert routed == [2]


@pytest.mark.parametrize(("limits", "most"), [({"batch_messages": 3}, 3), ({"batch_bytes": 25}, 3)])
async def test_batches_and_what_waits_beside_them_are_bounded(limits: dict[str, int], most: int) -> None:
    may_finish = asyncio.Event()
    sizes: list[int] = []

    async def route(messages: Sequence[InboundMessage]) -> None:
        sizes.append(len(messages))
        await may_finish.wait()

    rig = Rig(route, **limits)
    for offset in range(20):
        await rig.stream.queue.put(event(offset))
    await until(lambda: bool(sizes))
    await asyncio.sleep(0.05)
    assert rig.stream.queue.qsize() >= 20 - 3 * most - 1, "what Kafka sends on is held back"
    may_finish.set()
    await until(lambda: len(rig.stream.acked) == 20)
    await rig.end()
    assert max(sizes) <= most
    assert rig.stream.acked == list(range(20))


async def test_the_next_batch_is_prepared_while_one_is_finished_and_finished_after_it() -> None:
    may_finish = asyncio.Event()
    finished: list[int] = []

    async def finish(messages: Sequence[InboundMessage]) -> None:
        await may_finish.wait()
        finished.extend(message.offset for message in messages)

    rig = Rig(finish)
    await rig.stream.queue.put(event(0))
    await until(lambda: rig.prepared == [[0]])
    await rig.stream.queue.put(event(1))
    await until(lambda: rig.prepared == [[0], [1]])
    assert finished == []
    may_finish.set()
    await until(lambda: rig.stream.acked == [0, 1])
    assert rig.app.commits == 2
    await rig.end()
    assert finished == [0, 1]


async def test_what_was_prepared_by_a_broken_handler_is_prepared_again_in_order() -> None:
    begun = asyncio.Event()
    broken = asyncio.Event()
    finished: list[int] = []

    async def finish(messages: Sequence[InboundMessage]) -> None:
        begun.set()
        if not broken.is_set():
            await broken.wait()
            raise RuntimeError("broken")
        finished.extend(message.offset for message in messages)

    rig = Rig(finish)
    await rig.stream.queue.put(event(0))
    await begun.wait()
    await rig.stream.queue.put(event(1))
    await until(lambda: rig.prepared == [[0], [1]])
    broken.set()
    await until(lambda: rig.stream.acked == [0, 1])
    await rig.end()
    assert rig.prepared == [[0], [1], [0], [1]]
    assert finished == [0, 1]
    assert rig.opened == 2


async def test_a_halt_lets_what_was_decided_go_out_and_stops_the_worker() -> None:
    begun, may_finish = asyncio.Event(), asyncio.Event()
    finished: list[int] = []

    async def finish(messages: Sequence[InboundMessage]) -> None:
        begun.set()
        await may_finish.wait()
        finished.extend(message.offset for message in messages)

    rig = Rig(finish)

    async def prepare(messages: Sequence[InboundMessage]) -> Sequence[InboundMessage]:
        if messages[0].offset == 1:
            raise Halt("too many dead letters")
        return messages

    rig.prepare = prepare  # type: ignore[method-assign]
    await rig.stream.queue.put(event(0))
    await begun.wait()
    await rig.stream.queue.put(event(1))
    may_finish.set()
    await asyncio.wait_for(rig.task, WITHIN_S)
    assert finished == [0]
    assert rig.stream.acked == [0]
    assert isinstance(rig.app.crashed, Halt)


def test_header_names_come_in_any_case() -> None:
    record = event(1).record
    record.headers = (("Content-Type", b"a"), ("empty", None))
    assert to_inbound(record).headers == {"content-type": b"a"}
