"""Targets that critique and revision produced, one a cycle and example, so that a restart repeats none."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, utc_now
from app.store.tables import revisions


def save(connection: Connection, cycle_id: str, rows: list[dict[str, Any]]) -> int:
    """Keep finished examples (columns of `revisions` without cycle and time); returns how many were new."""
    now = utc_now()
    stamped = [{**row, "cycle_id": cycle_id, "created_at": now} for row in rows]
    return insert_new(connection, revisions, stamped, ["cycle_id", "example_id"])


def finished(connection: Connection, cycle_id: str) -> dict[str, sa.Row[Any]]:
    """Finished examples of a cycle by `example_id`."""
    rows = connection.execute(sa.select(revisions).where(revisions.c.cycle_id == cycle_id))
    return {row.example_id: row for row in rows}
