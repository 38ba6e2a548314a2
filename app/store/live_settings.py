"""Live settings: revisions of values that running workers take over, each with its audit entry.

What a name means and which values it may have is the catalogue's business (`agents.routing.live`). A name that is given
back has the value of the configuration again.
"""

from __future__ import annotations

from app.store.audited import Audited, AuditedTable, ChangeRefused, Revision
from app.store.tables import live_settings

__all__ = ["ROUTING_SETTING", "Audited", "ChangeRefused", "Revision", "audited", "change", "current", "history"]

ROUTING_SETTING = "routing_setting"
"""`event_type` of the audit entries."""

_TABLE = AuditedTable(live_settings, ROUTING_SETTING, "what is configured for it is in force already")

change = _TABLE.change
current = _TABLE.current
history = _TABLE.history
audited = _TABLE.audited
