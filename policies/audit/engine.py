"""SQLAlchemy engines for the audit database: SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url

BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 5

IMMEDIATE = {"sqlite_begin": "BEGIN IMMEDIATE"}
"""Execution options of a transaction that will write: on SQLite it takes the write lock at once, so that what it
reads is still true when it writes. PostgreSQL ignores them."""


def make_engine(database_url: str) -> Engine:
    """An engine; nothing connects yet. `postgresql://` means psycopg 3. A SQLite file's folder is made."""
    url = make_url(database_url)
    backend = url.get_backend_name()
    if backend == "postgresql":
        return create_engine(_psycopg(url), pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
    if backend != "sqlite":
        msg = f"the audit log can be kept in sqlite or postgresql, not in {backend!r}; change its database URL"
        raise ValueError(msg)
    if url.database in {None, "", ":memory:"}:
        msg = "the audit log needs a database file: one in memory is lost with the process; use sqlite:///PATH"
        raise ValueError(msg)
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return engine


def _psycopg(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _on_sqlite_connect(dbapi_connection: Any, _record: object) -> None:
    # The driver's own idea of when a transaction begins is switched off; `_on_sqlite_begin` says it.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # An acknowledged entry must survive a power cut: NORMAL does not promise that in WAL mode.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
