"""Commands about the privacy budget of a data domain."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.training import planning
from app.cli.output import AsJson, emit
from app.cli.values import MOST_NUMBER, fail
from app.settings import Settings, load_settings
from app.store import Database, cohorts, examples, ledger
from app.wiring import cycle_config, open_database, public_training
from policies.constitution import load_constitution

Domain = Annotated[str, typer.Option(help="The data domain.")]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The privacy ledger.")
    group.command()(show)
    group.command()(plan)
    group.command()(cohort)
    cli.add_typer(group, name="privacy")


def show(domain: Domain = "default", as_json: AsJson = False) -> None:
    """What the present cohort of a data domain has spent, and what is left."""
    from agents.training.ml.accounting import Phase, privacy_spent

    settings = load_settings()
    with _database(settings).read() as connection:
        now = cohorts.current(connection, domain)
        phases = ledger.phases(connection, domain, now)
        trained = ledger.trained_cycles(connection, domain, now)
        opened = cohorts.history(connection, domain)
    budget = settings.privacy.epsilon
    spent = privacy_spent([Phase(*phase) for phase in phases], settings.privacy.delta)
    emit(
        {
            "domain": domain,
            "cohort": now,
            "epsilon": spent.epsilon,
            "delta": spent.delta,
            "remaining_budget": max(0.0, budget - spent.epsilon),
            "budget": budget,
            "accountant": spent.mechanism,
            "cycles": trained,
            "cycles_left": max(0, len(settings.privacy.cycle_targets) - len(trained)),
            "warning": planning.budget_warning(spent.epsilon, budget),
            "cohorts_opened": opened,
        },
        as_json,
    )


def plan(
    model: Annotated[str, typer.Argument(help="The model_id of its events.")],
    domain: Domain = "default",
    n_examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, max=MOST_NUMBER, help="Train on so many, instead of those that wait."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What the next cycle would do and cost. Nothing is changed; examples that revision leaves out make it smaller."""
    from agents.training.ml.accounting import BudgetExhaustedError

    settings = load_settings()
    config = cycle_config(settings)
    with _database(settings).read() as connection:
        now = cohorts.current(connection, domain)
        phases = ledger.phases(connection, domain, now)
        trained = ledger.trained_cycles(connection, domain, now)
        waiting = examples.waiting(connection, model, domain)
        earlier = cohorts.units_of_earlier(connection, domain)
    units = {example.subject_token or example.example_id for example in waiting} - earlier
    n_private = len(units) if n_examples is None else n_examples
    if not n_private:
        fail(f"no example of {model!r} waits in domain {domain!r}: say for how many to plan, --examples N")
    available = public_training(settings, load_constitution(settings.constitution.path))
    n_public = min(available, round(n_private * config.benign_ratio))
    try:
        target = planning.epsilon_target(config, len(trained))
        planned = planning.make_plan(config, n_private, n_public, target)
        cost = planning.cost_of(planned, phases)
    except (planning.BudgetUsedUp, BudgetExhaustedError) as refusal:
        fail(f"{refusal} (flywheel privacy cohort)")
    emit(
        {
            "model": model,
            "domain": domain,
            "cohort": now,
            "waiting_units": len(units),
            "examples": n_private,
            "public": n_public,
            "sample_rate": planned.sample_rate,
            "steps": planned.steps,
            "noise_multiplier": cost.noise_multiplier,
            "epsilon_before": cost.epsilon_spent,
            "epsilon_after": cost.epsilon_after,
            "epsilon_target": target,
            "budget": settings.privacy.epsilon,
            "warning": planning.budget_warning(cost.epsilon_after, settings.privacy.epsilon),
        },
        as_json,
    )


def cohort(
    domain: Annotated[str, typer.Option(help="The data domain whose budget is used up.")],
    by: Annotated[str, typer.Option("--by", help="Who opens it.")],
    comment: Annotated[str, typer.Option(help="Why; kept with it, and in the audit log.")],
    as_json: AsJson = False,
) -> None:
    """Open a data domain's next cohort: a whole budget, for subjects that none of its cycles has trained on."""
    try:
        with _database(load_settings()).write() as connection:
            opened = cohorts.open_next(connection, domain, opened_by=by, comment=comment)
            kept_out = len(cohorts.units_of_earlier(connection, domain))
    except cohorts.CohortRefused as refusal:
        fail(str(refusal))
    emit({"domain": domain, "cohort": opened, "subjects_kept_out": kept_out}, as_json)


def _database(settings: Settings) -> Database:
    return open_database(settings, timeout_s=10.0)
