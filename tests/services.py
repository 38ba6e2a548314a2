"""Fixtures of the services that tests run against: private servers that the test session starts and ends.

Loaded as a pytest plugin by `conftest.py`, so a test asks for `redis_url`, `broker` or `database_url` and imports
nothing from here. What the machine cannot run is skipped by `unavailable`, with the command that would provide it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import sqlalchemy

from app.embedded.errors import ProgramMissing
from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.mock_broker import MockBroker
from app.embedded.postgres import PostgresServer
from app.embedded.process import AnyService, ProcessGroup
from app.embedded.redis import RedisServer
from app.embedded.redis_cluster import RedisCluster
from app.embedded.run_directory import RunDirectory
from app.store import Database

REPOSITORY = Path(__file__).resolve().parents[1]
MAY_BE_MISSING = "this machine may go without: "
"""Begins the reason of a skip that stays a skip under FLYWHEEL_REQUIRE_ALL=1."""


def unavailable(reason: str, command: str, *, may_be_missing: bool = False) -> NoReturn:
    """Skip the test: what it needs is not there. Under FLYWHEEL_REQUIRE_ALL=1 `conftest.py` makes it a failure.

    Args:
        reason: what is missing, as a clause.
        command: what would provide it.
        may_be_missing: stays a skip whatever is required (a GPU, the test data).
    """
    pytest.skip(f"{MAY_BE_MISSING if may_be_missing else ''}{reason}. Provide it with: {command}")


def started(services: ProcessGroup, service: AnyService) -> AnyService:
    """Start a service for the session, or skip where the machine has not got it."""
    try:
        return services.start(service)
    except ProgramMissing as missing:
        unavailable(missing.what, missing.command)


@pytest.fixture(scope="session")
def run_directory() -> Iterator[RunDirectory]:
    """The session's own run directory. Making it ends what a killed session left."""
    with RunDirectory.create(REPOSITORY / "var" / "run") as run:
        yield run


@pytest.fixture(scope="session")
def services(run_directory: RunDirectory) -> Iterator[ProcessGroup]:
    """All servers of the session; they end with it."""
    with ProcessGroup() as group:
        yield group


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Makes names (topics, groups, key prefixes) that no other test uses on the shared servers."""
    mark = secrets.token_hex(4)
    return lambda name: f"{name}-{mark}"


@pytest.fixture(scope="session")
def redis_url(services: ProcessGroup, run_directory: RunDirectory) -> str:
    """URL of the session's Redis. Tests share it: use keys that are `unique`."""
    return started(services, RedisServer(run_directory)).url


@pytest.fixture(scope="session")
def redis_cluster(services: ProcessGroup, run_directory: RunDirectory) -> RedisCluster:
    """The session's Redis Cluster of three masters; a cluster client gets its `.url`. Leave its masters running."""
    return started(services, RedisCluster(run_directory))


@pytest.fixture(scope="session")
def mock_broker(services: ProcessGroup, run_directory: RunDirectory) -> MockBroker:
    """The session's mock cluster; its address is `.bootstrap`."""
    pytest.importorskip("confluent_kafka", reason="The confluent-kafka wheel is missing. Provide it with: make test")
    return started(services, MockBroker(run_directory))


@pytest.fixture(scope="session")
def real_kafka(services: ProcessGroup, run_directory: RunDirectory) -> KafkaBroker:
    """The session's Apache Kafka; its address is `.bootstrap`."""
    return started(services, KafkaBroker(run_directory, default_cache(os.environ)))


@pytest.fixture(params=["mock", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> MockBroker | KafkaBroker:
    """The test runs on the mock cluster and on Apache Kafka; `.bootstrap`, `.kind` and `.declares_topics` tell."""
    chosen: MockBroker | KafkaBroker = request.getfixturevalue(
        "mock_broker" if request.param == "mock" else "real_kafka"
    )
    return chosen


@pytest.fixture(scope="session")
def postgres(services: ProcessGroup, run_directory: RunDirectory) -> PostgresServer:
    """The session's PostgreSQL cluster."""
    return started(services, PostgresServer(run_directory))


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """URL of a new, empty PostgreSQL database, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    admin = sqlalchemy.create_engine(postgres.url(), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))
    yield postgres.url(name)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a new, empty database; the test runs on SQLite (a file) and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty store with all its tables, on SQLite and on PostgreSQL."""
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()
