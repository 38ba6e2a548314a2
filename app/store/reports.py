"""What each worker last told of itself: its counters, rates and lag. A courtesy to the pages; nothing decides by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, server_time
from app.store.tables import worker_reports

SILENT_AFTER_S = 15.0
"""A worker that has not reported for so long is shown as silent; its figures no longer count."""
FORGOTTEN_AFTER_S = 3600.0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker's last report, `age_s` seconds ago by the database's clock."""

    worker: str
    role: str
    report: dict[str, Any]
    age_s: float

    @property
    def is_silent(self) -> bool:
        """Whether it should have told more by now."""
        return self.age_s > SILENT_AFTER_S


def save(connection: Connection, worker: str, role: str, report: dict[str, Any]) -> None:
    """Replace a worker's report, and drop those of workers that are long gone."""
    now = server_time(connection)
    row = {"worker": worker, "role": role, "report": report, "reported_at": now}
    if not insert_new(connection, worker_reports, [row], ["worker"]):
        connection.execute(sa.update(worker_reports).where(worker_reports.c.worker == worker).values(**row))
    connection.execute(sa.delete(worker_reports).where(worker_reports.c.reported_at < now - FORGOTTEN_AFTER_S))


def remove(connection: Connection, worker: str) -> None:
    """Drop the report of a worker that ends in order: it is gone, not silent."""
    connection.execute(sa.delete(worker_reports).where(worker_reports.c.worker == worker))


def read(connection: Connection) -> list[WorkerReport]:
    """All reports, by role and worker."""
    now = server_time(connection)
    rows = connection.execute(sa.select(worker_reports).order_by(worker_reports.c.role, worker_reports.c.worker))
    return [WorkerReport(row.worker, row.role, row.report, max(0.0, now - row.reported_at)) for row in rows]
