"""The audit log in SQL: append and verify. Synchronous; callers in an event loop go through a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from models.audit import AuditEntry, AuditReceipt, ChainHead, ChainReport
from policies.audit.chain import ChainCheck, PreparedEntry, link, normalise_time, prepare
from policies.audit.engine import IMMEDIATE
from policies.audit.errors import AuditStoreUnavailable, EntryConflict
from policies.audit.tables import HEAD_ID, audit_entries, audit_head

_VERIFY_PAGE = 1000
_LOOKUP_PAGE = 500  # ids in one IN list, well under both databases' limits on parameters


class AuditStore:
    """The log. Its methods raise AuditStoreUnavailable whenever the database does not do its part."""

    def __init__(self, engine: Engine, digest_key: bytes) -> None:
        self._engine = engine
        self._digest_key = digest_key

    def prepare(self, entry: AuditEntry) -> PreparedEntry:
        """Make an entry ready for `append_many`. Pure. Raises EntryRejected."""
        return prepare(entry, self._digest_key)

    def append(self, entry: AuditEntry) -> AuditReceipt:
        """Append one entry and return once it is durable. Raises EntryRejected, EntryConflict."""
        (result,) = self.append_many([self.prepare(entry)])
        if isinstance(result, EntryConflict):
            raise result
        return result

    def append_many(self, entries: Sequence[PreparedEntry]) -> list[AuditReceipt | EntryConflict]:
        """Append entries in one transaction, in their order; durable when this returns.

        One outcome for each: a receipt (the first one again, where the same entry was written before), or the
        conflict with an earlier entry of that id, which does not hinder the others.
        """
        with transaction(self._engine, write=True) as connection:
            head = connection.execute(
                select(audit_head.c.seq, audit_head.c.digest).where(audit_head.c.id == HEAD_ID).with_for_update(),
            ).one_or_none()
            if head is None:
                msg = "the audit log's head row is gone; run a verification and restore the database before writing"
                raise AuditStoreUnavailable(msg)
            known = _known(connection, [entry.entry_id for entry in entries])
            rows, outcomes = _chain(entries, known, ChainHead(seq=head.seq, digest=head.digest))
            if rows:
                connection.execute(insert(audit_entries), rows)
                connection.execute(
                    update(audit_head)
                    .where(audit_head.c.id == HEAD_ID)
                    .values(seq=rows[-1]["seq"], digest=rows[-1]["digest"]),
                )
        return outcomes

    def head(self) -> ChainHead | None:
        """The newest link; None only where the head row was taken away."""
        with transaction(self._engine) as connection:
            return _head(connection)

    def verify(self) -> ChainReport:
        """Recompute the whole chain from one snapshot and name the first entry that does not fit.

        Takes time in proportion to the log and does not hold writers up.
        """
        check = ChainCheck()
        with transaction(self._engine) as connection:
            head = _head(connection)
            after = None
            while True:
                page = _page(connection, after)
                if not page or not check.walk(page):
                    break
                after = page[-1]["seq"]
            if check.misplaced:
                check.settle_misplaced(successor_exists=_has_successor(connection, check.expected_previous))
        return check.finish(head)


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
    except SQLAlchemyError as error:
        # Only the kind of error: its text would repeat the statement's parameters, or the URL with its password.
        cause = type(getattr(error, "orig", None) or error).__name__
        msg = f"the audit database ({engine.dialect.name}) failed with {cause}; check that it is up and writable"
        raise AuditStoreUnavailable(msg) from error


def _known(connection: Connection, entry_ids: list[str]) -> dict[str, tuple[str, str]]:
    """Content digest and link digest of those ids that are in the log already."""
    columns = audit_entries.c
    known: dict[str, tuple[str, str]] = {}
    for start in range(0, len(entry_ids), _LOOKUP_PAGE):
        page = entry_ids[start : start + _LOOKUP_PAGE]
        query = select(columns.entry_id, columns.content_digest, columns.digest).where(columns.entry_id.in_(page))
        known.update({row.entry_id: (row.content_digest, row.digest) for row in connection.execute(query)})
    return known


def _chain(
    entries: Sequence[PreparedEntry],
    known: dict[str, tuple[str, str]],
    head: ChainHead,
) -> tuple[list[dict[str, Any]], list[AuditReceipt | EntryConflict]]:
    recorded_at = normalise_time(datetime.now(UTC).timestamp())
    seq, previous = head.seq, head.digest
    rows: list[dict[str, Any]] = []
    outcomes: list[AuditReceipt | EntryConflict] = []
    for entry in entries:
        if entry.entry_id not in known:
            seq += 1
            row = link(entry, seq, recorded_at, previous)
            rows.append(row)
            previous = row["digest"]
            known[entry.entry_id] = (entry.content_digest, previous)
        content_digest, digest = known[entry.entry_id]
        if content_digest == entry.content_digest:
            outcomes.append(AuditReceipt(id=entry.entry_id, digest=digest))
        else:
            outcomes.append(EntryConflict(entry.entry_id))
    return rows, outcomes


def _head(connection: Connection) -> ChainHead | None:
    query = select(audit_head.c.seq, audit_head.c.digest).where(audit_head.c.id == HEAD_ID)
    row = connection.execute(query).one_or_none()
    return None if row is None else ChainHead(seq=row.seq, digest=row.digest)


def _page(connection: Connection, after: int | None) -> list[dict[str, Any]]:
    query = select(audit_entries).order_by(audit_entries.c.seq).limit(_VERIFY_PAGE)
    if after is not None:
        query = query.where(audit_entries.c.seq > after)
    return [dict(row) for row in connection.execute(query).mappings()]


def _has_successor(connection: Connection, digest: str) -> bool:
    query = select(audit_entries.c.seq).where(audit_entries.c.previous == digest).limit(1)
    return connection.execute(query).first() is not None
