"""The outbox relay: in order, nothing lost, one at a time, whatever the receivers do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from app import relay as relay_module
from app.relay import OutboxRelay, Undeliverable
from app.store import Database, outbox


class Receivers:
    """Audit engine and Kafka in one, so that the order across both is seen; `fault` may raise before a delivery."""

    def __init__(self, fault: Callable[[Any], None] = lambda _: None) -> None:
        self.got: list[Any] = []
        self.fault = fault
        self.delay_s = 0.0

    async def log_body(self, body: dict[str, Any]) -> None:
        await self._take(body["entry_id"])

    async def send_and_wait(self, topic: str, value: bytes, key: bytes | None) -> None:
        assert (topic, key) == ("topic", b"key")
        await self._take(orjson.loads(value)["id"])

    async def _take(self, name: str) -> None:
        self.fault(name)
        await asyncio.sleep(self.delay_s)
        self.got.append(name)


def write(database: Database, count: int, start: int = 0) -> list[str]:
    """Messages by turns for Kafka and for the audit engine; returns their names in order."""
    names = [f"n{number:04d}" for number in range(start, start + count)]
    with database.write() as connection:
        for name in names:
            if int(name[1:]) % 2:
                outbox.audit(connection, "kind", {"entry_id": name})
            else:
                outbox.publish(connection, "topic", "key", {"id": name})
    return names


def relay(database: Database, receivers: Receivers, holder: str = "a") -> OutboxRelay:
    return OutboxRelay(database, receivers, receivers, holder)


def waiting(database: Database) -> int:
    with database.read() as connection:
        return len(outbox.pending(connection, 10_000))


@asynccontextmanager
async def running(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def test_everything_is_delivered_once_and_in_order(database: Database) -> None:
    receivers = Receivers()
    names = write(database, 230)
    delivering = relay(database, receivers)
    counts = [await delivering.deliver_once() for _ in range(4)]
    assert counts == [100, 100, 30, 0]
    assert receivers.got == names
    assert waiting(database) == 0


async def test_a_failing_receiver_holds_the_rest_back(database: Database) -> None:
    down = True

    def fault(name: str) -> None:
        if down and name == "n0004":
            raise ConnectionError("audit engine away")

    receivers = Receivers(fault)
    names = write(database, 10)
    delivering = relay(database, receivers)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await delivering.deliver_once()
        assert receivers.got == names[:4]  # nothing overtakes, nothing is told twice
        assert waiting(database) == 6
    down = False
    await delivering.deliver_once()
    assert receivers.got == names
    assert waiting(database) == 0


async def test_a_crash_before_the_mark_repeats_the_delivery_with_the_same_ids(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers = Receivers()
    names = write(database, 4)
    with database.write() as connection:
        made = outbox.audit(connection, "kind", {"no": "id of its own"})

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(outbox, "mark_delivered", crash)
        with pytest.raises(KeyboardInterrupt):
            await relay(database, receivers).deliver_once()
    assert receivers.got == [*names, made]
    await relay(database, receivers).deliver_once()
    assert receivers.got == [*names, made] * 2
    assert waiting(database) == 0


async def test_what_is_refused_for_good_is_passed_over(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    def fault(name: str) -> None:
        if name in {"n0001", "n0003"}:
            raise Undeliverable("422: no such field")

    receivers = Receivers(fault)
    names = write(database, 6)
    assert await relay(database, receivers).deliver_once() == 6
    assert receivers.got == [name for name in names if name not in {"n0001", "n0003"}]
    assert waiting(database) == 0
    assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 2
    with database.read() as connection:
        kept = outbox.refused(connection)
    assert {reason for _, reason in kept} == {"422: no such field"}
    assert len(kept) == 2, "what was never told is kept with the reason"


async def test_it_goes_on_by_itself_once_the_receiver_is_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "RETRY_S", 0.05)
    monkeypatch.setattr(relay_module, "IDLE_S", 0.02)
    faults = iter([ConnectionError(), TimeoutError(), ValueError()])

    def fault(_: str) -> None:
        error = next(faults, None)
        if error is not None:
            raise error

    receivers = Receivers(fault)
    names = write(database, 7)
    async with running(relay(database, receivers).run()):
        await until(lambda: waiting(database) == 0)
        names += write(database, 3, start=7)
        await until(lambda: waiting(database) == 0)
    assert receivers.got == names


async def test_of_two_relays_one_works(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "IDLE_S", 0.01)
    one, two = Receivers(), Receivers()
    names = write(database, 60)
    async with running(relay(database, one, "a").run(), relay(database, two, "b").run()):
        for start in range(60, 160, 20):
            names += await asyncio.to_thread(write, database, 20, start)
            await asyncio.sleep(0)
        await until(lambda: waiting(database) == 0)
    assert sorted([one.got, two.got], key=len) == [[], names]


async def test_a_slow_receiver_does_not_outlive_the_lease(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes longer than the lease would be told by a second relay while the first goes on telling it."""
    monkeypatch.setattr(relay_module, "LEASE_S", 0.6)
    monkeypatch.setattr(relay_module, "IDLE_S", 0.01)
    monkeypatch.setattr(relay_module, "RETRY_S", 0.01)
    receivers = Receivers()
    receivers.delay_s = 0.05
    names = write(database, 50)
    async with running(relay(database, receivers, "a").run(), relay(database, receivers, "b").run()):
        await until(lambda: waiting(database) == 0)
    assert receivers.got == names


async def test_a_hanging_receiver_is_given_up_before_the_lease_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "LEASE_S", 0.5)
    receivers = Receivers()
    receivers.delay_s = 60.0
    write(database, 2)
    with pytest.raises(TimeoutError):
        await relay(database, receivers).deliver_once()
    assert waiting(database) == 2


async def test_a_relay_that_closes_hands_over_at_once(database: Database) -> None:
    receivers = Receivers()
    first, second = relay(database, receivers, "a"), relay(database, receivers, "b")
    names = write(database, 2)
    await first.deliver_once()
    names += write(database, 2, start=2)
    assert await second.deliver_once() == 0
    await second.close()  # not its lease to give back
    assert await second.deliver_once() == 0
    await first.close()
    assert await second.deliver_once() == 2
    assert receivers.got == names


@limits(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.sampled_from(["ok", "down", "crash", "write"]), max_size=30))
def test_whatever_fails_the_first_deliveries_are_in_order(
    plan: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any mix of failures: every message arrives, repetitions aside in the order written."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('relay') / 'test.db'}")
    database.migrate()
    steps = iter(plan)
    written = write(database, 5)
    lock = threading.Lock()

    def fault(_: str) -> None:
        match next(steps, "ok"):
            case "down":
                raise ConnectionError
            case "crash":
                raise asyncio.CancelledError
            case "write":
                with lock:
                    written.extend(write(database, 1, start=len(written)))
            case _:
                pass

    receivers = Receivers(fault)

    async def drain() -> None:
        while waiting(database):
            try:
                await relay(database, receivers).deliver_once()
            except (ConnectionError, asyncio.CancelledError):
                continue

    asyncio.run(drain())
    database.close()
    assert list(dict.fromkeys(receivers.got)) == written
