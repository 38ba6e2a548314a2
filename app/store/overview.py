"""Counts over the whole store, for metrics and pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import adherence, switches, watch
from app.store.database import plain
from app.store.outbox import WEBHOOK
from app.store.registry import Kind
from app.store.tables import alerts, cycle_progress, cycles, deployments, examples, outbox
from models.cycle import TERMINAL_STATES

STAMP_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"

_ALERTS = sa.select(alerts.c.kind, sa.func.count()).group_by(alerts.c.kind)
_ROLLBACKS = (
    sa.select(deployments.c.model_id, deployments.c.kind, sa.func.count().label("count"))
    .where(deployments.c.kind != Kind.PROMOTION.value)
    .group_by(deployments.c.model_id, deployments.c.kind)
    .order_by(deployments.c.model_id, deployments.c.kind)
)


def counts(connection: Connection) -> dict[str, Any]:
    """Cycles by state, examples by status, champions, rollbacks, alerts; outbox messages: those that wait (notices
    apart) and those refused.
    """
    by_state = connection.execute(sa.select(cycles.c.state, sa.func.count()).group_by(cycles.c.state))
    by_status = connection.execute(sa.select(examples.c.status, sa.func.count()).group_by(examples.c.status))
    waiting = connection.execute(
        sa.select(sa.func.count()).where(outbox.c.delivered_at.is_(None), outbox.c.channel != WEBHOOK)
    ).scalar_one()
    refused = connection.execute(sa.select(sa.func.count()).where(outbox.c.refusal.is_not(None))).scalar_one()
    return {
        "cycles": {row[0]: int(row[1]) for row in by_state},
        "examples": {row[0]: int(row[1]) for row in by_status},
        "champions": [
            {"model_id": seen.model_id, "adherence": seen.mean, "evaluations": seen.evaluations}
            for seen in watch.champions(connection)
        ],
        "rollbacks": [plain(row) for row in connection.execute(_ROLLBACKS)],
        "alerts": {row[0]: int(row[1]) for row in connection.execute(_ALERTS)},
        "outbox": int(waiting),
        "outbox_refused": int(refused),
    }


def standing(connection: Connection) -> dict[str, Any]:
    """How things stand, for metrics: `counts`, and besides

    `open_cycles`: by state, `age_s` of the oldest and `idle_s` of the one that nothing has changed of for longest;
    `halted`: the stop switch; `adherence`: (model, domain, mean, weight); `outbox_oldest_s`.
    """
    now = datetime.now(UTC)
    changed = sa.func.coalesce(cycle_progress.c.updated_at, cycles.c.updated_at)
    rows = connection.execute(
        sa.select(cycles.c.state, cycles.c.created_at, cycles.c.updated_at, changed)
        .join(cycle_progress, cycle_progress.c.cycle_id == cycles.c.cycle_id, isouter=True)
        .where(cycles.c.state.not_in([state.value for state in TERMINAL_STATES])),
    )
    open_cycles: dict[str, dict[str, float]] = {}
    for state, created, updated, progressed in rows:
        found = open_cycles.setdefault(state, {"age_s": 0.0, "idle_s": 0.0})
        found["age_s"] = max(found["age_s"], _since(now, created))
        found["idle_s"] = max(found["idle_s"], _since(now, max(updated, progressed)))
    oldest = connection.execute(
        sa.select(sa.func.min(outbox.c.created_at)).where(outbox.c.delivered_at.is_(None)),
    ).scalar_one()
    estimates = sorted(adherence.read(connection).items())
    return counts(connection) | {
        "open_cycles": open_cycles,
        "halted": switches.halted(connection) is not None,
        "adherence": [(*place, found.mean, found.weight) for place, found in estimates],
        "outbox_oldest_s": 0.0 if oldest is None else _since(now, oldest),
    }


def _since(now: datetime, stamp: str) -> float:
    then = datetime.strptime(stamp, STAMP_FORMAT).replace(tzinfo=UTC)
    return max(0.0, (now - then).total_seconds())
