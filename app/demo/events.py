"""From the assistant's answers and the policy engine's verdicts to the audit events that an application would send."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.demo.prompts import DemoPrompt
from app.store.database import utc_now
from models.evaluation_api import Evaluation

MODEL_ID = "assistant-demo"
REPEATED_SHARE = 10
"""One event in so many is told twice, as a producer that retries does."""
SHARED_SUBJECTS = 20
"""One prompt in so many comes from a person who has asked before."""


@dataclass(frozen=True, slots=True)
class DemoEvents:
    """Everything that is sent. `expected_dead_letters` are sent broken on purpose."""

    events: list[dict[str, Any]]
    expected_dead_letters: int


def make_events(
    run_id: str,
    prompts: Sequence[DemoPrompt],
    answers: Sequence[str],
    verdicts: Sequence[Evaluation],
    constitutional_hash: str,
) -> DemoEvents:
    """Two events an answer (the call, the evaluation), some told twice, some reviews, three that cannot be read."""
    calls, evaluations = [], []
    for number, (prompt, answer, verdict) in enumerate(zip(prompts, answers, verdicts, strict=True)):
        calls.append(_call(run_id, number, prompt, answer, verdict, constitutional_hash))
        evaluations.append(_evaluation(run_id, prompt, verdict, constitutional_hash))
    repeated = calls[::REPEATED_SHARE]
    reviews = [_review(run_id, call) for call in calls if call["violations"]][:8]
    return DemoEvents(
        calls + evaluations + repeated + reviews + _broken(run_id, constitutional_hash),
        expected_dead_letters=3,
    )


def _call(
    run_id: str,
    number: int,
    prompt: DemoPrompt,
    answer: str,
    verdict: Evaluation,
    constitutional_hash: str,
) -> dict[str, Any]:
    person = number - 1 if number % SHARED_SUBJECTS == 1 else number
    return {
        "event_id": f"{run_id}-{prompt.id}",
        "event_type": "model_inference",
        "timestamp": utc_now(),
        "trace_id": hashlib.sha256(f"{run_id}{prompt.id}".encode()).hexdigest()[:32],
        "model_id": MODEL_ID,
        "workload_id": prompt.principle,
        "risk_level": "low",
        "subject_id": f"person-{person}@example.org",
        "prompt": prompt.prompt,
        "response": answer,
        "constitutional_hash": constitutional_hash,
        "compliance_score": verdict.confidence_score,
        "violations": list(verdict.violations),
        "status": "success" if verdict.allow else "violation",
        "decision_id": verdict.decision_id,
    }


def _evaluation(run_id: str, prompt: DemoPrompt, verdict: Evaluation, constitutional_hash: str) -> dict[str, Any]:
    return {
        "event_id": f"{run_id}-{prompt.id}-evaluation",
        "event_type": "policy_evaluation",
        "timestamp": utc_now(),
        "trace_id": hashlib.sha256(f"{run_id}{prompt.id}".encode()).hexdigest()[:32],
        "model_id": MODEL_ID,
        "constitutional_hash": constitutional_hash,
        "compliance_score": verdict.confidence_score,
        "allow": verdict.allow,
        "decision_id": verdict.decision_id,
    }


def _review(run_id: str, call: dict[str, Any]) -> dict[str, Any]:
    return {
        "event_id": f"{call['event_id']}-review",
        "event_type": "review",
        "timestamp": utc_now(),
        "source": "human_review",
        "target_event_id": call["event_id"],
        "verdict": "reject",
        "reviewer_id": f"reviewer-{run_id}",
    }


def _broken(run_id: str, constitutional_hash: str) -> list[dict[str, Any]]:
    common = {"model_id": MODEL_ID, "constitutional_hash": constitutional_hash, "timestamp": utc_now()}
    return [
        {**common, "event_id": f"{run_id}-broken-1", "compliance_score": "high"},
        {**common, "event_id": f"{run_id}-broken-2", "violations": 7},
        {**common, "event_id": f"{run_id}-broken-3", "compliance_score": 1.7},
    ]
