"""What an event is, whether it is kept, and whether it may decide at all. Pure, over plain dictionaries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agents.routing.message import Event, Reason, Unroutable
from models.event import Classification

# Looking up a member of an enumeration costs more than comparing it.
_VIOLATION = Classification.CONSTITUTIONAL_VIOLATION
_EVALUATION = Classification.POLICY_EVALUATION
_TRIGGER = Classification.MODEL_OPTIMIZATION_TRIGGER
_FEEDBACK = Classification.HUMAN_FEEDBACK
_TRAIL = Classification.AUDIT_TRAIL


def default_sample_rates() -> Mapping[Classification, float]:
    """Return the specification's rates: one policy evaluation in five, and all of everything else."""
    return MappingProxyType({kind: 0.2 if kind is Classification.POLICY_EVALUATION else 1.0 for kind in Classification})


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """What decides about events; one revision of it holds for a whole batch.

    Args:
        constitutional_hash: the system's identifier of the constitution in force, stamped on every routed event.
        trigger_threshold: a compliance score below it triggers an optimization.
        routine_threshold: a successful audit trail event with a score above it is dropped as routine.
        sample_rates: the share (0..1) kept of each classification; those not named keep all.
        dedup_ttl_s: how long a claim stands, in seconds.
        acgs_version: stamped on every routed event.
    """

    constitutional_hash: str
    trigger_threshold: float = 0.8
    routine_threshold: float = 0.95
    sample_rates: Mapping[Classification, float] = field(default_factory=default_sample_rates)
    dedup_ttl_s: int = 3600
    acgs_version: str = "1.0"

    def __post_init__(self) -> None:
        for name in ("trigger_threshold", "routine_threshold"):
            _check_share(name, getattr(self, name))
        for kind, rate in self.sample_rates.items():
            _check_share(f"sample_rates[{kind.value}]", rate)
        if self.dedup_ttl_s < 1:
            raise ValueError(f"dedup_ttl_s is {self.dedup_ttl_s}; a claim must stand for at least 1 second")
        if not self.constitutional_hash:
            raise ValueError("constitutional_hash is empty; every routed event is stamped with it")

    def sample_rate(self, classification: Classification) -> float:
        """Return the share of `classification` that is kept."""
        return self.sample_rates.get(classification, 1.0)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; it must lie in 0..1")


_TEXT_FIELDS = ("event_id", "event_type", "source", "status", "constitutional_hash")
DECIDING_FIELDS = (*_TEXT_FIELDS, "compliance_score", "violations")
"""What `validate`, `classify` and `is_filtered` look at, and nothing else."""

_TEXT_OR_NULL = frozenset((str, type(None)))


def validate(event: Event) -> None:
    """Hold the fields that decide to their types; null counts as absent.

    Raises:
        Unroutable: a score that is not a number in 0..1, violations that are not a list of texts or of objects
            with a text `type`, or another deciding field that is not text.
    """
    get = event.get
    # One loop in C over all of them: this runs for every record.
    if not _TEXT_OR_NULL.issuperset(map(type, map(get, _TEXT_FIELDS))):
        _refuse_text(event)
    score = get("compliance_score")
    if score is not None and not (type(score) is float and 0.0 <= score <= 1.0):
        _check_score(score)
    violations = get("violations")
    if violations is not None and violations != []:
        _check_violations(violations)


def _refuse_text(event: Event) -> None:
    for name in _TEXT_FIELDS:
        if type(event.get(name)) not in _TEXT_OR_NULL:
            raise Unroutable(Reason.INVALID_FIELD, f"{name} is {type(event[name]).__name__}; it must be text")


def _check_score(score: object) -> None:
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Unroutable(Reason.INVALID_SCORE, f"compliance_score is {type(score).__name__}; it must be a number")
    if math.isnan(score) or not 0.0 <= score <= 1.0:
        raise Unroutable(Reason.INVALID_SCORE, f"compliance_score is {score}; it must lie in 0..1")


def _check_violations(violations: object) -> None:
    if not isinstance(violations, list):
        raise Unroutable(Reason.INVALID_VIOLATIONS, f"violations is {type(violations).__name__}; it must be a list")
    for item in violations:
        if isinstance(item, dict):
            item = item.get("type")
        if not isinstance(item, str):
            raise Unroutable(Reason.INVALID_VIOLATIONS, "a violation is neither text nor an object with a text `type`")


def classify(event: Event, rules: RoutingRules) -> Classification:
    """Return what a valid event is; the first match wins, and an absent score counts as 1."""
    get = event.get
    if get("violations") and get("constitutional_hash") is not None:
        return _VIOLATION
    if get("event_type") == "policy_evaluation":
        return _EVALUATION
    score = get("compliance_score")
    if score is not None and score < rules.trigger_threshold:
        return _TRIGGER
    if get("source") == "human_review":
        return _FEEDBACK
    return _TRAIL


def is_filtered(event: Event, classification: Classification, rules: RoutingRules) -> bool:
    """Tell whether the event is a routine success, which is dropped; an absent score counts as 0."""
    if classification is not _TRAIL or event.get("status") != "success":
        return False
    score = event.get("compliance_score")
    return score is not None and score > rules.routine_threshold
