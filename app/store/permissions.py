"""Who may use what: the gate's `user_permissions` where its data comes from SQL. Each change has its audit entry."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy.engine import Connection

from app.store.audited import Audited, AuditedTable, ChangeRefused, Revision
from app.store.tables import user_permissions

__all__ = [
    "USER_PERMISSION",
    "Audited",
    "ChangeRefused",
    "Revision",
    "audited",
    "current",
    "grant",
    "history",
    "revoke",
]

USER_PERMISSION = "user_permission"
"""`event_type` of the audit entries."""

MAX_NAME = 100

_TABLE = AuditedTable(user_permissions, USER_PERMISSION, "nothing is permitted to that user already")

current = _TABLE.current
history = _TABLE.history
audited = _TABLE.audited


def grant(
    connection: Connection,
    user_id: str,
    *,
    gpu_hours_monthly: float,
    max_risk_level: str,
    risk_levels: list[str],
    changed_by: str,
    comment: str = "",
) -> Revision:
    """Permit a user so many GPU hours a calendar month (UTC), and models up to a risk level.

    Raises:
        ChangeRefused: a value is none that the gate could decide by, or nobody is named as who grants it.
    """
    user_id = user_id.strip()
    if not 1 <= len(user_id) <= MAX_NAME or not user_id.isprintable():
        raise ChangeRefused(f"the user's id must be 1 to {MAX_NAME} printable characters, not {user_id!r}")
    if not math.isfinite(gpu_hours_monthly) or gpu_hours_monthly < 0:
        raise ChangeRefused(f"GPU hours a month are {gpu_hours_monthly}; give a number from 0")
    if max_risk_level not in risk_levels:
        raise ChangeRefused(f"{max_risk_level!r} is no risk level; give one of {', '.join(risk_levels)}")
    value: dict[str, Any] = {"gpu_hours_monthly": gpu_hours_monthly, "max_risk_level": max_risk_level}
    return _TABLE.change(connection, user_id, value, changed_by=changed_by, comment=comment)


def revoke(connection: Connection, user_id: str, *, changed_by: str, comment: str = "") -> Revision:
    """Permit a user nothing any more; raises `ChangeRefused` where nothing is permitted."""
    return _TABLE.change(connection, user_id.strip(), None, changed_by=changed_by, comment=comment)
