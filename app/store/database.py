"""Engine and transactions, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection, make_url

WRITE = "flywheel_write"
BUSY_TIMEOUT_MS = 30_000
SQLITE_ROWS = 50
"""So many rows go into one INSERT. Each number of rows is a statement of its own, and the driver keeps the last 128
prepared for each connection: 300 batches of up to 500 examples left 140 MB of them, and with this bound 10.
"""


class DatabaseUnavailable(RuntimeError):
    """The database did not answer within the time given. Transient: ask again."""


def utc_now() -> str:
    """The time in RFC 3339, UTC, with microseconds; sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Database:
    """One store by URL: `sqlite:///path` (WAL, full sync) or `postgresql+psycopg://...`.

    Nothing connects before the first transaction. Raises `sqlalchemy.exc.ArgumentError` for a URL that is none.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        # An error's text would else quote the parameters, event text among them, into whatever logs it.
        pages = {"insertmanyvalues_page_size": SQLITE_ROWS} if self.url.get_backend_name() == "sqlite" else {}
        self.engine = sa.create_engine(self.url, pool_pre_ping=True, hide_parameters=True, **pages)
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes; on SQLite it takes the write lock at once, so that it cannot fail half-way."""
        with self.engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
            yield connection

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema up to a revision, this version's head by default. Workers may do it at once."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(727001)"))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    def wait_ready(self, timeout_s: float) -> None:
        """Return once the database answers; raise `DatabaseUnavailable` after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with self.read() as connection:
                    connection.execute(sa.text("SELECT 1"))
            except sa.exc.OperationalError as error:
                if time.monotonic() > deadline:
                    shown = self.url.render_as_string(hide_password=True)
                    raise DatabaseUnavailable(f"{shown} did not answer in {timeout_s} s: {error.orig}") from error
                time.sleep(0.2)
            else:
                return

    def close(self) -> None:
        """Give the pooled connections back."""
        self.engine.dispose()


def server_time(connection: Connection) -> float:
    """Seconds since the epoch by the database's clock, so that workers on several machines agree on leases."""
    if connection.dialect.name == "sqlite":
        statement = "SELECT (julianday('now') - 2440587.5) * 86400.0"
    else:
        statement = "SELECT extract(epoch from clock_timestamp())"
    return float(connection.execute(sa.text(statement)).scalar_one())


def plain(row: sa.Row[Any]) -> dict[str, Any]:
    """A row as a dictionary that any JSON writer takes; SQLAlchemy's column names are a kind of text of their own."""
    return {str(name): value for name, value in row._mapping.items()}


def insert_new(connection: Connection, table: sa.Table, rows: list[dict[str, Any]], key: list[str]) -> int:
    """Insert rows whose `key` columns are not there yet; return how many were new."""
    if not rows:
        return 0
    # In one order for all: two workers with the same rows in different orders would wait for each other.
    rows = sorted(rows, key=lambda row: [str(row[name]) for name in key])
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        statement: Any = sqlite_insert(table).on_conflict_do_nothing(index_elements=key)
    else:
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        statement = postgresql_insert(table).on_conflict_do_nothing(index_elements=key)
    added = connection.execute(statement.returning(table.c[key[0]]), rows)
    return len(added.fetchall())


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN is deferred, and a deferred transaction that comes to write can be refused half-way.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
