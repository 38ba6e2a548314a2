"""How far a cycle's present stage is. A courtesy to whoever watches: the latest value only, no history."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, plain, utc_now
from app.store.tables import cycle_progress


def save(connection: Connection, cycle_id: str, stage: str, done: int, total: int, detail: dict[str, Any]) -> None:
    """Replace a cycle's progress."""
    row = {
        "cycle_id": cycle_id,
        "stage": stage,
        "done": done,
        "total": total,
        "detail": detail,
        "updated_at": utc_now(),
    }
    if not insert_new(connection, cycle_progress, [row], ["cycle_id"]):
        connection.execute(sa.update(cycle_progress).where(cycle_progress.c.cycle_id == cycle_id).values(**row))


def get(connection: Connection, cycle_id: str) -> dict[str, Any] | None:
    """A cycle's progress, or None before its first stage."""
    row = connection.execute(sa.select(cycle_progress).where(cycle_progress.c.cycle_id == cycle_id)).one_or_none()
    return None if row is None else plain(row)
