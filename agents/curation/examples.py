"""From a routed event to a training example, or to a reviewer's word on one. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from agents.curation.signature import is_signed
from app.store.adherence import Observation
from models.event import Classification, Identity, Verdict
from models.example import Example, Lineage

# What leases, audit entries and labels can hold: they carry the names of model and domain.
MAX_NAME_CHARS = 190
# What an index of PostgreSQL can hold, in any script.
MAX_REFERENCE_CHARS = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

CURATED = frozenset(
    {
        Classification.CONSTITUTIONAL_VIOLATION,
        Classification.MODEL_OPTIMIZATION_TRIGGER,
        Classification.HUMAN_FEEDBACK,
    },
)
# A violation is more urgent than a low score; a reviewer's rejection lifts an example above both.
BASE_PRIORITY = {Classification.CONSTITUTIONAL_VIOLATION: 10, Classification.MODEL_OPTIMIZATION_TRIGGER: 5}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A reviewer's word on an earlier event. `signed` is true only for what the feedback endpoint signed."""

    feedback_id: str
    target_event_id: str
    verdict: Verdict
    corrected_response: str | None
    reviewer_id: str | None
    signed: bool


class NotCuratable(ValueError):
    """This event cannot become an example or feedback. `reason` is a stable code for the counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def example_id(identity: Identity) -> str:
    """The id of an event's example: BLAKE2b-128 of its identity, so that a redelivery finds the same one."""
    parts = "\x1f".join((identity.service, identity.id, identity.fingerprint))
    return blake2b(parts.encode(), digest_size=16).hexdigest()


def to_example(event: Mapping[str, Any], lineage: Lineage, created_at: str) -> Example:
    """The example of a violation or trigger event; raises `NotCuratable` when it holds no question and answer."""
    prompt, response = _prompt(event), _text(event, "response")
    if not prompt:
        raise NotCuratable("no_prompt", "the event holds no prompt: an example needs the question that was asked")
    model_id = _text(event, "model_id")
    if not model_id:
        raise NotCuratable("no_model", "the event names no model_id: no cycle could take its example")
    domain = _text(event, "domain") or "default"
    for field, name in (("model_id", model_id), ("domain", domain)):
        if len(name) > MAX_NAME_CHARS or _CONTROL.search(name):
            raise NotCuratable("bad_name", f"{field} is over {MAX_NAME_CHARS} characters, or holds control characters")
    identity = Identity.model_validate(event["routing_metadata"]["identity"])
    classification = Classification(event["event_classification"])
    return Example(
        example_id=example_id(identity),
        identity=identity,
        event_id=_reference(event, "event_id") or None,
        classification=classification,
        lineage=lineage,
        domain=domain,
        model_id=model_id,
        subject_token=_text(event, "subject_id") or None,
        workload_id=_text(event, "workload_id") or None,
        violation_type=violation_type(event),
        compliance_score=event.get("compliance_score"),
        prompt=prompt,
        response=response,
        priority=BASE_PRIORITY.get(classification, 0),
        created_at=created_at,
    )


def to_feedback(event: Mapping[str, Any], key: bytes | None = None) -> Feedback:
    """The feedback in a human review event; raises `NotCuratable` when it says nothing about any event.

    `key` is what the feedback endpoint signs with; without it nothing counts as signed.
    """
    target = _reference(event, "target_event_id")
    if not target:
        raise NotCuratable("no_target", "the review names no target_event_id: nobody knows what it is about")
    try:
        verdict = Verdict(_text(event, "verdict"))
    except ValueError:
        known = ", ".join(verdict.value for verdict in Verdict)
        raise NotCuratable("no_verdict", f"the review's verdict is none of {known}") from None
    identity = Identity.model_validate(event["routing_metadata"]["identity"])
    return Feedback(
        feedback_id=example_id(identity),
        target_event_id=target,
        verdict=verdict,
        corrected_response=_text(event, "corrected_response") or None,
        reviewer_id=_text(event, "reviewer_id") or None,
        signed=is_signed(key, event),
    )


def feedback_changes(feedback: Feedback, priority: int) -> dict[str, Any]:
    """What a review changes in its example (columns of `examples`), given the example's present priority."""
    if feedback.verdict is Verdict.APPROVE:
        return {"status": "retired"}
    changes: dict[str, Any] = {"priority": priority + 20}
    if feedback.verdict is Verdict.CORRECT and feedback.signed and feedback.corrected_response:
        changes |= {"corrected_response": feedback.corrected_response, "correction_signed": True}
    return changes


def violation_type(event: Mapping[str, Any]) -> str:
    """The first violation's code, else `low_score`: the class by which sets are balanced."""
    violations = event.get("violations") or []
    if not isinstance(violations, list):
        return str(violations)
    for violation in violations:
        code = violation.get("type") if isinstance(violation, Mapping) else violation
        if code:
            return str(code)
    return "low_score"


def _prompt(event: Mapping[str, Any]) -> str:
    prompt = _text(event, "prompt")
    if prompt:
        return prompt
    messages = event.get("messages")
    if isinstance(messages, list):
        asked = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
        if asked:
            return _text(asked[-1], "content")
    return ""


def _text(event: Mapping[str, Any], name: str) -> str:
    value = event.get(name)
    return value.strip() if isinstance(value, str) else ""


def _reference(event: Mapping[str, Any], name: str) -> str:
    """An event's id, or one that refers to it. One too long to index is known by its digest, on both sides alike."""
    text = _text(event, name)
    return text if len(text) <= MAX_REFERENCE_CHARS else f"blake2b:{blake2b(text.encode(), digest_size=16).hexdigest()}"


def to_observation(event: Mapping[str, Any], lineage: Lineage, threshold: float) -> Observation | None:
    """What a policy evaluation says of its model's adherence; None for events that say nothing of it.

    Only events of type `policy_evaluation` count: of others the router keeps failures alone. Adherent means a score of
    at least `threshold` and no violation.
    """
    if event.get("event_type") != "policy_evaluation":
        return None
    model_id, domain = _text(event, "model_id"), _text(event, "domain") or "default"
    score = event.get("compliance_score")
    if not model_id or isinstance(score, bool) or not isinstance(score, int | float):
        return None
    if any(len(name) > MAX_NAME_CHARS or _CONTROL.search(name) for name in (model_id, domain)):
        return None
    rate = event["routing_metadata"].get("sample_rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 < rate <= 1.0:
        return None
    return Observation(
        topic=lineage.topic,
        partition=lineage.partition,
        offset=lineage.offset,
        model_id=model_id,
        domain=domain,
        adherent=score >= threshold and not event.get("violations"),
        stands_for=1.0 / rate,
        model_version=_text(event, "model_version"),
        arrived_at=_stamp(event.get("processing_timestamp")),
        told_at=_stamp(event.get("timestamp")),
    )


def _stamp(value: Any) -> str:
    """A time (RFC 3339, or seconds since the epoch) as the store writes times; empty where it is none."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            return ""
    except (ValueError, OverflowError, OSError):
        return ""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
