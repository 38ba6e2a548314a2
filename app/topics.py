"""The topic registry: every Kafka topic, who writes it, who reads it, how it is keyed and how long it is kept.

Routing, curation, `flywheel topics create` and the documentation read this table; a topic's name stands nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from models.event import Classification, Priority

DAY_MS = 24 * 3600 * 1000
AUDIT_RETENTION_DAYS = 2555


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic. `retention_ms` of -1 keeps records for ever."""

    name: str
    value: str
    key: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    retention_ms: int
    max_message_bytes: int = 8 * 1024 * 1024


AUDIT_EVENTS = TopicSpec(
    "otel-audit-events",
    value="OTLP logs (protobuf, JSON), JSON event, JSON array, NDJSON",
    key="producer's own, may be absent",
    producers=("collector", "route: POST /v1/logs", "applications", "flywheel dlq replay"),
    consumers=("route",),
    retention_ms=7 * DAY_MS,
)
VIOLATIONS = TopicSpec(
    "constitutional-violations",
    value="models.event.RoutedEvent",
    key="input key of a single event, else trace id, else identity",
    producers=("route",),
    consumers=("curate",),
    retention_ms=30 * DAY_MS,
)
EVALUATIONS = TopicSpec(
    "policy-evaluations",
    value="models.event.RoutedEvent",
    key=VIOLATIONS.key,
    producers=("route",),
    consumers=("curate",),
    retention_ms=30 * DAY_MS,
)
TRIGGERS = TopicSpec(
    "model-optimization-triggers",
    value="models.event.RoutedEvent",
    key=VIOLATIONS.key,
    producers=("route",),
    consumers=("curate",),
    retention_ms=30 * DAY_MS,
)
FEEDBACK = TopicSpec(
    "human-feedback-loops",
    value="models.event.RoutedEvent",
    key=VIOLATIONS.key,
    producers=("route",),
    consumers=("curate",),
    retention_ms=30 * DAY_MS,
)
AUDIT_TRAIL = TopicSpec(
    "audit-trail-events",
    value="models.event.RoutedEvent",
    key=VIOLATIONS.key,
    producers=("route",),
    consumers=(),
    retention_ms=AUDIT_RETENTION_DAYS * DAY_MS,
)
DEAD_LETTERS = TopicSpec(
    "audit-dead-letters",
    value="the original bytes, or the record that could not be read; reason and origin in headers",
    key="the original key",
    producers=("route", "curate", "train", "flywheel dlq: marks"),
    consumers=("flywheel dlq",),
    retention_ms=30 * DAY_MS,
)
CYCLES = TopicSpec(
    "optimization-cycles",
    value="models.cycle.CycleRecord",
    key="model id",
    producers=("curate: outbox", "train: outbox"),
    consumers=("train",),
    retention_ms=AUDIT_RETENTION_DAYS * DAY_MS,
)

REGISTRY: tuple[TopicSpec, ...] = (
    AUDIT_EVENTS,
    VIOLATIONS,
    EVALUATIONS,
    TRIGGERS,
    FEEDBACK,
    AUDIT_TRAIL,
    DEAD_LETTERS,
    CYCLES,
)

ROUTES = MappingProxyType(
    {
        Classification.CONSTITUTIONAL_VIOLATION: (VIOLATIONS, Priority.CRITICAL),
        Classification.MODEL_OPTIMIZATION_TRIGGER: (TRIGGERS, Priority.HIGH),
        Classification.HUMAN_FEEDBACK: (FEEDBACK, Priority.MEDIUM),
        Classification.POLICY_EVALUATION: (EVALUATIONS, Priority.LOW),
        Classification.AUDIT_TRAIL: (AUDIT_TRAIL, Priority.LOW),
    },
)
"""Where each classification goes, and with what priority."""
