"""The router as the specification tells it, one record after the other, in plain Python: what tests compare it with.

Nothing here uses the router's own code. What it cannot know (how an identity is hashed, so which events without a
trace are sampled) it is told by `keeps`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

TOPICS = {
    "constitutional_violation": ("constitutional-violations", "critical"),
    "model_optimization_trigger": ("model-optimization-triggers", "high"),
    "human_feedback": ("human-feedback-loops", "medium"),
    "policy_evaluation": ("policy-evaluations", "low"),
    "audit_trail": ("audit-trail-events", "low"),
}
VOLATILE = (
    *("timestamp", "observed_timestamp", "trace_id", "span_id", "parent_span_id"),
    *("trace_flags", "traceparent", "tracestate", "resource"),
)
"""Fields that may differ between two tellings of one event."""

MOST_CONTENTS = 16


@dataclass(frozen=True)
class Told:
    """One record of a message: the event that it says, or the reason why it can say none."""

    event: Event | None
    service: str = "unknown"
    reason: str = ""
    single: bool = False


@dataclass(frozen=True)
class Sent:
    """One message at its place on the input topic."""

    partition: int
    offset: int
    value: bytes
    told: tuple[Told, ...]
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    replay_of: tuple[int, int] | None = None
    """Partition and offset of the message that this one tells again for the sake of a dead letter."""

    def owner(self, index: int) -> str:
        """The place that claims are made for."""
        partition, offset = self.replay_of or (self.partition, self.offset)
        return f"in:{partition}:{offset}:{index}"


def canonical(value: Any) -> str:
    """A text that two values share only if they are the same JSON."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Distinct:
    """What makes one event: who told it, under which id (its whole content where it has none), and what it says."""

    service: str
    id: str
    content: str

    @classmethod
    def of(cls, told: Told) -> Distinct:
        """The distinct event that a record tells."""
        assert told.event is not None
        content = canonical({name: value for name, value in told.event.items() if name not in VOLATILE})
        given = told.event.get("event_id")
        return cls(told.service, f"id {given}" if given else f"all {canonical(told.event)}", content)


def refusal(event: Event) -> str:
    """Why a field that decides has the wrong type; empty if none has."""
    for name in ("event_id", "event_type", "source", "status", "constitutional_hash"):
        if not isinstance(event.get(name, ""), str | None):
            return "invalid_field"
    score = event.get("compliance_score", 1.0)
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1):
        return "invalid_score"
    violations = event.get("violations", [])
    if violations is None:
        return ""
    if not isinstance(violations, list):
        return "invalid_violations"
    named = [item.get("type") if isinstance(item, dict) else item for item in violations]
    return "" if all(isinstance(name, str) for name in named) else "invalid_violations"


def classification(event: Event, trigger_threshold: float) -> str:
    """What a valid event is: DESIGN's list, the first match wins."""
    score = event.get("compliance_score")
    if event.get("constitutional_hash") is not None and event.get("violations"):
        return "constitutional_violation"
    if event.get("event_type") == "policy_evaluation":
        return "policy_evaluation"
    if (1.0 if score is None else score) < trigger_threshold:
        return "model_optimization_trigger"
    if event.get("source") == "human_review":
        return "human_feedback"
    return "audit_trail"


def trace(event: Event) -> str | None:
    """The event's trace id, where it is a valid one."""
    value = event.get("trace_id")
    valid = isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{32}", value) and value != "0" * 32
    return value if valid else None


@dataclass
class Out:
    """One record that must be published."""

    topic: str
    told: Told
    owner: str
    label: str
    """Its classification, or the reason of a dead letter."""
    key: bytes | None
    sample_rate: float = 1.0


@dataclass
class Decided:
    """What must become of a batch."""

    out: list[Out] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(outcome, classification or reason) -> records."""
    redelivered: int = 0
    id_conflict: int = 0


class Model:
    """A router with its claims.

    Args:
        rates: the share kept, by classification; all of those not named.
        keeps: tells whether an event without a trace is within its sample.
        trigger_threshold, routine_threshold: the rules' thresholds.
    """

    def __init__(
        self,
        rates: dict[str, float],
        keeps: Callable[[Told], bool],
        trigger_threshold: float = 0.8,
        routine_threshold: float = 0.95,
    ) -> None:
        self.rates = rates
        self._keeps = keeps
        self._trigger = trigger_threshold
        self._routine = routine_threshold
        self._claims: dict[tuple[str, str], dict[str, str]] = {}

    def fate(self, told: Told) -> tuple[str, str]:
        """What becomes of a record, duplicates apart: (outcome, classification or reason)."""
        event = told.event
        if event is None:
            return "dead_lettered", told.reason
        reason = refusal(event)
        if reason:
            return "dead_lettered", reason
        kind = classification(event, self._trigger)
        score = event.get("compliance_score")
        if kind == "audit_trail" and event.get("status") == "success" and (score or 0.0) > self._routine:
            return "filtered", kind
        return ("routed" if self._sampled(told, kind) else "sampled_out"), kind

    def _sampled(self, told: Told, kind: str) -> bool:
        rate = self.rates.get(kind, 1.0)
        if rate == 1.0:
            return True
        assert told.event is not None
        traced = trace(told.event)
        if traced is None:
            return self._keeps(told)
        return int(traced[-14:], 16) >= round((1.0 - rate) * 2**56)

    def route(self, batch: Iterable[Sent]) -> Decided:
        """Decide a batch, and remember its claims."""
        decided = Decided()
        for sent in sorted(batch, key=lambda item: (item.partition, item.offset)):
            for index, told in enumerate(sent.told):
                self._record(sent, index, told, decided)
        return decided

    def _record(self, sent: Sent, index: int, told: Told, decided: Decided) -> None:
        outcome, label = self.fate(told)
        owner = sent.owner(index)
        if outcome == "dead_lettered":
            decided.out.append(Out("audit-dead-letters", told, owner, label, sent.key))
        elif outcome == "routed":
            outcome = self._claim(told, owner, decided)
            if outcome == "routed":
                key = sent.key if told.single and sent.key else _event_key(told)
                decided.out.append(Out(TOPICS[label][0], told, owner, label, key, self.rates.get(label, 1.0)))
        decided.counts[outcome, label] += 1

    def _claim(self, told: Told, owner: str, decided: Decided) -> str:
        who = Distinct.of(told)
        contents = self._claims.setdefault((who.service, who.id), {})
        if who.content in contents and contents[who.content] != owner:
            return "duplicate"
        first = not contents or next(iter(contents)) == who.content
        decided.redelivered += first and who.content in contents
        decided.id_conflict += not first
        if len(contents) < MOST_CONTENTS:
            contents.setdefault(who.content, owner)
        return "routed"


def _event_key(told: Told) -> bytes | None:
    """The output key, or None where it is the digest that stands for a nameless event."""
    assert told.event is not None
    key = trace(told.event) or told.event.get("event_id")
    return key.encode() if key else None
