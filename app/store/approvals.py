"""Approvals: a named person's word on one exact plan and manifest, for a limited time."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.database import plain, utc_now
from app.store.tables import approvals
from models.cycle import TERMINAL_STATES, Cycle


class ApprovalRefused(RuntimeError):
    """This person cannot decide on this cycle; the message says why."""


def decide(
    connection: Connection,
    cycle: Cycle,
    *,
    reviewer: str,
    approved: bool,
    comment: str,
    valid_hours: float = 72.0,
) -> str:
    """Record a reviewer's decision on what the cycle is about to do (its plan, or sending its text to a teacher).

    Raises `ApprovalRefused`.
    """
    if cycle.state in TERMINAL_STATES:
        raise ApprovalRefused(f"cycle {cycle.cycle_id} has ended ({cycle.state}): there is nothing left to decide")
    if reviewer.strip().casefold() == cycle.requested_by.strip().casefold():
        raise ApprovalRefused(
            f"{reviewer} requested cycle {cycle.cycle_id} and cannot approve it: ask another reviewer"
        )
    if cycle.plan_digest is None:
        raise ApprovalRefused(f"cycle {cycle.cycle_id} ({cycle.state}) has no plan yet: wait until it awaits approval")
    approval_id = uuid.uuid4().hex
    expires = datetime.now(UTC) + timedelta(hours=valid_hours)
    connection.execute(
        sa.insert(approvals).values(
            approval_id=approval_id,
            cycle_id=cycle.cycle_id,
            plan_digest=cycle.plan_digest,
            approved=approved,
            reviewer=reviewer,
            comment=comment,
            created_at=utc_now(),
            expires_at=expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        ),
    )
    outbox.audit(
        connection,
        "approval",
        {
            "cycle_id": cycle.cycle_id,
            "model_id": cycle.model_id,
            "domain": cycle.domain,
            "context": {"approved": approved, "reviewer": reviewer, "plan_digest": cycle.plan_digest},
            "entry_id": f"approval-{approval_id}",
        },
    )
    return approval_id


def latest(connection: Connection, cycle_id: str, digest: str | None = None) -> sa.Row[Any] | None:
    """The last decision on a cycle (with `digest`: on just that), expired or not; None where nobody has decided."""
    query = sa.select(approvals).where(approvals.c.cycle_id == cycle_id)
    if digest is not None:
        query = query.where(approvals.c.plan_digest == digest)
    return connection.execute(query.order_by(approvals.c.created_at.desc()).limit(1)).one_or_none()


def of_cycle(connection: Connection, cycle_id: str) -> list[dict[str, Any]]:
    """Every decision on a cycle in order: who, what on, why, when, until when."""
    query = sa.select(approvals).where(approvals.c.cycle_id == cycle_id).order_by(approvals.c.created_at)
    return [plain(row) for row in connection.execute(query)]
