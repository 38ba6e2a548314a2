"""The embedded servers themselves: found, started, private, ended."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy

from app.embedded.errors import EmbeddedError, ProgramMissing
from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import KAFKA_VERSION, default_cache, fetch_jars, find_java, jar_folder
from app.embedded.mock_broker import MockBroker
from app.embedded.postgres import PostgresServer
from app.embedded.redis import RedisServer, find_redis, wheel_redis
from app.embedded.run_directory import RunDirectory
from app.embedded.stack import Stack

# Starts services in a run of one name, says where they are, and waits to be killed.
ORCHESTRATOR = """
import sys, time
from pathlib import Path
from app.embedded.postgres import PostgresServer
from app.embedded.run_directory import RunDirectory
from app.embedded.stack import Stack
run = RunDirectory.create(Path(sys.argv[1]), "same")
stack = Stack(run, broker="mock", cache=Path(sys.argv[1]))
stack.start()
if "postgres" in sys.argv:
    stack.add(PostgresServer(run))
print(stack.redis.url, flush=True)
time.sleep(600)
"""


def orchestrate(*arguments: str) -> tuple[subprocess.Popen[str], str, list[int]]:
    """Run the orchestrator: its process, Redis' URL, and the numbers of its children."""
    orchestrator = subprocess.Popen([sys.executable, "-c", ORCHESTRATOR, *arguments], stdout=subprocess.PIPE, text=True)
    assert orchestrator.stdout is not None
    url = orchestrator.stdout.readline().strip()
    orchestrator.stdout.close()
    records = Path(arguments[0], "same", "pids").glob("*.json")
    return orchestrator, url, [json.loads(record.read_text())["pid"] for record in records]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(tmp_path / "run") as made:
        yield made


