"""Audit logs for tests: filled, sealed, and tampered with as an intruder would who has the database's password.

Plain functions; `conftest.py` puts this folder on the path, so a test says `from audit_logs import fill`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, insert, select, text, update

from models.audit import AuditEntry, AuditReceipt, SignedHead
from policies.audit.chain import link_digest
from policies.audit.seal import KeyRing, SigningKey
from policies.audit.sealer import Sealer
from policies.audit.store import AuditStore
from policies.audit.tables import audit_entries, audit_head
from policies.audit.verify import Witness

DIGEST_KEY = b"a key of the tests, 32 bytes long"
HASH = "cdd01ef066bc6cf2"
SIGNING = SigningKey(bytes(range(32)))
KEYS = KeyRing([SIGNING.public])
LONG_AGO = datetime(2015, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)

Row = dict[str, Any]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def entry(entry_id: str | None = None, **fields: Any) -> AuditEntry:
    given = {"event_type": "constitutional_validation", "constitutional_hash": HASH, **fields}
    return AuditEntry(entry_id=entry_id, **given)


def fill(store: AuditStore, count: int, first: int = 1) -> list[AuditReceipt]:
    """Append entries `e1`, `e2`, ..."""
    numbers = range(first, first + count)
    prepared = [store.prepare(entry(f"e{number}", model_id="m", context={"n": number})) for number in numbers]
    outcomes = store.append_many(prepared)
    receipts = [outcome for outcome in outcomes if isinstance(outcome, AuditReceipt)]
    assert len(receipts) == count
    return receipts


def sealer(engine: Engine, path: Path, clock: Clock | None = None) -> Sealer:
    return Sealer(engine, path, SIGNING, KEYS, **({} if clock is None else {"clock": clock}))


def witness(path: Path) -> Witness:
    return Witness(KEYS, path)


def fill_and_seal(
    engine: Engine, path: Path, sizes: Iterable[int], store: AuditStore | None = None
) -> list[SignedHead]:
    """Append so many entries at a time, and seal after each time; the signed heads."""
    log = store or AuditStore(engine, DIGEST_KEY)
    heads: list[SignedHead] = []
    for size in sizes:
        fill(log, size, first=len(read_rows(engine)) + 1)
        head = sealer(engine, path).seal()
        assert head is not None
        heads.append(head)
    return heads


def read_rows(engine: Engine) -> list[Row]:
    with engine.begin() as connection:
        query = select(audit_entries).order_by(audit_entries.c.seq)
        return [dict(row) for row in connection.execute(query).mappings()]


def take_guards(engine: Engine) -> None:
    """Take away triggers and constraints, so that the tables hold whatever is put into them."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            for table in ("audit_entries", "audit_prunings"):
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
            for constraint in ("audit_entries_pkey", "audit_entries_entry_id_key", "audit_entries_previous_key"):
                connection.execute(text(f"ALTER TABLE audit_entries DROP CONSTRAINT {constraint}"))
            return
        triggers = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
        for trigger in triggers:
            connection.execute(text(f"DROP TRIGGER {trigger}"))
        for table in ("audit_entries", "audit_prunings"):
            connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_before"))
            connection.execute(text(f"CREATE TABLE {table} AS SELECT * FROM {table}_before"))  # noqa: S608
            connection.execute(text(f"DROP TABLE {table}_before"))


def rewrite(engine: Engine, rows: Sequence[Row], head: tuple[int, str] | None = None) -> None:
    """Replace the whole log, and the head row where one is given."""
    with engine.begin() as connection:
        connection.execute(delete(audit_entries))
        if rows:
            connection.execute(insert(audit_entries), list(rows))
        if head is not None:
            connection.execute(update(audit_head).values(seq=head[0], digest=head[1]))


def renumber(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "seq": seq} for seq, row in enumerate(rows, 1)]


def recompute(rows: Sequence[Row], first: int) -> list[Row]:
    """The chain with all digests from an index on computed anew, as whoever changed it there would."""
    made = list(rows[:first])
    for row in rows[first:]:
        fresh = {**row, "previous": made[-1]["digest"] if made else "0" * 64}
        fresh["digest"] = link_digest(fresh)
        made.append(fresh)
    return made
