"""Private running systems for tests: real brokers, engines and workers as processes, and ways to look into them.

Plain functions; `conftest.py` puts this folder on the path, so a test says `from systems import running`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from services import REPOSITORY, unavailable

from app.embedded.errors import ProgramMissing
from app.embedded.kafka import KafkaBroker
from app.embedded.kafka.jars import default_cache
from app.embedded.run_directory import RunDirectory
from app.embedded.stack import BrokerKind
from app.embedded.system import System
from app.roles import Role
from app.settings import Settings
from app.settings.export import to_environment
from app.topics import REGISTRY

WITHIN_S = 120.0
OUTPUTS = tuple(spec.name for spec in REGISTRY if spec.name != "otel-audit-events")
Record: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"
Changes = Mapping[str, Mapping[str, Any]]
MakeBroker = Callable[[RunDirectory], KafkaBroker]


def wait_until(condition: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
    """Return once `condition` holds; fail the test, naming `what`, when it does not in time."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {within_s:.0f} s")
        time.sleep(0.1)


@contextmanager
def running(
    folder: Path, broker: BrokerKind | MakeBroker, database_url: str | None, changes: Changes
) -> Iterator[System]:
    """A system of its own with broker and Redis started, and nothing else yet. All of it ends with the block.

    `broker` may make one of its own.
    """
    kind: BrokerKind = "real" if callable(broker) else broker
    with RunDirectory.create(folder / "run") as run:
        system = System(run, Settings(), kind, default_cache(os.environ), private=True)
        if callable(broker):
            system.stack.broker = broker(run)
        if database_url is not None:
            system.change({"database": {"url": database_url}})
        try:
            # Wherever the test runs, the models that this checkout has prepared are used.
            system.change({"training": {"model_cache": REPOSITORY / "var" / "cache" / "models"}})
            system.change({"kafka": {"session_timeout_s": 6.0, "linger_ms": 5}, "log": {"format": "json"}})
            system.change(changes)
            try:
                system.start_stores()
            except ProgramMissing as missing:
                unavailable(missing.what, missing.command)
            yield system
        except BaseException:
            for log in sorted(run.logs.glob("*.log")):
                print(f"--- {log.name}", log.read_text(errors="replace")[-6000:], sep="\n")
            raise
        finally:
            system.stop()


def cli(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a `flywheel` command against the system."""
    environment = {**os.environ, **to_environment(system.settings)}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False)


def stats(system: System, role: Role, part: str) -> dict[str, Any]:
    """A part of a worker's `/stats`; empty while the worker does not answer."""
    try:
        answer = httpx.get(f"{system.url(role)}/stats", timeout=30.0, trust_env=False)
    except httpx.HTTPError:
        return {}
    found: dict[str, Any] = answer.json().get(part, {}) if answer.is_success else {}
    return found


def entries(system: System, event_type: str) -> list[dict[str, Any]]:
    """The audit engine's entries of a type, oldest first."""
    url = f"{system.settings.audit_engine.url}/api/v1/entries"
    parameters: dict[str, Any] = {"event_type": event_type, "limit": 1000}
    answer = httpx.get(url, params=parameters, timeout=30.0, trust_env=False)
    found: list[dict[str, Any]] = answer.raise_for_status().json()
    return found


def read_topics(bootstrap: str, topics: Iterable[str] = OUTPUTS) -> dict[str, list[Record]]:
    """All that lies in the topics now, each partition in its order."""
    names = list(topics)

    async def read() -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {topic: [] for topic in names}
        ends = await _ends(bootstrap, names)
        # Assigned by hand: one that subscribes begins anew whenever its metadata change.
        reader = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
        async with reader, asyncio.timeout(WITHIN_S):
            reader.assign(list(ends))
            while any([await reader.position(place) < end for place, end in ends.items()]):
                for batch in (await reader.getmany(timeout_ms=300)).values():
                    for record in batch:
                        found[record.topic].append(record)
        return found

    return asyncio.run(read())


def lag(bootstrap: str, group: str, topics: Iterable[str]) -> int:
    """How many records of the topics a consumer group has not committed."""
    names = list(topics)

    async def measure() -> int:
        ends = await _ends(bootstrap, names)
        member = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
        async with member:
            member.assign(list(ends))
            return sum([end - (await member.committed(place) or 0) for place, end in ends.items()])

    return asyncio.run(measure())


async def _ends(bootstrap: str, topics: list[str]) -> dict[TopicPartition, int]:
    """The end offset of every partition."""
    async with AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap, enable_auto_commit=False) as reader:
        ends: dict[TopicPartition, int] = await reader.end_offsets(reader.assignment())
    return ends


def stored_bytes(url: str) -> bytes:
    """All that a database holds, as bytes: of SQLite its files as they lie, of PostgreSQL the rows of all tables."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "")
        with sqlite3.connect(path, timeout=30.0) as connection:
            dump = "\n".join(connection.iterdump()).encode()
        return dump + b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    engine = sa.create_engine(parsed)
    with engine.connect() as connection:
        names = sa.inspect(connection).get_table_names()
        rows = [connection.execute(sa.text(f'SELECT t::text FROM "{name}" t')).scalars().all() for name in names]  # noqa: S608 - the schema's own names
    engine.dispose()
    return "\n".join(row for table in rows for row in table).encode()