def program(folder: Path, name: str, script: str) -> Path:
    """A shell script in the place of a program of the machine."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("which", ["machine", "wheel"])
def test_redis_serves_by_password_and_writes_nothing(run: RunDirectory, which: str) -> None:
    found = wheel_redis() if which == "wheel" else find_redis()
    assert found is not None
    server = RedisServer(run, found)
    server.start()
    client = redis.Redis.from_url(server.url)
    client.set("a", "b")
    assert client.get("a") == b"b"
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("bind") == {"bind": "127.0.0.1"}
    client.close()
    stranger = redis.Redis.from_url(server.url.replace("redis://:", "redis://:wrong"))
    with pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()
    stranger.close()
    assert stat.S_IMODE((run.data / "redis.conf").stat().st_mode) == 0o600
    url = server.url
    server.kill()
    server.start()
    assert server.url == url
    with redis.Redis.from_url(url) as empty:
        assert empty.get("a") is None
    server.stop()
    assert [path.name for path in run.data.iterdir()] == ["redis.conf"]


def test_an_old_redis_of_the_machine_gives_way_to_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "redis-server", "echo 'Redis server v=5.0.7 sha=00000000:0'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_redis() == wheel_redis()
    newer = program(tmp_path / "bin", "valkey-server", "echo 'Valkey server v=8.1.1 sha=00000000:0'")
    assert find_redis() == newer


def test_the_mock_broker_serves_and_ends(run: RunDirectory) -> None:
    broker = MockBroker(run)
    broker.start()
    first = broker.bootstrap
    assert first.startswith("127.0.0.1:")
    broker.stop()
    assert list(run.data.iterdir()) == []
    broker.start()
    broker.check()
    broker.stop()


def test_a_mock_broker_started_by_hand_ends_with_its_parent(tmp_path: Path) -> None:
    ready = tmp_path / "address"
    parent = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
    command = (sys.executable, "-m", "app.embedded.mock_broker", "--ready-file", str(ready))
    with subprocess.Popen([sys.executable, "-c", parent, *command], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        shell.stdout.readline()
        _await(ready.exists)
        shell.kill()
        _await(lambda: not ready.exists())


def _await(condition: Callable[[], bool], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres")  # skips where the machine has none; the cluster here is one more beside it
def test_postgres_takes_its_password_and_leaves_nothing(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        server = PostgresServer(run)
        with pytest.raises(EmbeddedError, match="before it is started"):
            server.url()
        server.start()
        folder = Path((run.path / "scratch").read_text().strip())
        engine = sqlalchemy.create_engine(server.url())
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SHOW listen_addresses")) == "127.0.0.1"
        engine.dispose()
        url = sqlalchemy.make_url(server.url()).set(password="wrong")
        stranger = sqlalchemy.create_engine(url)
        with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
            stranger.connect()
        stranger.dispose()
        server.stop()
        server.start()
        server.stop()
    assert not folder.exists()


def test_every_database_is_new(database_url: str) -> None:
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE only_here (id INTEGER PRIMARY KEY)"))
        connection.execute(sqlalchemy.text("INSERT INTO only_here VALUES (1)"))
        assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM only_here")) == 1
    engine.dispose()


def test_the_cache_folder_follows_the_environment(tmp_path: Path) -> None:
    assert default_cache({"FLYWHEEL_CACHE": str(tmp_path)}) == tmp_path
    assert default_cache({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "constitutional-flywheel"
    assert default_cache({}) == Path.home() / ".cache" / "constitutional-flywheel"


def test_missing_java_and_maven_name_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ProgramMissing, match="apt-get install default-jre-headless maven"):
        find_java()
    with pytest.raises(ProgramMissing, match="no `mvn`"):
        fetch_jars(tmp_path / "cache")


@pytest.mark.parametrize(
    ("told", "old"),
    [('openjdk version "11.0.2" 2019-01-15', "11"), ('java version "1.8.0_392"', "8"), ("nonsense", "0")],
)
def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, old: str) -> None:
    program(tmp_path / "bin", "java", f"echo '{told}' >&2")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ProgramMissing, match=f"needs Java 17, .* is {old}"):
        find_java()


def test_a_current_java_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = program(tmp_path / "bin", "java", "echo 'openjdk version \"21\" 2023-09-19' >&2")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_java() == java


def test_a_failed_fetch_leaves_no_jars_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "mvn", "mkdir jars; echo cannot resolve; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EmbeddedError, match=r"could not fetch Apache Kafka(.|\n)*cannot resolve"):
        fetch_jars(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_jars_are_fetched_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, jar = tmp_path / "cache", f"kafka_2.13-{KAFKA_VERSION}.jar"
    program(tmp_path / "bin", "mvn", f"mkdir jars; touch jars/{jar}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert fetch_jars(cache) == jar_folder(cache)
    assert [path.name for path in jar_folder(cache).iterdir()] == [jar]
    shutil.rmtree(tmp_path / "bin")
    assert fetch_jars(cache) == jar_folder(cache)
    assert list(cache.iterdir()) == [jar_folder(cache)]


def test_kafka_has_no_address_before_it_is_started(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="before it is started"):
        _ = KafkaBroker(run, tmp_path).bootstrap


def test_the_stack_starts_and_ends_as_one(run: RunDirectory, tmp_path: Path) -> None:
    with Stack(run, broker="mock", cache=tmp_path) as stack:
        stack.check()
        with redis.Redis.from_url(stack.redis.url) as client:
            assert client.ping()
        url = stack.redis.url
    assert list(run.pids.iterdir()) == []
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.ConnectionError):
        client.ping()


def test_stacks_side_by_side_are_apart(tmp_path: Path) -> None:
    with (
        RunDirectory.create(tmp_path) as one,
        RunDirectory.create(tmp_path) as two,
        Stack(one, broker="mock", cache=tmp_path) as first,
        Stack(two, broker="mock", cache=tmp_path) as second,
    ):
        assert first.broker.bootstrap != second.broker.bootstrap
        with redis.Redis.from_url(first.redis.url) as left, redis.Redis.from_url(second.redis.url) as right:
            left.set("key", "left")
            assert right.get("key") is None
        first.stop()
        second.check()


def test_a_killed_stack_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    for _ in range(2):
        orchestrator, url, children = orchestrate(str(tmp_path))
        assert len(children) == 2
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        orchestrator.kill()
        orchestrator.wait()
        _await(lambda: not any(map(alive, children)))  # noqa: B023 - called before the loop goes on


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres")
def test_postgres_dies_with_a_killed_orchestrator_though_it_changes_its_user(tmp_path: Path) -> None:
    orchestrator, _, children = orchestrate(str(tmp_path), "postgres")
    scratch = Path((tmp_path / "same" / "scratch").read_text().strip())
    assert len(children) == 3
    orchestrator.kill()
    orchestrator.wait()
    _await(lambda: not any(map(alive, children)))
    assert scratch.exists()
    RunDirectory.create(tmp_path).close()
    assert not scratch.exists(), "the next run removes what the killed one could not"


def test_a_stack_that_cannot_start_leaves_nothing_running(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.embedded.redis.find_redis", _no_redis)
    with pytest.raises(ProgramMissing, match="No Redis"):
        Stack(run, broker="mock", cache=tmp_path).start()
    assert list(run.pids.iterdir()) == []


def _no_redis() -> Path:
    raise ProgramMissing("No Redis", "apt-get install redis-server")
