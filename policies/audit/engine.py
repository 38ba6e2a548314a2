"""SQLAlchemy engines for the audit database: SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import SQLAlchemyError

from policies.audit.errors import AuditStoreUnavailable

BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 5
CHECKPOINT_PAGES = 8000
CACHE_KIB = 16 * 1024

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


@contextmanager
def transaction(engine: Engine, *, write: bool = False) -> Iterator[Connection]:
    """One transaction; a reading one sees one snapshot throughout. Turns SQLAlchemy's errors into the log's own."""
    options: dict[str, Any] = {}
    if write:
        options = IMMEDIATE
    elif engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ"}
    try:
        with engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection
    except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        # Only the kind of error: its text would repeat the statement's parameters, or the URL with its password.
        cause = type(getattr(error, "orig", None) or error).__name__
        msg = f"the audit database ({engine.dialect.name}) failed with {cause}; check that it is up and writable"
        raise AuditStoreUnavailable(msg) from error


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
    # An entry touches some ten pages of the indexes at random places; written back rarely, most are written once.
    cursor.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    cursor.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    cursor.close()


def _on_sqlite_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
