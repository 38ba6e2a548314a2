"""Counts over the whole store, for metrics and pages."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.tables import cycles, examples, outbox


def counts(connection: Connection) -> dict[str, Any]:
    """Cycles by state, examples by status, undelivered and refused outbox messages."""
    by_state = connection.execute(sa.select(cycles.c.state, sa.func.count()).group_by(cycles.c.state))
    by_status = connection.execute(sa.select(examples.c.status, sa.func.count()).group_by(examples.c.status))
    waiting = connection.execute(sa.select(sa.func.count()).where(outbox.c.delivered_at.is_(None))).scalar_one()
    refused = connection.execute(sa.select(sa.func.count()).where(outbox.c.refusal.is_not(None))).scalar_one()
    return {
        "cycles": {row[0]: int(row[1]) for row in by_state},
        "examples": {row[0]: int(row[1]) for row in by_status},
        "outbox": int(waiting),
        "outbox_refused": int(refused),
    }
