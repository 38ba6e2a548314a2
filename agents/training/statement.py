"""The privacy statement of an adapter, written from the ledger and the cycle's rows."""

from __future__ import annotations

from agents.training.config import CycleConfig
from agents.training.ml.accounting import Phase, privacy_spent
from app.store import Database, cycles, ledger
from models.cycle import Cycle
from models.privacy import PrivacyStatement

NOT_COVERED = (
    "that and when the cycle opened, and what opened it",
    "the number of examples, of exclusions by reason, and the sample rate and steps that follow from them",
    "evaluation figures on held-out event data, and the promotion decision made from them",
    "text that an operator allowed to be sent to an outside teacher (none in this cycle)",
)


def privacy_statement(
    config: CycleConfig, database: Database, cycle: Cycle, n_units: int, n_public: int
) -> PrivacyStatement:
    """What may be said of the adapter of `cycle` once its steps have run."""
    if cycle.plan is None:
        raise ValueError(f"cycle {cycle.cycle_id} has no plan: nothing can be stated")
    with database.read() as connection:
        history = ledger.phases(connection, cycle.domain)
        own_steps = ledger.steps_of(connection, cycle.cycle_id)
        members = cycles.get_manifest(connection, cycle.cycle_id).members
    spent = privacy_spent([Phase(*phase) for phase in history], cycle.plan.delta)
    subjects = any(member.unit != member.example_id for member in members)
    return PrivacyStatement(
        domain=cycle.domain,
        cohort=0,
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
        non_private=config.privacy.fixed_seed is not None,
        not_covered=NOT_COVERED,
    )
