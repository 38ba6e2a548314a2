"""The consumer beside a Kafka client that a test moves at the worst moment; without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from app.transport import ChunkConsumer, ChunkTransport
from app.transport.fetching import ChunkConsumerThread, Fetched

FIRST, SECOND = TP("in", 0), TP("in", 1)


class ChunkedApp(faust.App):
    def _new_transport(self) -> ChunkTransport:
        return ChunkTransport(self.conf.broker_consumer, self)


class Client:
    """As much of `AIOKafkaConsumer` as is used, over aiokafka's own record of positions."""

    def __init__(self) -> None:
        self._subscription = SubscriptionState()
        self._subscription.subscribe({"in"})
        self.commits: dict[Any, int | None] = {}
        self.assign()

    def assign(self) -> None:
        """A rebalance ends: what the client knew of positions is gone."""
        self._subscription.assign_from_subscribed([TopicPartition(*tp) for tp in (FIRST, SECOND)])

    def assignment(self) -> Any:
        return self._subscription.assigned_partitions()

    def seek(self, tp: Any, offset: int) -> None:
        self._subscription.seek(tp, offset)

    async def position(self, tp: Any) -> int:
        return self.at(tp)

    async def committed(self, tp: Any) -> int | None:
        return self.commits.get(tp)

    async def seek_to_beginning(self, tp: Any) -> None:
        self.seek(tp, 0)

    def at(self, tp: Any) -> int:
        return int(self._subscription.subscription.assignment.state_value(tp).position)


class Rig:
    """A consumer that is not started, its client, and the fetches between them."""

    def __init__(self) -> None:
        self.app = ChunkedApp("test", broker="kafka://nowhere", consumer_auto_offset_reset="earliest")
        self.consumer: ChunkConsumer = self.app.consumer
        self.client = Client()
        self.thread = self.consumer._thread
        self.thread._consumer = self.client
        self.thread.call_thread = lambda function, *args, **kwargs: function(*args, **kwargs)
        self.consumer._set_active_tps({FIRST, SECOND})
        self.client.seek(FIRST, 0)
        self.client.seek(SECOND, 0)
        self.fetched: Fetched | None = None
        self.consumer._getmany = self._getmany  # type: ignore[method-assign]
        self.before_it_arrives: Any = lambda: None

    def take(self, taken: dict[TP, Sequence[int]], to: dict[TP, int] | None = None) -> None:
        """The client hands out records of these offsets; its positions are then after them, or at `to`."""
        for tp, offsets in taken.items():
            self.client.seek(tp, offsets[-1] + 1)
        for tp, position in (to or {}).items():
            self.client.seek(tp, position)
        records = {
            tp: [SimpleNamespace(offset=n, timestamp=0, timestamp_type=0) for n in ns] for tp, ns in taken.items()
        }
        self.fetched = Fetched(records)
        self.fetched.at = self.thread._look(records)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        self.before_it_arrives()
        return self.fetched

    async def deliver(self) -> list[Any]:
        """What the consumer makes of the latest fetch."""
        found = []
        async for _, message in self.consumer.getmany(1.0):
            message.tracked = True  # an agent has it
            self.consumer._unacked_messages.add(message)
            found.append(message)
        return found

    async def read(self, taken: dict[TP, Sequence[int]], to: dict[TP, int] | None = None) -> list[Any]:
        """Fetch and deliver."""
        self.take(taken, to)
        return await self.deliver()

    def offset(self, tp: TP) -> int | None:
        """What would be committed now."""
        return self.consumer._new_offset(tp)


@pytest.fixture
async def rig() -> Rig:
    return Rig()


def spots(messages: list[Any]) -> list[tuple[int, list[int]]]:
    return [(m.partition, [record.offset for record in m.value.records]) for m in messages]


async def test_a_chunk_is_committed_once_it_is_acknowledged(rig: Rig) -> None:
    (message,) = await rig.read({FIRST: [0, 1, 4]}, to={FIRST: 7})
    assert (message.offset, spots([message])) == (0, [(0, [0, 1, 4])])
    assert rig.offset(FIRST) is None
    assert rig.consumer.ack(message)
    assert not rig.consumer.ack(message)
    assert rig.offset(FIRST) == 7
    assert not rig.consumer.unacked, "a rebalance would wait for it"


async def test_what_faust_skips_is_not_done(rig: Rig) -> None:
    (message,) = await rig.read({FIRST: [0, 1]})
    message.tracked = False
    message.ack(rig.consumer)
    assert rig.offset(FIRST) is None, "Faust's Python stream acknowledges what it skips while partitions are revoked"


async def test_faust_drops_nothing_and_sees_no_gap(rig: Rig) -> None:
    rig.consumer._read_offset[FIRST] = 500
    (message,) = await rig.read({FIRST: [90, 95]})
    assert rig.consumer._read_offset[FIRST] == message.offset == 90


