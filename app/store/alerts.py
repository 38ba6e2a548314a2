"""Alerts: what somebody should be woken by. A row in the transaction of what it tells of; none is ever changed.

Whoever carries them out of here (metrics and logs do by now) reads them in the order of `seq`, by a cursor of its own.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import plain, utc_now
from app.store.tables import alerts

CHAMPION_ROLLED_BACK = "champion_rolled_back"


def add(
    connection: Connection, kind: str, summary: str, *, severity: str, model_id: str | None, detail: dict[str, Any]
) -> int:
    """Add an alert; returns its `seq`. No event text: it leaves the system."""
    row = {
        "kind": kind,
        "severity": severity,
        "model_id": model_id,
        "summary": summary,
        "detail": detail,
        "created_at": utc_now(),
    }
    return int(connection.execute(sa.insert(alerts).values(**row).returning(alerts.c.seq)).scalar_one())


def after(connection: Connection, seq: int, limit: int = 100) -> list[dict[str, Any]]:
    """The alerts after a position, the oldest first."""
    rows = connection.execute(sa.select(alerts).where(alerts.c.seq > seq).order_by(alerts.c.seq).limit(limit))
    return [plain(row) for row in rows]
