"""A file in which audit entries wait for the audit engine, in order, over any crash of the process that wrote them."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.audit import AuditEntry
from policies.clients.audit_client import AuditConflict, AuditUnavailable

DEFAULT_MAX_BYTES = 256 * 1024 * 1024
BUSY_TIMEOUT_S = 10.0
_CONFLICT = 409

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    entry_id TEXT NOT NULL UNIQUE,
    entry TEXT NOT NULL,
    spooled_at REAL NOT NULL,
    refusal TEXT
);
CREATE INDEX IF NOT EXISTS ix_spool_waiting ON spool (seq) WHERE refusal IS NULL;
CREATE INDEX IF NOT EXISTS ix_spool_refused ON spool (seq) WHERE refusal IS NOT NULL;
"""


class SpoolUnavailable(AuditUnavailable):
    """The entry could not be kept: the spool cannot be written."""


class SpoolFull(SpoolUnavailable):
    """The entry could not be kept: too much waits already."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry that waits, and its place in the order."""

    seq: int
    entry: AuditEntry


@dataclass(frozen=True, slots=True)
class Refused:
    """An entry that the audit engine will never take, and why."""

    entry: AuditEntry
    reason: str


class Spool:
    """Entries in a SQLite file (WAL, every write synced), for any number of processes and threads.

    Its methods block, and raise SpoolUnavailable. Above `max_bytes` of entries `put` raises SpoolFull.
    """

    def __init__(self, path: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def put(self, entry: AuditEntry) -> None:
        """Keep an entry, which has its `entry_id`; it is durable when this returns.

        The same entry again changes nothing. Raises AuditConflict where another waits under its id.
        """
        text = json.dumps(entry.model_dump(exclude_none=True), sort_keys=True)
        with self._transaction() as connection:
            same = connection.execute("SELECT entry FROM spool WHERE entry_id = ?", (entry.entry_id,)).fetchone()
            if same is not None:
                if same[0] != text:
                    msg = f"another audit entry waits under the id {entry.entry_id!r}; a new fact needs a new entry_id"
                    raise AuditConflict(msg, _CONFLICT)
                return
            if _used_bytes(connection) + len(text) > self._max_bytes:
                raise SpoolFull(
                    f"{self._path} holds {self._max_bytes} bytes of audit entries that wait for the audit engine, and "
                    "takes no more: bring the engine back, or raise audit_engine.spool_bytes"
                )
            connection.execute(
                "INSERT INTO spool (entry_id, entry, spooled_at) VALUES (?, ?, ?)",
                (entry.entry_id, text, time.time()),
            )

    def waiting(self) -> int:
        """How many entries wait."""
        return self._count("SELECT count(*) FROM spool WHERE refusal IS NULL")

    def empty(self) -> bool:
        """Whether none waits."""
        return not self._count("SELECT EXISTS (SELECT 1 FROM spool WHERE refusal IS NULL)")

    def refused(self) -> int:
        """How many entries were set aside."""
        return self._count("SELECT count(*) FROM spool WHERE refusal IS NOT NULL")

    def oldest(self, limit: int) -> list[Waiting]:
        """The entries that wait longest, in order."""
        query = "SELECT seq, entry FROM spool WHERE refusal IS NULL ORDER BY seq LIMIT ?"
        return [Waiting(seq, _entry(text)) for seq, text in self._rows(query, (limit,))]

    def set_aside_entries(self, limit: int = 100) -> list[Refused]:
        """The entries that were set aside, oldest first."""
        query = "SELECT entry, refusal FROM spool WHERE refusal IS NOT NULL ORDER BY seq LIMIT ?"
        return [Refused(_entry(text), reason) for text, reason in self._rows(query, (limit,))]

    def delivered(self, seqs: list[int]) -> None:
        """Forget entries that the engine has."""
        with self._transaction() as connection:
            connection.executemany("DELETE FROM spool WHERE seq = ?", [(seq,) for seq in seqs])

    def set_aside(self, seq: int, reason: str) -> None:
        """Keep an entry out of the others' way: the engine refuses it for good."""
        with self._transaction() as connection:
            connection.execute("UPDATE spool SET refusal = ? WHERE seq = ?", (reason, seq))

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _count(self, query: str) -> int:
        return int(self._rows(query, ())[0][0])

    def _rows(self, query: str, parameters: tuple[int, ...]) -> list[tuple[Any, ...]]:
        with self._guarded() as connection:
            return connection.execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _open(self._path)
                yield self._connection
            except (sqlite3.Error, OSError) as error:
                # Only the kind of error: its text could repeat an entry.
                cause = getattr(error, "sqlite_errorname", None) or type(error).__name__
                raise SpoolUnavailable(f"{self._path} failed with {cause}: is its disk full or read-only?") from error


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _used_bytes(connection: sqlite3.Connection) -> int:
    used, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (used - free) * size


def _entry(text: str) -> AuditEntry:
    # Not pydantic's own reader: it refuses half a surrogate pair, which JSON allows.
    return AuditEntry.model_validate(json.loads(text))
