"""Decisions cannot contradict themselves; the breaker in front of a failing engine lets one trial through."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.decision import GateDecision, GateReason
from policies.gate.breaker import CircuitBreaker


def test_breaker_lets_one_trial_through() -> None:
    now = 0.0
    breaker = CircuitBreaker(2, 10.0, lambda: now)
    assert breaker.admit()
    breaker.failed()
    assert breaker.admit()
    breaker.succeeded()
    breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    assert not breaker.admit()
    now = 10.0
    assert breaker.admit()
    assert not breaker.admit()
    breaker.failed()
    assert not breaker.admit()
    now = 20.0
    assert breaker.admit()
    breaker.succeeded()
    assert breaker.admit()
    assert not breaker.is_open


def test_breaker_settings_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="threshold >= 1"):
        CircuitBreaker(0, 1.0)


def decision(**changes: Any) -> GateDecision:
    fields: dict[str, Any] = {
        "action": "model_fine_tuning",
        "allow": False,
        "conclusive": True,
        "reasons": (GateReason(code="approval_granted", message="Not yet."),),
        "lane": "slow",
        "bundle_revision": "b",
        "data_revision": "d",
        "engine": "regopy",
    }
    return GateDecision(**(fields | changes))


def test_only_approval_missing_means_needs_approval() -> None:
    other = GateReason(code="pii_scrubbed", message="No.")
    approval = GateReason(code="approval_current", message="Stale.")
    assert decision().needs_approval
    assert decision(reasons=(approval, approval)).needs_approval
    assert not decision(reasons=(approval, other)).needs_approval
    assert not decision(conclusive=False).needs_approval
    assert not decision(allow=True, reasons=()).needs_approval


@pytest.mark.parametrize(
    "changes",
    [
        {"allow": True},
        {"reasons": ()},
        {"allow": True, "reasons": (), "conclusive": False},
        {"data_revision": None},
        {"human_review_required": True, "lane": "fast"},
        {"human_review_required": True, "conclusive": False},
    ],
)
def test_contradictory_decisions_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        decision(**changes)


def test_decisions_survive_json() -> None:
    made = decision(human_review_required=True)
    assert GateDecision.model_validate_json(made.model_dump_json()) == made