async def test_records_that_come_while_flow_is_stopped_are_read_again_and_what_is_out_stays_known(rig: Rig) -> None:
    (out,) = await rig.read({FIRST: [0, 1]})
    rig.take({FIRST: [2, 3], SECOND: [0, 1]})
    rig.before_it_arrives = rig.consumer.stop_flow
    assert await rig.deliver() == []
    assert (rig.client.at(FIRST), rig.client.at(SECOND)) == (2, 0)
    rig.before_it_arrives = lambda: None
    rig.consumer.resume_flow()
    assert spots(await rig.read({FIRST: [2, 3], SECOND: [0, 1]})) == [(0, [2, 3]), (1, [0, 1])]
    assert rig.offset(FIRST) is None
    rig.consumer.ack(out)
    assert rig.offset(FIRST) == 2, "a rebalance commits what was out when it began"


async def test_records_of_a_partition_that_is_paused_are_read_again(rig: Rig) -> None:
    rig.take({FIRST: [0, 1], SECOND: [0, 1]})
    rig.before_it_arrives = lambda: rig.consumer.pause_partitions({FIRST})
    assert spots(await rig.deliver()) == [(1, [0, 1])]
    assert (rig.client.at(FIRST), rig.client.at(SECOND)) == (0, 2)
    assert rig.offset(FIRST) is None


async def test_flow_that_stops_between_chunks_leaves_the_rest(rig: Rig) -> None:
    rig.take({FIRST: [0], SECOND: [0]})
    found = []
    async for _, message in rig.consumer.getmany(1.0):
        found.append(message)
        rig.consumer.stop_flow()
    assert spots(found) == [(0, [0])]
    assert rig.client.at(SECOND) == 0


async def test_a_fetch_from_before_a_rebalance_is_no_longer_wanted(rig: Rig) -> None:
    await rig.read({FIRST: [0, 1]})
    rig.take({FIRST: [2, 3]})
    rig.client.assign()
    rig.client.seek(FIRST, 0)
    assert await rig.deliver() == []
    assert rig.client.at(FIRST) == 0, "it stands where the new assignment put it"
    assert rig.offset(FIRST) is None
    assert spots(await rig.read({FIRST: [0, 1, 2]})) == [(0, [0, 1, 2])]


async def test_what_is_given_back_too_late_stays_where_it_was_moved(rig: Rig) -> None:
    rig.take({FIRST: [0, 1], SECOND: [0, 1]})
    fetched = rig.fetched
    await rig.consumer.seek(FIRST, 2)  # by chance where it stood
    rig.client._subscription.subscription.assignment.state_value(SECOND).await_reset(0)
    for tp in (FIRST, SECOND):
        await rig.thread.give_back(tp, fetched)
    assert rig.client.at(FIRST) == 2
    assert not rig.client._subscription.subscription.assignment.state_value(SECOND).has_valid_position


async def test_partitions_that_are_revoked_are_forgotten(rig: Rig) -> None:
    async def wait_for_what_is_out(revoked: set[TP]) -> None:
        rig.consumer.ack(message)
        assert rig.offset(FIRST) == 2, "it can still be committed"

    rig.consumer._on_partitions_revoked = wait_for_what_is_out
    (message,) = await rig.read({FIRST: [0, 1]})
    await rig.consumer.on_partitions_revoked({FIRST, SECOND})
    assert rig.consumer.positions.places() == []


async def test_a_fetch_from_before_a_seek_is_no_longer_wanted_and_other_partitions_are(rig: Rig) -> None:
    rig.take({FIRST: [0, 1], SECOND: [0, 1]})
    await rig.consumer.seek_wait({FIRST: 50})
    assert spots(await rig.deliver()) == [(1, [0, 1])]
    assert rig.client.at(FIRST) == 50
    assert spots(await rig.read({FIRST: [50]})) == [(0, [50])]


@pytest.mark.parametrize("call", ["seek", "seek_wait"])
async def test_a_seek_of_one_partition_commits_nothing_of_another(rig: Rig, call: str) -> None:
    (held,) = await rig.read({FIRST: [0, 1]})
    await (rig.consumer.seek(SECOND, 7) if call == "seek" else rig.consumer.seek_wait({SECOND: 7}))
    await rig.read({SECOND: [7, 8]})
    assert rig.offset(FIRST) is None
    rig.consumer.ack(held)
    assert rig.offset(FIRST) == 2


async def test_between_a_seek_and_the_next_fetch_nothing_is_committed(rig: Rig) -> None:
    (message,) = await rig.read({FIRST: [0, 1]})
    rig.consumer.ack(message)
    await rig.consumer.seek(FIRST, 0)
    assert rig.offset(FIRST) is None
    (again,) = await rig.read({FIRST: [0, 1]})
    assert rig.offset(FIRST) is None
    rig.consumer.ack(again)
    assert rig.offset(FIRST) == 2


