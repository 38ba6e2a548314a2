"""What training really used, and what the machines that train report: the gate's GPU hours and resources."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import server_time
from app.store.tables import compute_reports, gpu_usage

REPORT_VALID_S = 180.0
"""A machine that has not reported for so long is not counted on."""

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Compute:
    """GPUs and memory of the machines that report. GPUs at work are not available."""

    available_gpus: int
    available_memory_gb: float


def begin(connection: Connection, job_id: str, *, cycle_id: str, user_id: str, reporter: str, gpus: int) -> None:
    """Note that a job of a user's cycle has begun to hold so many GPUs, by the database's clock."""
    now = server_time(connection)
    row = {
        "job_id": job_id,
        "cycle_id": cycle_id,
        "user_id": user_id,
        "reporter": reporter,
        "gpus": gpus,
        "started_at": now,
        "seen_at": now,
        "ended": False,
    }
    connection.execute(sa.insert(gpu_usage).values(**row))


def seen(connection: Connection, job_id: str, *, ended: bool = False) -> None:
    """Note that the job is still at work, or has ended just now."""
    now = server_time(connection)
    connection.execute(
        sa.update(gpu_usage).where(gpu_usage.c.job_id == job_id).values(seen_at=now, ended=ended),
    )


def hours_this_month(connection: Connection) -> dict[str, float]:
    """GPU hours of each user since the calendar month began (UTC), only of users who used any.

    A job that spans the turn of the month counts from the turn. One whose worker died counts until it was last seen.
    Rounded up to hundredths, so that data that hang on it do not change with every second of a job.
    """
    now = server_time(connection)
    moment = datetime.fromtimestamp(now, UTC)
    month = datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()
    columns = gpu_usage.c
    used: defaultdict[str, float] = defaultdict(float)
    query = sa.select(columns.user_id, columns.gpus, columns.started_at, columns.seen_at).where(
        columns.gpus > 0, columns.seen_at > month
    )
    for row in connection.execute(query):
        used[row.user_id] += row.gpus * max(0.0, row.seen_at - max(row.started_at, month)) / _HOUR_S
    return {user: math.ceil(hours * 100) / 100 for user, hours in sorted(used.items()) if hours > 0}


def report(connection: Connection, reporter: str, *, gpus: int, memory_gb: float) -> None:
    """Note what a machine has in all; it counts for `REPORT_VALID_S`."""
    values = {"gpus": gpus, "memory_gb": memory_gb, "reported_at": server_time(connection)}
    updated = connection.execute(
        sa.update(compute_reports).where(compute_reports.c.reporter == reporter).values(**values)
    )
    if not updated.rowcount:
        connection.execute(sa.insert(compute_reports).values(reporter=reporter, **values))


def available(connection: Connection) -> Compute | None:
    """What the machines that reported lately have, less the GPUs at work; None where none reported."""
    since = server_time(connection) - REPORT_VALID_S
    reports, used = compute_reports.c, gpu_usage.c
    total = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(reports.gpus), sa.func.sum(reports.memory_gb)).where(
            reports.reported_at >= since
        ),
    ).one()
    if not total[0]:
        return None
    # Of a job whose worker died nobody says that it ended: it frees its GPUs when it was not seen for as long.
    busy = connection.execute(
        sa.select(sa.func.sum(used.gpus)).where(
            used.ended.is_(False),
            used.seen_at >= since,
            used.reporter.in_(sa.select(reports.reporter).where(reports.reported_at >= since)),
        ),
    ).scalar_one()
    return Compute(max(0, int(total[1]) - int(busy or 0)), float(total[2]))
