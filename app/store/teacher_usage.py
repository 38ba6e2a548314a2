"""What was asked of a teacher, a row a cycle and model: the proof that text was sent out, or that none was."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store.database import insert_new, plain, utc_now
from app.store.tables import teacher_usage


def reserve(connection: Connection, cycle_id: str, endpoint: str, model: str) -> int:
    """Note a request before it is made; returns the tokens that the cycle has used of all teachers by then."""
    now = utc_now()
    row = {
        "cycle_id": cycle_id,
        "endpoint": endpoint,
        "model": model,
        "requests": 0,
        "untold": 0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "cost": 0.0,
        "created_at": now,
        "updated_at": now,
    }
    insert_new(connection, teacher_usage, [row], ["cycle_id", "endpoint", "model"])
    _add(connection, cycle_id, endpoint, model, requests=1)
    counts = teacher_usage.c
    used = connection.execute(
        sa.select(sa.func.sum(counts.prompt_tokens + counts.completion_tokens)).where(counts.cycle_id == cycle_id)
    ).scalar_one()
    return int(used or 0)


def used(
    connection: Connection,
    cycle_id: str,
    endpoint: str,
    model: str,
    *,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    cost: float,
) -> None:
    """Note what a reserved request used; `cost` is in US dollars. Requests whose endpoint does not say are counted."""
    _add(
        connection,
        cycle_id,
        endpoint,
        model,
        untold=int(prompt_tokens is None or completion_tokens is None),
        prompt_tokens=prompt_tokens or 0,
        completion_tokens=completion_tokens or 0,
        cost=cost,
    )


def of_cycle(connection: Connection, cycle_id: str) -> list[dict[str, Any]]:
    """Endpoint, model, requests, tokens and cost of a cycle's teachers; empty where no text was sent to one."""
    rows = connection.execute(
        sa.select(teacher_usage)
        .where(teacher_usage.c.cycle_id == cycle_id, teacher_usage.c.requests > 0)
        .order_by(teacher_usage.c.created_at, teacher_usage.c.model)
    )
    return [plain(row) for row in rows]


def _add(connection: Connection, cycle_id: str, endpoint: str, model: str, **amounts: float) -> None:
    columns = teacher_usage.c
    connection.execute(
        sa.update(teacher_usage)
        .where(columns.cycle_id == cycle_id, columns.endpoint == endpoint, columns.model == model)
        .values({name: columns[name] + amount for name, amount in amounts.items()} | {"updated_at": utc_now()})
    )
