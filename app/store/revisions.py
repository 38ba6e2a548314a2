"""Targets that critique and revision produced, one a cycle and example, so that a restart repeats none."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, utc_now
from app.store.tables import examples, revisions
from models.example import ExampleStatus


def save(connection: Connection, cycle_id: str, rows: list[dict[str, Any]]) -> int:
    """Keep finished examples (columns of `revisions` without cycle and time); returns how many were new.

    The target of an example that was forgotten while it was revised is not kept.
    """
    now = utc_now()
    gone = _forgotten(connection, [row["example_id"] for row in rows])
    stamped = [{**row, "cycle_id": cycle_id, "created_at": now} for row in rows]
    for row in stamped:
        if row["example_id"] in gone:
            row |= {"target": "", "compliant": False}
    return insert_new(connection, revisions, stamped, ["cycle_id", "example_id"])


def finished(connection: Connection, cycle_id: str) -> dict[str, sa.Row[Any]]:
    """Finished examples of a cycle by `example_id`."""
    rows = connection.execute(sa.select(revisions).where(revisions.c.cycle_id == cycle_id))
    return {row.example_id: row for row in rows}


def sample(connection: Connection, cycle_id: str, limit: int) -> list[sa.Row[Any]]:
    """Some of a cycle's finished examples that still have their target, the same ones each time."""
    query = sa.select(revisions).where(revisions.c.cycle_id == cycle_id, revisions.c.target != "")
    return list(connection.execute(query.order_by(revisions.c.example_id).limit(limit)))


def of_example(connection: Connection, example_id: str) -> list[sa.Row[Any]]:
    """What each cycle made of an example, the latest first."""
    query = sa.select(revisions).where(revisions.c.example_id == example_id).order_by(revisions.c.created_at.desc())
    return list(connection.execute(query))


def usable(row: sa.Row[Any]) -> bool:
    """Whether a finished example may be trained on: it became compliant and was not forgotten since."""
    return bool(row.compliant and row.target)


def _forgotten(connection: Connection, example_ids: list[str]) -> set[str]:
    """Which of these have lost their text; their rows are held, so that none loses it before the targets are kept."""
    found: set[str] = set()
    for start in range(0, len(example_ids), 500):
        query = sa.select(examples.c.example_id, examples.c.status).where(
            examples.c.example_id.in_(example_ids[start : start + 500])
        )
        rows = connection.execute(query.with_for_update())
        found.update(row.example_id for row in rows if row.status == ExampleStatus.FORGOTTEN)
    return found
