"""Named positions of pollers, so that a restart neither repeats nor skips."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, utc_now
from app.store.tables import cursors


def load(connection: Connection, name: str) -> str | None:
    """The saved position, or None."""
    position: str | None = connection.execute(
        sa.select(cursors.c.position).where(cursors.c.name == name),
    ).scalar_one_or_none()
    return position


def save(connection: Connection, name: str, position: str) -> None:
    """Save a position."""
    row = {"name": name, "position": position, "updated_at": utc_now()}
    if not insert_new(connection, cursors, [row], ["name"]):
        connection.execute(sa.update(cursors).where(cursors.c.name == name).values(**row))
