"""Live settings from SQL over Redis to a router: copied, watched, kept, whatever is away or holds nonsense."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
import redis as sync_redis

from agents.routing.live import LiveValues
from app.embedded.redis import RedisServer
from app.embedded.redis_cluster import RedisCluster
from app.embedded.run_directory import RunDirectory
from app.live import KEY, Client, Document, LiveCopier, LiveWatcher, configured_values, read_copy
from app.redis import make_redis
from app.settings import Settings, SettingsError, load_settings
from app.store import Database, live_settings, outbox
from models.event import Classification

CONFIGURED = configured_values(Settings())
RATE, WINDOW = "policy_evaluation.sample_rate", "dedup.window_s"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this module's own: the key is one for a whole system."""
    with RunDirectory.create(tmp_path_factory.mktemp("live")) as run:
        server = RedisServer(run)
        server.start()
        yield server
        server.stop()


@pytest.fixture(params=["single", "cluster"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings of one Redis server, and of a Redis Cluster."""
    if request.param == "single":
        return redis_settings(request.getfixturevalue("server"))
    cluster: RedisCluster = request.getfixturevalue("redis_cluster")
    return Settings.model_validate({"redis": {"url": cluster.url, "cluster": True}})


def redis_settings(server: RedisServer) -> Settings:
    return Settings.model_validate({"redis": {"url": server.url}})


@asynccontextmanager
async def emptied(settings: Settings) -> AsyncIterator[Client]:
    client = make_redis(settings)
    try:
        await client.delete(KEY)
        yield client
    finally:
        await client.aclose()


@pytest_asyncio.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    async with emptied(settings) as client:
        yield client


@pytest_asyncio.fixture
async def single(server: RedisServer) -> AsyncIterator[Client]:
    """The one server alone, for what does not differ on a cluster."""
    async with emptied(redis_settings(server)) as client:
        yield client


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    yield database
    database.close()


def change(database: Database, name: str, value: Any) -> int:
    """Change a setting and have its audit entry delivered; the revision."""
    with database.write() as connection:
        made = live_settings.change(connection, name, value, changed_by="alice")
        outbox.mark_delivered(connection, [item.seq for item in outbox.pending(connection)])
    return made.revision


async def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    end = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, "the condition did not come to hold"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def copying(copier: LiveCopier) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(copier.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Router:
    """What a router has of live settings."""

    def __init__(self, client: Client, path: Path) -> None:
        self.seen: list[LiveValues] = []
        self.watcher = LiveWatcher(client, CONFIGURED, self.seen.append, path, poll_s=0.02)

    @property
    def revision(self) -> int:
        found: int = self.watcher.snapshot()["revision"]
        return found

    @property
    def rate(self) -> float:
        return self.seen[-1].rules.sample_rate(Classification.POLICY_EVALUATION)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def document(revision: int, **values: Any) -> bytes:
    return orjson.dumps({"revision": revision, "values": {name.replace("__", "."): v for name, v in values.items()}})


# --- copying ------------------------------------------------------------------------------------------------------


async def test_what_is_audited_is_copied(client: Client, database: Database) -> None:
    copier = LiveCopier(lambda: database, client)
    assert await copier.copy_once()
    assert await client.get(KEY) == b'{"revision":0,"values":{}}'
    assert not await copier.copy_once()
    with database.write() as connection:
        live_settings.change(connection, RATE, 0.5, changed_by="alice")
    assert not await copier.copy_once(), "the audit engine does not have it yet"
    revision = change(database, WINDOW, 60)
    assert await copier.copy_once()
    assert orjson.loads(await client.get(KEY)) == {"revision": revision, "values": {RATE: 0.5, WINDOW: 60}}
    assert not await copier.copy_once()


@pytest.mark.parametrize(
    "held", [None, b"", b"nonsense", b'{"revision":99,"values":{}}', "naïve \udc80".encode("utf-8", "replace")]
)
async def test_a_copy_that_is_lost_or_differs_is_put_right(
    client: Client, database: Database, held: bytes | None
) -> None:
    copier = LiveCopier(lambda: database, client)
    revision = change(database, RATE, 0.5)
    await copier.copy_once()
    if held is None:
        await client.delete(KEY)
    else:
        await client.set(KEY, held)
    assert await copier.copy_once()
    assert Document.parse(await client.get(KEY)) == Document(revision, {RATE: 0.5})


async def test_a_copier_that_was_held_up_puts_nothing_older_back(client: Client, database: Database) -> None:
    change(database, RATE, 0.5)
    await LiveCopier(lambda: database, client).copy_once()
    change(database, RATE, 0.6)
    loop = asyncio.get_running_loop()

    def meanwhile() -> Database:
        """Between this copier's two looks, another puts revision 9 there."""
        asyncio.run_coroutine_threadsafe(client.set(KEY, document(9)), loop).result(10)  # type: ignore[arg-type]
        return database

    assert not await LiveCopier(meanwhile, client).copy_once()
    assert await client.get(KEY) == document(9)


async def test_copying_goes_on_whatever_is_away(
    server: RedisServer, single: Client, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sql_away = False

    def store() -> Database:
        if sql_away:
            return Database("postgresql+psycopg://user:hunter2@127.0.0.1:1/nothing")
        return database

    def copied() -> Document | None:
        with sync_redis.Redis.from_url(server.url) as other:
            held = other.get(KEY)
        return None if held is None else Document.parse(held)  # type: ignore[arg-type]

    async with copying(LiveCopier(store, single, poll_s=0.02)) as task:
        first = change(database, RATE, 0.5)
        await until(lambda: copied() == Document(first, {RATE: 0.5}))
        server.kill()
        await until(lambda: warnings(caplog))
        server.start()
        await until(lambda: copied() == Document(first, {RATE: 0.5}))
        assert len(warnings(caplog)) == 1, "an outage is told once"
        sql_away = True
        await until(lambda: len(warnings(caplog)) == 2)
        second = change(database, RATE, 0.6)
        assert copied() == Document(first, {RATE: 0.5})
        sql_away = False
        await until(lambda: copied() == Document(second, {RATE: 0.6}))
        assert not task.done()
    told = warnings(caplog)
    assert len(told) == 2
    assert "Redis is away" in told[0]
    assert "SQL is away" in told[1]
    assert "hunter2" not in caplog.text
    assert server.url not in caplog.text
    assert caplog.text.count("copied to Redis again") == 2


# --- watching -----------------------------------------------------------------------------------------------------


async def test_a_router_takes_over_what_is_copied(client: Client, tmp_path: Path) -> None:
    router = Router(client, tmp_path / "deep" / "routing.json")
    await client.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    async with router.watcher.watching():
        assert router.watcher.snapshot() == {"revision": 3, "values": {RATE: 0.5}}, "before the first record"
        assert router.rate == 0.5
        await client.set(KEY, document(4, policy_evaluation__sample_rate=0.6, dedup__on_outage="pass"))
        await until(lambda: router.revision == 4)
        assert router.rate == 0.6
        assert router.seen[-1].on_outage == "pass"
        await client.set(KEY, document(5, dead_letters__max_run=7))
        await until(lambda: router.revision == 5)
        assert router.rate == 0.2, "back to what is configured"
        assert router.seen[-1].on_outage == "wait"
        assert router.seen[-1].dead_letter_limits.max_run == 7
    assert len(router.seen) == 3, "nothing is told twice"
    assert Document.parse((tmp_path / "deep" / "routing.json").read_bytes()) == Document(5, {"dead_letters.max_run": 7})


async def test_where_nothing_was_ever_set_nothing_is_told(client: Client, tmp_path: Path) -> None:
    router = Router(client, tmp_path / "routing.json")
    await client.set(KEY, document(0))
    await router.watcher.start()
    await router.watcher.poll()
    assert router.seen == []
    assert router.watcher.snapshot() == {"revision": 0, "values": {}}


async def test_a_router_keeps_what_it_had_while_redis_is_away_also_over_a_restart(
    server: RedisServer, single: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "routing.json"
    router = Router(single, file)
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    async with router.watcher.watching():
        server.kill()
        await until(lambda: warnings(caplog))
        for _ in range(5):
            await router.watcher.poll()
        assert len(warnings(caplog)) == 1
        assert (router.revision, router.rate) == (3, 0.5)
        restarted = Router(single, file)
        await restarted.watcher.start()
        assert restarted.watcher.snapshot() == {"revision": 3, "values": {RATE: 0.5}}
        assert restarted.rate == 0.5
        server.start()
        # It comes back empty: still nobody loses what is in force.
        await until(lambda: "holds no live settings; revision 3" in caplog.text)
        assert (router.revision, len(router.seen)) == (3, 1)
        await single.set(KEY, document(4, policy_evaluation__sample_rate=0.6))
        await until(lambda: router.revision == 4)
        await restarted.watcher.poll()
        assert restarted.rate == router.rate == 0.6
    assert "read from Redis again" in caplog.text


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"revision": 4}',
        b'{"revision": "4", "values": {}}',
        b'{"revision": true, "values": {}}',
        b'{"revision": -1, "values": {}}',
        b'{"revision": 4, "values": []}',
        document(4, policy_evaluation__sample_rate=0),
        document(4, policy_evaluation__sample_rate="0.5"),
        document(4, constitutional_violation__sample_rate=0.5),
        document(4, policy_evaluation__sample_rate=0.7, dedup__window_s=0),
        b'{"revision": 4, "values": {"dedup.window_s": 1e400}}',
    ],
)
async def test_nonsense_in_redis_changes_nothing_and_is_told_once(
    single: Client, tmp_path: Path, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "routing.json"
    router = Router(single, file)
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    await router.watcher.start()
    kept = file.read_bytes()
    await single.set(KEY, nonsense)
    for _ in range(3):
        await router.watcher.poll()
    assert (router.revision, router.rate, len(router.seen)) == (3, 0.5, 1)
    assert file.read_bytes() == kept
    (told,) = warnings(caplog)
    assert "revision 3 stays in force" in told
    await single.set(KEY, document(4, policy_evaluation__sample_rate=0.6))
    await router.watcher.poll()
    assert router.rate == 0.6


async def test_a_key_of_another_kind_changes_nothing(single: Client, tmp_path: Path) -> None:
    router = Router(single, tmp_path / "routing.json")
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    await router.watcher.start()
    await single.delete(KEY)
    await single.rpush(KEY, "x")  # type: ignore[misc]
    await router.watcher.poll()
    assert router.revision == 3


async def test_a_setting_of_a_newer_version_is_left_out_and_the_others_count(
    single: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router(single, tmp_path / "routing.json")
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5, later__setting=[1]))
    await router.watcher.start()
    await router.watcher.poll()
    assert router.rate == 0.5
    assert len(router.seen) == 1
    assert [text for text in warnings(caplog) if "later.setting" in text] == warnings(caplog)
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", document(7, dedup__window_s=-1), b"\x00" * 100])
async def test_a_file_that_holds_nonsense_is_passed_over(
    single: Client, tmp_path: Path, kept: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "routing.json"
    file.write_bytes(kept)
    router = Router(single, file)
    await router.watcher.start()
    assert router.watcher.snapshot() == {"revision": 0, "values": {}}
    assert str(file) in warnings(caplog)[0]
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    await router.watcher.poll()
    assert Document.parse(file.read_bytes()).revision == 3


async def test_a_file_that_cannot_be_written_hinders_nothing(
    single: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    router = Router(single, tmp_path / "file" / "routing.json")
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    await router.watcher.start()
    assert router.rate == 0.5
    assert "cannot be kept" in warnings(caplog)[-1]


async def test_the_file_is_replaced_whole_and_is_the_owners(single: Client, tmp_path: Path) -> None:
    file = tmp_path / "routing.json"
    router = Router(single, file)
    for revision in range(1, 4):
        await single.set(KEY, document(revision))
        await router.watcher.poll()
        assert Document.parse(file.read_bytes()).revision == revision
    assert os.listdir(tmp_path) == ["routing.json"], "nothing temporary is left"  # noqa: PTH208
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_a_change_that_a_router_fails_to_take_over_is_tried_again(
    single: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([RuntimeError(), RuntimeError()])
    seen: list[LiveValues] = []

    def take(values: LiveValues) -> None:
        for fault in faults:
            raise fault
        seen.append(values)

    watcher = LiveWatcher(single, CONFIGURED, take, tmp_path / "routing.json", poll_s=0.01)
    await single.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    async with watcher.watching():
        await until(lambda: seen)
    assert watcher.snapshot()["revision"] == 3
    assert len(warnings(caplog)) == 1


async def test_sql_restored_from_a_backup_wins(single: Client, database: Database, tmp_path: Path) -> None:
    router = Router(single, tmp_path / "routing.json")
    await single.set(KEY, document(30, policy_evaluation__sample_rate=0.9))
    await router.watcher.start()
    revision = change(database, RATE, 0.5)
    assert revision < 30
    await LiveCopier(lambda: database, single).copy_once()
    await router.watcher.poll()
    assert (router.revision, router.rate) == (revision, 0.5)


async def test_from_a_change_to_every_router(client: Client, database: Database, tmp_path: Path) -> None:
    routers = [Router(client, tmp_path / f"{number}.json") for number in range(3)]
    async with copying(LiveCopier(lambda: database, client, poll_s=0.02)):
        watching = [router.watcher.watching() for router in routers]
        for context in watching:
            await context.__aenter__()
        for rate in (0.5, 0.6, None):
            revision = change(database, RATE, rate)
            await until(lambda revision=revision: all(router.revision == revision for router in routers))
            assert {router.rate for router in routers} == {rate or 0.2}
        for context in watching:
            await context.__aexit__(None, None, None)


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_in_the_middle_of_a_command_ends_the_task(
    client: Client, database: Database, tmp_path: Path, turns: int
) -> None:
    """Before Python 3.12 redis-py swallows most of them, and whoever waits for the task would wait for ever."""
    seen: list[LiveValues] = []
    watcher = LiveWatcher(client, CONFIGURED, seen.append, tmp_path / "routing.json", poll_s=0.0)
    await watcher.start()
    for run in (watcher.run, LiveCopier(lambda: database, client, poll_s=0.0).run):
        task = asyncio.create_task(run())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=10.0)
        assert task.cancelled()


async def test_reading_the_copy(settings: Settings, client: Client) -> None:
    assert await read_copy(settings) is None
    await client.set(KEY, document(3, policy_evaluation__sample_rate=0.5))
    assert await read_copy(settings) == Document(3, {RATE: 0.5})
    await client.set(KEY, "nonsense")
    assert await read_copy(settings) is None


@pytest.mark.parametrize("cluster", [False, True])
async def test_a_copy_that_cannot_be_read_is_none(cluster: bool) -> None:
    away = Settings.model_validate({"redis": {"url": "redis://127.0.0.1:1/0", "cluster": cluster}})
    assert await read_copy(away) is None


@pytest.mark.parametrize("cluster", [False, True])
async def test_a_router_starts_with_no_redis_at_all(
    cluster: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = Settings.model_validate({"redis": {"url": "redis://:hunter2@127.0.0.1:1/0", "cluster": cluster}})
    client = make_redis(away)
    router = Router(client, tmp_path / "routing.json")
    async with router.watcher.watching():
        await router.watcher.poll()
        assert router.seen == []
    await client.aclose()
    assert len(warnings(caplog)) == 1
    assert "hunter2" not in caplog.text


# --- the client ---------------------------------------------------------------------------------------------------


async def test_a_client_speaks_bytes_or_text(settings: Settings) -> None:
    for decode, expected in ((False, b"value"), (True, "value")):
        client = make_redis(settings, decode=decode)
        await client.set("app-redis-test", "value", ex=60)
        assert await client.get("app-redis-test") == expected
        await client.aclose()


@pytest.mark.parametrize("url", ["redis://h:1/2", "rediss://user:hunter2@h/7"])
def test_a_cluster_has_one_database(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as refused:
        load_settings({"FLYWHEEL_REDIS__URL": url, "FLYWHEEL_REDIS__CLUSTER": "true"})
    told = str(refused.value)
    assert "redis.cluster is on, and redis.url names a database" in told
    assert "end the URL with /0" in told
    assert "hunter2" not in told


@pytest.mark.parametrize("url", ["redis://h:1", "redis://h:1/", "redis://h:1/0"])
def test_urls_that_fit_a_cluster(url: str) -> None:
    assert Settings.model_validate({"redis": {"url": url, "cluster": True}}).redis.cluster
