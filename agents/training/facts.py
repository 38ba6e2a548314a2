"""The measured facts that the gate decides from: each value comes from a row, a probe or a count, none from a claim."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from agents.training.config import CycleConfig, TeacherConfig
from models.cycle import Cycle, TrainingPlan


@dataclass(frozen=True, slots=True)
class Watchers:
    """Whether those who watch a cycle answered just now."""

    policy_engine: bool
    audit_engine: bool


def approval_facts(cycle: Cycle, decision: sa.Row[Any] | None, digest: str) -> dict[str, Any]:
    """Who asked, who decided, on what; an expired decision counts as none."""
    facts: dict[str, Any] = {"requested_by": cycle.requested_by, "plan_digest": digest}
    if decision is None or is_expired(decision):
        return facts | {"human_reviewer_assigned": False, "approved": False}
    return facts | {
        "human_reviewer_assigned": True,
        "approved": bool(decision.approved),
        "approved_by": decision.reviewer,
        "approved_plan_digest": decision.plan_digest,
    }


def is_expired(decision: sa.Row[Any]) -> bool:
    """Whether a reviewer's decision is too old to count."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return str(decision.expires_at) <= now


def fine_tuning_facts(
    config: CycleConfig,
    plan: TrainingPlan,
    *,
    epsilon_after: float,
    n_examples: int,
    pii_found: int,
    rounds: int,
    approved_models: frozenset[str],
    watchers: Watchers,
    approval: dict[str, Any],
    teacher_used: bool,
) -> dict[str, Any]:
    """Facts of `model_fine_tuning`. `epsilon_after` is the domain's cumulative epsilon once the plan has run."""
    return {
        "model": {
            "constitutional_hash": config.constitutional_hash,
            "base_model": plan.base_model,
            "base_model_approved": plan.base_model in approved_models,
            "risk_level": config.student.risk_level,
        },
        "training": {
            "differential_privacy_enabled": config.privacy.fixed_seed is None,
            "epsilon": epsilon_after,
            "delta": plan.delta,
            "constitutional_constraints_enabled": rounds >= 1,
            "critique_revision_cycles": rounds,
            "compliance_threshold": config.compliance_threshold,
        },
        "data": {"pii_scrubbed": pii_found == 0, "n_examples": n_examples},
        "audit": _audit(config, watchers),
        "monitoring": {"constitutional_compliance": watchers.policy_engine},
        "approval": approval,
        "teacher": {"used": teacher_used},
    }


def teacher_export_facts(
    config: CycleConfig, teacher: TeacherConfig, pii_found: int, watchers: Watchers, approval: dict[str, Any]
) -> dict[str, Any]:
    """Facts of `teacher_export`: which text is about to be sent where. A teacher is configured only if opted into."""
    return {
        "model": {"constitutional_hash": config.constitutional_hash},
        "teacher": {"opted_in": config.teacher is not None, "endpoint": teacher.url, "model": teacher.model},
        "data": {"pii_scrubbed": pii_found == 0},
        "audit": _audit(config, watchers),
        "approval": approval,
    }


def promotion_facts(
    config: CycleConfig,
    evaluation: dict[str, Any],
    statement: dict[str, Any],
    watchers: Watchers,
    approval: dict[str, Any],
    teacher_used: bool,
) -> dict[str, Any]:
    """Facts of `model_promotion` from the evaluation's figures and the privacy statement."""
    return {
        "model": {"constitutional_hash": config.constitutional_hash, "risk_level": config.student.risk_level},
        "evaluation": {
            "adherence": evaluation["adherence"]["candidate"],
            "adherence_lower": evaluation["adherence"]["interval"]["candidate"][0],
            "over_refusal": evaluation["over_refusal"]["candidate"],
            "held_out_loss_ratio": evaluation["held_out_loss"]["ratio"],
            "n_harmful": evaluation["adherence"]["n"],
            "n_benign": evaluation["over_refusal"]["n"],
            "reloaded_from_disk": evaluation["reloaded_from_disk"],
            "second_evaluator_reported": bool(evaluation["second_evaluator"]),
        },
        "privacy": {
            "epsilon": statement["epsilon"],
            "delta": statement["delta"],
            "non_private": statement["non_private"],
        },
        "audit": _audit(config, watchers),
        "approval": approval,
        "teacher": {"used": teacher_used},
    }


def spoken_for(cycle: Cycle, person: str) -> dict[str, Any]:
    """Approval facts of a version that a named person promotes: by that they approve of its cycle's plan."""
    digest = cycle.plan_digest or ""
    return {
        "requested_by": cycle.requested_by,
        "plan_digest": digest,
        "human_reviewer_assigned": True,
        "approved": True,
        "approved_by": person,
        "approved_plan_digest": digest,
    }


def rollback_facts(config: CycleConfig, rollback: dict[str, Any], watchers: Watchers) -> dict[str, Any]:
    """Facts of `model_rollback`. `rollback`: trigger, grounds and target, as the policies name them."""
    return {
        "model": {"constitutional_hash": config.constitutional_hash},
        "rollback": rollback,
        "audit": _audit(config, watchers),
    }


def _audit(config: CycleConfig, watchers: Watchers) -> dict[str, Any]:
    return {
        "enabled": watchers.audit_engine,
        "trail_enabled": watchers.audit_engine,
        "constitutional_hash": config.constitutional_hash,
        "retention_period": config.audit_retention_days,
    }
