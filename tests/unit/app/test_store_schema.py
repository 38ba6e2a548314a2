"""The schema: migrations build exactly the tables of the code, however many start at once; transactions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.store import Database, cursors
from app.store.database import DatabaseUnavailable, insert_new, server_time, utc_now
from app.store.tables import metadata


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def differences(database: Database) -> list[object]:
    with database.read() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_migrations_build_the_tables_of_the_code(database: Database) -> None:
    assert differences(database)  # an empty database has all to be built
    database.migrate()
    assert differences(database) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    database.migrate()
    with database.write() as connection:
        cursors.save(connection, "here", "7")
    database.migrate()
    assert differences(database) == []
    with database.read() as connection:
        assert cursors.load(connection, "here") == "7"


def test_workers_that_start_at_once_migrate_once(database_url: str, database: Database) -> None:
    workers = 4
    start = threading.Barrier(workers)

    def worker() -> None:
        own = Database(database_url)
        try:
            start.wait(10)
            own.wait_ready(10)
            own.migrate()
        finally:
            own.close()

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(worker) for _ in range(workers)]:
            done.result(60)
    assert differences(database) == []
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM alembic_version")).scalar_one() == 1


def test_the_uniqueness_of_open_cycles_is_the_databases_own(database: Database) -> None:
    # compare_metadata does not look at the condition of a partial index.
    database.migrate()
    row = {
        "domain": "d",
        "trigger_type": "manual",
        "requested_by": "r",
        "version": 1,
        "facts": {},
        "reasons": [],
        "created_at": utc_now(),
        "updated_at": utc_now(),
        "model_id": "m",
    }
    table = metadata.tables["cycles"]
    for number, state in enumerate(["promoted", "rejected", "failed", "cancelled", "training"]):
        with database.write() as connection:
            connection.execute(sa.insert(table).values(cycle_id=str(number), state=state, **row))
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(sa.insert(table).values(cycle_id="second", state="proposed", **row))


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    database.migrate()

    def fail() -> None:
        with database.write() as connection:
            cursors.save(connection, "here", "7")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as connection:
        assert cursors.load(connection, "here") is None


def test_writers_wait_for_each_other(database: Database) -> None:
    """Read, then write, from many threads: on SQLite a deferred transaction would be refused half-way."""
    database.migrate()
    with database.write() as connection:
        cursors.save(connection, "counter", "0")

    def count() -> None:
        with database.write() as connection:
            row = connection.execute(
                sa.select(metadata.tables["cursors"].c.position).where(sa.text("name = 'counter'")).with_for_update()
            ).one()
            cursors.save(connection, "counter", str(int(row.position) + 1))

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(count) for _ in range(30)]:
            done.result(60)
    with database.read() as connection:
        assert cursors.load(connection, "counter") == "30"


def test_insert_new_tells_how_many_were_new(database: Database) -> None:
    database.migrate()
    table = metadata.tables["cursors"]
    rows = [{"name": f"n{number}", "position": "0", "updated_at": utc_now()} for number in range(2500)]
    with database.write() as connection:
        assert insert_new(connection, table, [], ["name"]) == 0
        assert insert_new(connection, table, rows[:1000], ["name"]) == 1000
        assert insert_new(connection, table, rows, ["name"]) == 1500
        assert insert_new(connection, table, [rows[0], rows[0]], ["name"]) == 0


def test_the_databases_clock_is_a_clock(database: Database) -> None:
    import time

    with database.read() as connection:
        assert abs(server_time(connection) - time.time()) < 5.0


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    database = Database("postgresql+psycopg://user:hunter2@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailable) as refused:
        database.wait_ready(0.0)
    database.close()
    assert "127.0.0.1:1/nothing" in str(refused.value)
    assert "hunter2" not in str(refused.value)
