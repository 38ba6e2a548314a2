"""The privacy statement of an adapter, written from the ledger and the cycle's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.training.config import CycleConfig
from agents.training.ml.accounting import Phase, privacy_spent
from app.store import Database, cycles, ledger, teacher_usage
from models.cycle import Cycle
from models.privacy import PrivacyStatement

NOT_COVERED = (
    "that and when the cycle opened, and what opened it",
    "the number of examples, of exclusions by reason, and the sample rate and steps that follow from them",
    "evaluation figures on held-out event data, and the promotion decision made from them",
)


def _sent_out(usage: Sequence[Mapping[str, Any]]) -> str:
    told = [f"{row['requests']} requests to {row['model']} at {row['endpoint']}" for row in usage]
    return f"text that was sent to an outside teacher with a reviewer's approval ({', '.join(told) or 'none'})"


def privacy_statement(
    config: CycleConfig, database: Database, cycle: Cycle, n_units: int, n_public: int, *, marked_non_private: bool
) -> PrivacyStatement:
    """What may be said of the adapter of `cycle` once its steps have run.

    `marked_non_private`: its last checkpoint's mark, for the seed may have been set for some steps only.
    """
    if cycle.plan is None:
        raise ValueError(f"cycle {cycle.cycle_id} has no plan: nothing can be stated")
    with database.read() as connection:
        manifest = cycles.get_manifest(connection, cycle.cycle_id)
        history = ledger.phases(connection, cycle.domain, manifest.cohort)
        own_steps = ledger.steps_of(connection, cycle.cycle_id)
        teachers = teacher_usage.of_cycle(connection, cycle.cycle_id)
    spent = privacy_spent([Phase(*phase) for phase in history], cycle.plan.delta)
    subjects = any(member.unit != member.example_id for member in manifest.members)
    return PrivacyStatement(
        domain=cycle.domain,
        cohort=manifest.cohort,
        cycle_id=cycle.cycle_id,
        model_id=cycle.model_id,
        unit="subject, with one example each; a record without subject is its own unit" if subjects else "example",
        n_units=n_units,
        n_public=n_public,
        sampling="Poisson",
        sample_rate=cycle.plan.sample_rate,
        steps=own_steps,
        noise_multiplier=history[-1][0] if history else 0.0,
        max_grad_norm=cycle.plan.max_grad_norm,
        epsilon=spent.epsilon,
        delta=cycle.plan.delta,
        budget=config.privacy.epsilon,
        accountant=spent.mechanism.upper(),
        non_private=marked_non_private or config.privacy.fixed_seed is not None,
        not_covered=(*NOT_COVERED, _sent_out(teachers)),
    )