@pytest.mark.parametrize("empty_fetches", [0, 1])
async def test_commits_follow_a_seek_back(rig: Rig, empty_fetches: int) -> None:
    rig.consumer._committed_offset[FIRST] = 100
    await rig.consumer.seek(FIRST, 10)
    for _ in range(empty_fetches):
        await rig.read({})
    (message,) = await rig.read({FIRST: [10, 11]})
    rig.consumer.ack(message)
    assert rig.consumer._filter_committable_offsets([FIRST]) == {FIRST: 12}


async def test_a_log_made_anew_is_read_and_committed_from_its_start(rig: Rig) -> None:
    rig.client.commits[FIRST] = 500
    await rig.consumer.perform_seek()
    assert await rig.read({}) == []
    assert rig.offset(FIRST) == 500
    # Fetching at 500 the client is told that this is out of range, and resets itself.
    (message,) = await rig.read({FIRST: [0, 1, 2]})
    assert rig.offset(FIRST) is None
    rig.consumer.ack(message)
    assert rig.consumer._filter_committable_offsets([FIRST]) == {FIRST: 3}


async def test_a_start_goes_to_the_beginning_where_nothing_is_committed(rig: Rig) -> None:
    rig.client.commits[SECOND] = 30
    await rig.read({FIRST: [0, 1], SECOND: [0]})  # as a fetch that came too early might
    await rig.consumer.perform_seek()
    assert (rig.client.at(FIRST), rig.client.at(SECOND)) == (0, 30)
    assert spots(await rig.read({FIRST: [0, 1], SECOND: [30]})) == [(0, [0, 1]), (1, [30])]


async def test_what_another_has_committed_meanwhile_is_gone_on_from(rig: Rig) -> None:
    await rig.read({FIRST: [0, 1]})
    rig.client.commits[FIRST] = 30
    await rig.consumer.perform_seek()
    (message,) = await rig.read({FIRST: [30]})
    rig.consumer.ack(message)
    assert rig.offset(FIRST) == 31


async def test_a_seek_that_kafka_does_not_answer_fails_before_faust_gives_it_up(rig: Rig) -> None:
    async def never(tp: Any) -> int:
        await asyncio.sleep(3600)
        raise AssertionError

    rig.app.conf.broker_request_timeout = 0.1
    rig.client.committed = never  # type: ignore[method-assign]
    seek = asyncio.create_task(rig.consumer.perform_seek())
    await asyncio.wait([seek], timeout=5.0)
    assert isinstance(seek.exception(), TimeoutError)


async def test_a_commit_waits_for_the_one_under_way_and_then_commits_what_that_one_missed(rig: Rig) -> None:
    committed: list[dict[TP, int]] = []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def commit(offsets: dict[TP, int], start_new_transaction: bool = True) -> bool:
        committed.append(offsets)
        begun.set()
        await may_end.wait()
        return True

    rig.consumer._commit_offsets = commit  # type: ignore[method-assign]
    first, second = await rig.read({FIRST: [0], SECOND: [0]})
    rig.consumer.ack(first)
    under_way = asyncio.create_task(rig.consumer.commit())
    await begun.wait()
    rig.consumer.ack(second)
    last = asyncio.create_task(rig.consumer.commit())
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.gather(under_way, last)
    assert committed[0] == {FIRST: 1}
    assert committed[1][SECOND] == 1


async def test_lag_is_told_of_what_is_assigned(rig: Rig) -> None:
    rig.client._subscription.subscription.assignment.state_value(FIRST).highwater = 10
    rig.consumer._committed_offset[FIRST] = 4
    assert rig.consumer.lag() == {FIRST: 6}


async def test_faust_looks_for_no_stalled_stream_while_a_seek_is_under_way(rig: Rig) -> None:
    rig.client._subscription.subscription.assignment.state_value(FIRST).await_reset(0)
    await rig.consumer.verify_all_partitions_active()


def test_another_reset_policy_is_refused() -> None:
    app = ChunkedApp("test", broker="kafka://nowhere", consumer_auto_offset_reset="latest")
    with pytest.raises(ImproperlyConfigured, match="earliest"):
        _ = app.consumer


async def test_a_fetch_that_hands_its_cancellation_on_does_not_keep_the_thread_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen once in a stop over a connection that had broken: the worker then waited for its thread for ever."""
    closed = []

    class Client:
        async def close(self) -> None:
            closed.append(True)

    async def stop(_: Any) -> None:
        fetch = asyncio.ensure_future(asyncio.sleep(60))
        fetch.cancel()
        await fetch

    thread: Any = ChunkConsumerThread.__new__(ChunkConsumerThread)
    thread._consumer = SimpleNamespace(_client=Client())
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_thread_stop", stop)
    await thread.on_thread_stop()
    assert closed == [True]

    async def waits(_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_thread_stop", waits)
    ours = asyncio.ensure_future(thread.on_thread_stop())
    await asyncio.sleep(0)
    ours.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ours
