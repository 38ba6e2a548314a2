"""The stop switch: whether cycles may open and run. Each turn of it has its audit entry."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from app.store.audited import AuditedTable, ChangeRefused, Revision
from app.store.tables import switches

__all__ = ["STOP_SWITCH", "ChangeRefused", "Revision", "halt", "halted", "history", "resume"]

STOP_SWITCH = "stop_switch"
"""`event_type` of the audit entries."""

_CYCLES = "cycles"
_TABLE = AuditedTable(switches, STOP_SWITCH, "cycles run already")

history = _TABLE.history


def halt(connection: Connection, *, changed_by: str, comment: str = "") -> Revision:
    """Stop all cycles, at once; raises `ChangeRefused` where nobody is named."""
    return _TABLE.change(connection, _CYCLES, {"halted": True}, changed_by=changed_by, comment=comment)


def resume(connection: Connection, *, changed_by: str, comment: str = "") -> Revision:
    """Let cycles go on, once the audit engine knows; raises `ChangeRefused` where they run, or nobody is named."""
    return _TABLE.change(connection, _CYCLES, None, changed_by=changed_by, comment=comment)


def halted(connection: Connection) -> Revision | None:
    """The change by which cycles stand still, or None.

    Stopping counts as soon as it is written; going on counts only once the audit engine has it.
    """
    latest = _TABLE.current(connection).get(_CYCLES)
    if latest is None or (latest.value is None and latest.audited):
        return None
    return latest
