"""Reading the audit log by cursor: search, recent violations, recent optimization cycles.

A cursor is the number of the last entry looked at. Numbers are given under the writers' lock and commit in order, so
nothing ever appears behind a cursor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, select

from models.audit import (
    CONSTITUTIONAL_VALIDATION,
    OPTIMIZATION_CYCLE,
    RecentOptimization,
    RecentViolation,
    StoredEntry,
)
from policies.audit.chain import normalise_time
from policies.audit.engine import transaction
from policies.audit.tables import audit_entries

UNKNOWN = "unknown"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items in the log's order, and the cursor that continues after them."""

    items: list[T]
    cursor: int


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """What to search for; every field that is set must match. `since` is inclusive, `until` is not."""

    event_type: str | None = None
    model_id: str | None = None
    cycle_id: str | None = None
    domain: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as SQL conditions."""
        columns = audit_entries.c
        found = [
            columns[name] == getattr(self, name)
            for name in ("event_type", "model_id", "cycle_id", "domain")
            if getattr(self, name) is not None
        ]
        if self.since is not None:
            found.append(columns.timestamp >= normalise_time(self.since.isoformat()))
        if self.until is not None:
            found.append(columns.timestamp < normalise_time(self.until.isoformat()))
        return found


def search(engine: Engine, wanted: EntryFilter, after: int, limit: int) -> Page[StoredEntry]:
    """Entries after the cursor that match, oldest first."""
    with transaction(engine) as connection:
        rows = _after(connection, wanted.conditions(), after, limit)
    return Page([_stored(row) for row in rows], rows[-1]["seq"] if rows else after)


def search_back(engine: Engine, wanted: EntryFilter, before: int | None, limit: int) -> Page[StoredEntry]:
    """Entries that match, newest first, only those with a smaller number than `before` where it is given."""
    columns = audit_entries.c
    conditions = wanted.conditions() + ([] if before is None else [columns.seq < before])
    query = select(audit_entries).where(*conditions).order_by(columns.seq.desc()).limit(limit)
    with transaction(engine) as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    return Page([_stored(row) for row in rows], rows[-1]["seq"] if rows else before or 0)


def recent_violations(engine: Engine, after: int | None, limit: int) -> Page[RecentViolation]:
    """One item for each violation of each validation. `limit` counts validations, so that none is split.

    Without a cursor: those of the newest validations.
    """
    columns = audit_entries.c
    conditions = [columns.event_type == CONSTITUTIONAL_VALIDATION, columns.violation_count > 0]
    with transaction(engine) as connection:
        rows = _recent(connection, conditions, after, limit)
    items = [item for row in rows for item in _violations(row)]
    return Page(items, rows[-1]["seq"] if rows else after or 0)


def recent_optimizations(engine: Engine, after: int | None, limit: int) -> Page[RecentOptimization]:
    """Finished cycles: entries of type `optimization_cycle` that say whether they succeeded.

    Without a cursor: the newest. `limit` counts entries, finished or not.
    """
    with transaction(engine) as connection:
        rows = _recent(connection, [audit_entries.c.event_type == OPTIMIZATION_CYCLE], after, limit)
    items = [item for row in rows if (item := _optimization(row)) is not None]
    return Page(items, rows[-1]["seq"] if rows else after or 0)


def _recent(
    connection: Connection,
    conditions: list[ColumnElement[bool]],
    after: int | None,
    limit: int,
) -> list[Mapping[str, Any]]:
    if after is not None:
        return _after(connection, conditions, after, limit)
    query = select(audit_entries).where(*conditions).order_by(audit_entries.c.seq.desc()).limit(limit)
    return [dict(row) for row in reversed(connection.execute(query).mappings().all())]


def _after(
    connection: Connection,
    conditions: list[ColumnElement[bool]],
    after: int,
    limit: int,
) -> list[Mapping[str, Any]]:
    columns = audit_entries.c
    query = select(audit_entries).where(columns.seq > after, *conditions).order_by(columns.seq).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def _stored(row: Mapping[str, Any]) -> StoredEntry:
    fields = {name: row[name] for name in StoredEntry.model_fields if name not in {"id", "body"}}
    return StoredEntry(id=row["entry_id"], body=json.loads(row["body"]), **fields)


def _violations(row: Mapping[str, Any]) -> list[RecentViolation]:
    found: list[RecentViolation] = []
    for index, violation in enumerate(json.loads(row["body"])["violations"]):
        code, severity = (violation, UNKNOWN) if isinstance(violation, str) else _coded(violation)
        found.append(
            RecentViolation(
                id=f"{row['entry_id']}:{index}",
                type=code,
                severity=severity,
                model_id=row["model_id"] or UNKNOWN,
            ),
        )
    return found


def _coded(violation: Mapping[str, Any]) -> tuple[str, str]:
    return violation["type"], violation.get("severity", UNKNOWN)


def _optimization(row: Mapping[str, Any]) -> RecentOptimization | None:
    body = json.loads(row["body"])
    fields = {**body.get("context", {}), **body}
    success = fields.get("success")
    if not isinstance(success, bool):
        return None
    return RecentOptimization(
        id=row["entry_id"],
        trigger_type=_text(fields.get("trigger_type")),
        model_type=_text(fields.get("model_type")),
        success=success,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) and value else UNKNOWN
