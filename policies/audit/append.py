"""The statements that append entries, run on the driver itself.

SQLAlchemy's way of running a statement costs more than the database's work for it, and every acknowledged entry waits
for four of them. Connections, transactions and the columns' names are still SQLAlchemy's. PostgreSQL is sent what does
not depend on an answer together, so that a transaction takes two exchanges and a commit.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, insert

from models.audit import ChainHead
from policies.audit.tables import audit_entries

_HEAD = "SELECT seq, digest FROM audit_head WHERE id = 1"
_KNOWN = "SELECT entry_id, content_digest, digest FROM audit_entries WHERE entry_id "
_MOVE = "UPDATE audit_head SET seq = {0}, digest = {0} WHERE id = 1"

Known = dict[str, tuple[str, str]]


class Statements:
    """The statements of one database's dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._sqlite = dialect.name == "sqlite"
        compiled = insert(audit_entries).compile(dialect=dialect)
        self._insert = str(compiled)
        self._order: Sequence[str] | None = compiled.positiontup if compiled.positional else None
        self._move = _MOVE.format("?" if self._sqlite else "%s")
        # On SQLite the transaction holds the write lock already.
        self._head = _HEAD + ("" if self._sqlite else " FOR UPDATE")
        self._known = _KNOWN + ("IN (SELECT value FROM json_each(?))" if self._sqlite else "= ANY(%s)")  # noqa: S608

    def begin(self, connection: Connection, entry_ids: list[str]) -> tuple[ChainHead | None, Known]:
        """The head row, kept from others until the transaction ends (None where it was taken away).

        And content digest and link digest of those ids that are in the log already: looked up once the row is held,
        so that none can come to be meanwhile.
        """
        ids = json.dumps(entry_ids) if self._sqlite else entry_ids
        with self._together(connection):
            head, known = _cursor(connection), _cursor(connection)
            head.execute(self._head)
            known.execute(self._known, (ids,))
            row = head.fetchone()
            found = {row[0]: (row[1], row[2]) for row in known.fetchall()}
        return None if row is None else ChainHead(seq=row[0], digest=row[1]), found

    def append(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add entries and move the head to the last of them."""
        order = self._order
        cursor = _cursor(connection)
        with self._together(connection):
            cursor.executemany(
                self._insert, rows if order is None else [tuple(row[name] for name in order) for row in rows]
            )
            cursor.execute(self._move, (rows[-1]["seq"], rows[-1]["digest"]))

    def _together(self, connection: Connection) -> contextlib.AbstractContextManager[object]:
        if self._sqlite:
            return contextlib.nullcontext()
        driver: Any = connection.connection.driver_connection
        pipeline: contextlib.AbstractContextManager[object] = driver.pipeline()
        return pipeline


def _cursor(connection: Connection) -> Any:
    """A cursor of the driver, in the connection's transaction."""
    return connection.connection.cursor()
