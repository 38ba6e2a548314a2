"""What a cycle is about to do: targets, rates and steps from public facts, and what that costs in privacy."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import orjson

from agents.training.config import CycleConfig
from models.cycle import TrainingPlan

WARN_SHARES = (0.95, 0.8)
"""Shares of a domain's budget at which a warning is due, the graver first."""


class BudgetUsedUp(RuntimeError):
    """The domain has had all the cycles its budget allows."""


@dataclass(frozen=True, slots=True)
class PlanCost:
    """Privacy before and after a plan, by the domain's whole ledger."""

    epsilon_spent: float
    epsilon_after: float
    noise_multiplier: float


def epsilon_target(config: CycleConfig, earlier_cycles: int) -> float:
    """The cumulative epsilon a domain may reach with its next cycle; raises `BudgetUsedUp`."""
    targets = config.privacy.cycle_targets
    if earlier_cycles >= len(targets):
        raise BudgetUsedUp(
            f"the domain has trained {earlier_cycles} cycles, as many as privacy.cycle_targets={list(targets)} allows: "
            "open a new cohort of subjects never trained on",
        )
    return targets[earlier_cycles]


def budget_warning(epsilon: float, budget: float) -> str | None:
    """What to say of a domain that has spent `epsilon` of its `budget`; None while that is little."""
    reached = next((limit for limit in WARN_SHARES if epsilon >= limit * budget), None)
    return None if reached is None else f"{epsilon / budget:.0%} of the budget is used, more than {reached:.0%}"


def make_plan(config: CycleConfig, n_private: int, n_public: int, target: float) -> TrainingPlan:
    """Rate and steps from the number of records alone (Poisson sampling; `epochs` expected passes)."""
    total = n_private + n_public
    rate = min(1.0, config.tuning.batch_size / total)
    return TrainingPlan(
        base_model=config.student.base_model,
        lora_rank=config.tuning.lora_rank,
        lora_alpha=config.tuning.lora_alpha,
        lora_dropout=config.tuning.lora_dropout,
        target_modules=config.tuning.target_modules,
        epochs=config.tuning.epochs,
        sample_rate=rate,
        steps=max(1, math.ceil(config.tuning.epochs / rate)),
        learning_rate=config.tuning.learning_rate,
        max_grad_norm=config.privacy.max_grad_norm,
        epsilon_target=target,
        delta=config.privacy.delta,
    )


def plan_digest(plan: TrainingPlan, manifest_digest: str) -> str:
    """SHA-256 over plan and manifest, in hex: what an approval binds to."""
    document = {"manifest": manifest_digest, "plan": plan.model_dump(mode="json")}
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def export_digest(endpoint: str, model: str, manifest_digest: str) -> str:
    """SHA-256 over what is sent to whom, in hex: what an approval of sending text to a teacher binds to."""
    document = {
        "action": "teacher_export",
        "manifest": manifest_digest,
        "teacher": {"endpoint": endpoint, "model": model},
    }
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def cost_of(plan: TrainingPlan, history: list[tuple[float, float, int]], steps: int | None = None) -> PlanCost:
    """Solve the noise for a plan (or for what is left of it) after a domain's history.

    Imports torch (through Opacus' accountant) and takes some tenths of a second: call it in a thread. The last answers
    are kept, for a cycle that waits for its gate asks again and again by the same figures. Raises
    `agents.training.ml.accounting.BudgetExhausted` when nothing fits any more.
    """
    remaining = plan.steps if steps is None else steps
    return _solve(tuple(history), plan.sample_rate, remaining, plan.epsilon_target, plan.delta)


@lru_cache(maxsize=32)
def _solve(
    history: tuple[tuple[float, float, int], ...], sample_rate: float, steps: int, target: float, delta: float
) -> PlanCost:
    from agents.training.ml.accounting import Phase, epsilon_of, solve_noise_multiplier

    phases = [Phase(*phase) for phase in history]
    noise = solve_noise_multiplier(phases, sample_rate, steps, target, delta)
    after = epsilon_of([*phases, Phase(noise, sample_rate, steps)], delta)
    spent = epsilon_of(phases, delta)
    return PlanCost(epsilon_spent=spent, epsilon_after=after, noise_multiplier=noise)
