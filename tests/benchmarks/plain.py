"""The router's rules as anybody would write them down from the specification: plain functions over dictionaries.

Two users: the baselines, which must do the same work, and the model that says what should have come out. Nothing here
comes from `agents.routing`, so that agreement means something.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, LogsData

from app.topics import AUDIT_TRAIL, EVALUATIONS, FEEDBACK, TRIGGERS, VIOLATIONS
from benchmarks.messages import Form
from benchmarks.mix import Event

Loads = Callable[[bytes | str], Any]

CONSTITUTIONAL_HASH = "cdd01ef066bc6cf2"
DEDUP_WINDOW_S = 3600
TOPICS = {
    "constitutional_violation": (VIOLATIONS.name, "critical"),
    "model_optimization_trigger": (TRIGGERS.name, "high"),
    "human_feedback": (FEEDBACK.name, "medium"),
    "policy_evaluation": (EVALUATIONS.name, "low"),
    "audit_trail": (AUDIT_TRAIL.name, "low"),
}
SAMPLE_RATES = {"policy_evaluation": 0.2}
_BITS = 56
_SPACE = 1 << _BITS


def decode(value: bytes, form: Form, loads: Loads = orjson.loads) -> list[Event]:
    """Return the events of a message of a known form."""
    if form is Form.SINGLE:
        return [loads(value)]
    events = []
    for resource_logs in LogsData.FromString(value).resource_logs:
        resource = {pair.key: _value(pair.value) for pair in resource_logs.resource.attributes}
        for scope in resource_logs.scope_logs:
            for record in scope.log_records:
                event = _event(record, form, loads)
                event["resource"] = resource
                events.append(event)
    return events


def _event(record: LogRecord, form: Form, loads: Loads) -> Event:
    if form is Form.JSON_BODY:
        event: Event = loads(record.body.string_value)
        return event
    return {pair.key: _value(pair.value) for pair in record.attributes}


def _value(value: AnyValue) -> Any:
    kind: Any = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


def classify(event: Event) -> str:
    """Return what an event is; the first match wins."""
    if event.get("constitutional_hash") is not None and event.get("violations"):
        return "constitutional_violation"
    if event.get("event_type") == "policy_evaluation":
        return "policy_evaluation"
    if event.get("compliance_score", 1.0) < 0.8:
        return "model_optimization_trigger"
    if event.get("source") == "human_review":
        return "human_feedback"
    return "audit_trail"


def is_routine(event: Event, classification: str) -> bool:
    """Tell whether the event is a routine success, which is dropped."""
    if classification != "audit_trail" or event.get("status") != "success":
        return False
    score: float = event.get("compliance_score", 0)
    return score > 0.95


def is_sampled(event_id: str, service: str, classification: str) -> bool:
    """Tell whether the event is kept: 56 bits of its identity's digest, against OpenTelemetry's rejection threshold."""
    rate = SAMPLE_RATES.get(classification, 1.0)
    if rate >= 1.0:
        return True
    digest = blake2b(f"{len(service)}:{service}{event_id}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[-_BITS // 8 :], "big") >= round((1.0 - rate) * _SPACE)


def enrich(event: Event, service: str, classification: str) -> str:
    """Stamp the event, in place, and return the topic it goes to. Without the fingerprint that ours adds."""
    topic, priority = TOPICS[classification]
    event["event_classification"] = classification
    event["processing_timestamp"] = datetime.now(UTC).isoformat()
    event["constitutional_hash"] = CONSTITUTIONAL_HASH
    event["acgs_version"] = "1.0"
    event["routing_metadata"] = {
        "topic": topic,
        "priority": priority,
        "sample_rate": SAMPLE_RATES.get(classification, 1.0),
        "identity": {"service": service, "id": event["event_id"]},
    }
    return topic


def claim_key(event_id: str, service: str) -> str:
    """Return the Redis key under which a baseline remembers an event."""
    return f"event:{service}:{event_id}"


def stdlib_loads(value: bytes | str) -> Any:
    """Parse JSON with the standard library."""
    return json.loads(value)
