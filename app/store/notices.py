"""Notices: what somebody should be woken for. They wait in the outbox, in the transaction of what they tell of.

A notice holds ids and states, never event text. `app.webhook` delivers them apart from audit entries and records,
which must not wait for a receiver that is away.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.database import utc_now
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


def of_rollback(connection: Connection, model_id: str, replaced: str, version_id: str | None, reason: str) -> None:
    """Queue that a champion was rolled back, to another version or to the base model (None)."""
    about = {"model_id": model_id, "from_version": replaced, "to_version": version_id, "reason": reason}
    add(connection, "model.rolled_back", about)
