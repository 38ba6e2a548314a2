"""Append-only tables of named values, each change with its audit entry: what live settings and permissions rest on.

A change is a row and an audit entry in the outbox, in one transaction. It counts (`audited`) once the audit engine
has the entry. What a name means and which values it may have is the caller's business.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.database import utc_now
from app.store.tables import outbox as outbox_table
from models.audit import Name

_PERSON: TypeAdapter[str] = TypeAdapter(Name)
_COMMENT: TypeAdapter[str] = TypeAdapter(Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")])


class ChangeRefused(ValueError):
    """This change cannot be recorded; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One change of one name. `value` is None where the name was given back."""

    revision: int
    name: str
    value: Any
    changed_by: str
    comment: str
    changed_at: str
    audited: bool


@dataclass(frozen=True, slots=True)
class Audited:
    """What may take effect: the values by name, as of a revision. Equal revisions of one store have equal values."""

    revision: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AuditedTable:
    """The functions over one such table.

    `event_type` is that of its audit entries. `absent` ends the sentence "NAME is not set: ...".
    """

    table: sa.Table
    event_type: str
    absent: str

    def change(self, connection: Connection, name: str, value: Any, *, changed_by: str, comment: str = "") -> Revision:
        """Record a value that the caller has checked; None gives the name back.

        Raises:
            ChangeRefused: nobody could be named as who changed it, or there is nothing to give back.
        """
        changed_by = changed_by.strip()
        _check(changed_by, comment)
        self._wait_for_others(connection)
        before = self.current(connection).get(name)
        previous = None if before is None else before.value
        if value is None and previous is None:
            raise ChangeRefused(f"{name} is not set: {self.absent}")
        entry_id, now = f"{self.event_type.replace('_', '-')}-{uuid.uuid4().hex}", utc_now()
        row = {
            "name": name,
            "value": None if value is None else json.dumps(value),
            "changed_by": changed_by,
            "comment": comment,
            "changed_at": now,
            "entry_id": entry_id,
        }
        revision = connection.execute(sa.insert(self.table).values(**row).returning(self.table.c.revision)).scalar_one()
        context = {"name": name, "value": value, "previous": previous, "revision": revision, "changed_by": changed_by}
        outbox.audit(connection, self.event_type, {"entry_id": entry_id, "timestamp": now, "context": context})
        return Revision(revision, name, value, changed_by, comment, now, audited=False)

    def current(self, connection: Connection) -> dict[str, Revision]:
        """The newest revision of each name, audited or not."""
        newest = sa.select(sa.func.max(self.table.c.revision)).group_by(self.table.c.name)
        return {found.name: found for found in self._revisions(connection, self.table.c.revision.in_(newest))}

    def history(self, connection: Connection, limit: int = 100) -> list[Revision]:
        """The latest changes, newest first."""
        return self._revisions(connection, sa.true(), limit)

    def audited(self, connection: Connection) -> Audited:
        """The newest values that the audit engine knows of."""
        columns = self.table.c
        newest = (
            sa.select(sa.func.max(columns.revision))
            .where(columns.entry_id.not_in(self._undelivered()))
            .group_by(columns.name)
        )
        rows = connection.execute(
            sa.select(columns.revision, columns.name, columns.value).where(columns.revision.in_(newest)),
        ).all()
        values = {row.name: json.loads(row.value) for row in rows if row.value is not None}
        return Audited(max((row.revision for row in rows), default=0), dict(sorted(values.items())))

    def _undelivered(self) -> sa.Select[Any]:
        """The ids of entries that have yet to reach the audit engine, or that it refused for good.

        By the entry's id, not by the message's `seq`: a delivered message may be pruned, and SQLite gives the largest
        `seq` again after that.
        """
        return sa.select(outbox_table.c.payload["entry_id"].as_string()).where(
            sa.or_(outbox_table.c.delivered_at.is_(None), outbox_table.c.refusal.is_not(None)),
            outbox_table.c.channel == outbox.AUDIT,
            outbox_table.c.destination == self.event_type,
        )

    def _revisions(
        self, connection: Connection, condition: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[Revision]:
        columns = self.table.c
        rows = connection.execute(
            sa.select(self.table, columns.entry_id.not_in(self._undelivered()).label("audited"))
            .where(condition)
            .order_by(columns.revision.desc())
            .limit(limit),
        )
        return [
            Revision(
                row.revision,
                row.name,
                None if row.value is None else json.loads(row.value),
                row.changed_by,
                row.comment,
                row.changed_at,
                bool(row.audited),
            )
            for row in rows
        ]

    def _wait_for_others(self, connection: Connection) -> None:
        """One change at a time, so that revisions become visible, and reach the audit engine, in their order.

        Without it a lower revision could appear behind a higher one, and workers that know the higher would miss it.
        On SQLite a transaction that writes is alone anyway.
        """
        if connection.dialect.name != "sqlite":
            connection.execute(sa.text(f"LOCK TABLE {self.table.name} IN EXCLUSIVE MODE"))


def _check(changed_by: str, comment: str) -> None:
    """Refuse here what the audit engine would refuse for good: its entry would never come to be."""
    try:
        _PERSON.validate_python(changed_by)
    except ValidationError:
        raise ChangeRefused(
            "who changes it must be 1 to 256 characters, no control characters: name a person"
        ) from None
    try:
        _COMMENT.validate_python(comment)
    except ValidationError:
        raise ChangeRefused("the comment must be at most 1000 characters on one line: shorten it") from None
