"""How a decision of the gate stands in the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.audit import AuditEntry
from models.decision import GateDecision

GATE_DECISION = "gate_decision"
"""`event_type` of the entries."""


def decision_entry(facts: Mapping[str, Any], decision: GateDecision, constitutional_hash: str) -> AuditEntry:
    """The entry of a conclusive decision and the facts it rests on; its id is the decision's."""
    return AuditEntry(
        entry_id=f"decision-{decision.decision_id}",
        event_type=GATE_DECISION,
        constitutional_hash=constitutional_hash,
        context={"facts": dict(facts), "decision": decision.model_dump(mode="json")},
    )
