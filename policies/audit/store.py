"""The audit log in SQL: append and verify. Synchronous; callers in an event loop go through a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from models.audit import AuditEntry, AuditReceipt, ChainHead, ChainReport
from policies.audit.append import Statements
from policies.audit.chain import PreparedEntry, format_time, link, prepare
from policies.audit.engine import transaction
from policies.audit.errors import AuditStoreUnavailable, EntryConflict
from policies.audit.verify import Witness, head_of, verify_log

Clock = Callable[[], datetime]


def utc_clock() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


class AuditStore:
    """The log. Its methods raise AuditStoreUnavailable whenever the database does not do its part.

    `clock` gives the time that entries are recorded at, in UTC.
    """

    def __init__(self, engine: Engine, digest_key: bytes, clock: Clock = utc_clock) -> None:
        self._engine = engine
        self._statements = Statements(engine.dialect)
        self._digest_key = digest_key
        self._clock = clock
        self.newest: ChainHead | None = None
        """The newest entry that this object has written."""

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
            head, known = self._statements.begin(connection, [entry.entry_id for entry in entries])
            if head is None:
                msg = "the audit log's head row is gone; run a verification and restore the database before writing"
                raise AuditStoreUnavailable(msg)
            rows, outcomes = _chain(entries, known, head, format_time(self._clock()))
            if rows:
                self._statements.append(connection, rows)
        if rows:
            self.newest = ChainHead(seq=rows[-1]["seq"], digest=rows[-1]["digest"])
        return outcomes

    def head(self) -> ChainHead | None:
        """The newest link; None only where the head row was taken away."""
        with transaction(self._engine) as connection:
            return head_of(connection)

    def verify(self, witness: Witness | None = None) -> ChainReport:
        """Check the whole log, with signed heads where there is a witness; see `verify_log`."""
        return verify_log(self._engine, witness, self._clock())


def _chain(
    entries: Sequence[PreparedEntry],
    known: dict[str, tuple[str, str]],
    head: ChainHead,
    recorded_at: str,
) -> tuple[list[dict[str, Any]], list[AuditReceipt | EntryConflict]]:
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
