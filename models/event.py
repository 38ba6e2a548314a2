"""Audit events: what producers send, and what the router makes of them.

Events are open: producers add fields of their own, and those travel on untouched. Only the fields that decide
(classification, filter, identity) are held to a type; see `AuditEvent`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Classification(StrEnum):
    """What an event is to the flywheel; the first match in the order of DESIGN's table wins."""

    CONSTITUTIONAL_VIOLATION = "constitutional_violation"
    POLICY_EVALUATION = "policy_evaluation"
    MODEL_OPTIMIZATION_TRIGGER = "model_optimization_trigger"
    HUMAN_FEEDBACK = "human_feedback"
    AUDIT_TRAIL = "audit_trail"


class Priority(StrEnum):
    """How soon a consumer should care."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Verdict(StrEnum):
    """What a human reviewer said of an answer."""

    APPROVE = "approve"
    REJECT = "reject"
    CORRECT = "correct"


class Violation(BaseModel):
    """One violation in its long form; producers may also send the bare code as a text."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    severity: str = "unknown"


class AuditEvent(BaseModel):
    """An event as producers send it. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    event_id: str | None = None
    event_type: str | None = None
    source: str | None = None
    status: str | None = None
    timestamp: str | int | float | None = None
    constitutional_hash: str | None = None
    compliance_score: float | None = Field(default=None, ge=0.0, le=1.0, allow_inf_nan=False)
    violations: list[str | Violation] | None = None
    model_id: str | None = None
    model_version: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: list[dict[str, Any]] | None = None
    input_tokens: int | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    workload_id: str | None = None
    risk_level: str | None = None
    subject_id: str | None = None
    domain: str = "default"
    target_event_id: str | None = None
    verdict: Verdict | None = None
    corrected_response: str | None = None
    reviewer_id: str | None = None


class Identity(BaseModel):
    """Who an event is: scoped by its producer, with a fingerprint of its content.

    `id` is the event's own `event_id`, else the BLAKE2b-128 of its canonical JSON in hex. `fingerprint` leaves out
    what changes when the same thing is told twice (trace and span ids, timestamps).
    """

    model_config = ConfigDict(frozen=True)

    service: str
    id: str
    fingerprint: str


class RoutingMetadata(BaseModel):
    """What the router decided."""

    model_config = ConfigDict(frozen=True)

    topic: str
    priority: Priority
    sample_rate: float = Field(gt=0.0, le=1.0)
    identity: Identity


class RoutedEvent(AuditEvent):
    """An event as the router publishes it. `acgs_version` is the wire version of the enrichment."""

    event_classification: Classification
    processing_timestamp: str
    acgs_version: str
    routing_metadata: RoutingMetadata
