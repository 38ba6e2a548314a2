"""Notices: what somebody should be woken for. They wait in the outbox, in the transaction of what they tell of.

A notice holds ids and states, never event text. `app.webhook` delivers them apart from audit entries and records,
which must not wait for a receiver that is away.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.database import utc_now
from app.store.tables import deployments, model_versions
from models.cycle import Cycle, CycleState

Kind = Literal["cycle.awaits_approval", "model.rolled_back", "privacy.budget_exhausted"]

_AWAITS = {CycleState.AWAITING_APPROVAL: "training", CycleState.AWAITING_PROMOTION: "promotion"}
_EXHAUSTED = frozenset({"BudgetUsedUp", "BudgetExhaustedError"})
"""Codes of the reasons by which a cycle ends because its domain's budget does."""


def add(connection: Connection, kind: Kind, data: dict[str, Any]) -> None:
    """Queue a notice."""
    payload = {"id": f"msg_{uuid.uuid4().hex}", "type": kind, "timestamp": utc_now(), "data": data}
    outbox.notify(connection, kind, payload)


def of_cycle(connection: Connection, cycle: Cycle) -> None:
    """Queue what a cycle's new state asks of somebody: an approval, or a new cohort."""
    about = {"cycle_id": cycle.cycle_id, "model_id": cycle.model_id, "domain": cycle.domain, "state": cycle.state.value}
    if cycle.state in _AWAITS:
        awaits = "sending_text_to_teacher" if cycle.facts.get("teacher", {}).get("awaits") else _AWAITS[cycle.state]
        add(connection, "cycle.awaits_approval", about | {"awaits": awaits})
    if any(reason.get("code") in _EXHAUSTED for reason in cycle.reasons):
        add(connection, "privacy.budget_exhausted", about)


def of_deployment(connection: Connection, model_id: str, version_id: str | None, reason: str) -> None:
    """Queue a notice where what is about to be deployed is older than what serves, or is the base model again."""
    serving = connection.execute(
        sa.select(deployments.c.version_id)
        .where(deployments.c.model_id == model_id)
        .order_by(deployments.c.seq.desc())
        .limit(1),
    ).scalar_one_or_none()
    if serving is None or serving == version_id:
        return
    made = {
        row.version_id: row.created_at
        for row in connection.execute(
            sa.select(model_versions.c.version_id, model_versions.c.created_at).where(
                model_versions.c.version_id.in_([serving, version_id or serving])
            )
        )
    }
    if version_id is None or made.get(version_id, made[serving]) < made[serving]:
        about = {"model_id": model_id, "from_version": serving, "to_version": version_id, "reason": reason}
        add(connection, "model.rolled_back", about)
