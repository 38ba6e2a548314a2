"""Commands about cycles and the privacy budget."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli.output import AsJson, emit
from app.settings import load_settings
from app.store import Database, approvals, cycles, ledger, progress
from app.store.cycles import StaleCycle
from app.wiring import open_database
from models.cycle import TERMINAL_STATES, Cycle, CycleState, TriggerType

CycleId = Annotated[str, typer.Argument(help="The cycle's id, as `flywheel cycles ls` shows it.")]
Person = Annotated[str, typer.Option("--by", help="Who decides; cannot be who requested the cycle.")]
Comment = Annotated[str, typer.Option(help="Why; kept with the decision.")]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Optimization cycles.")
    group.command("ls")(list_cycles)
    group.command()(show)
    group.command()(trigger)
    group.command()(approve)
    group.command()(reject)
    group.command()(cancel)
    cli.add_typer(group, name="cycles")
    privacy = typer.Typer(no_args_is_help=True, help="The privacy ledger.")
    privacy.command("show")(show_privacy)
    cli.add_typer(privacy, name="privacy")


def list_cycles(as_json: AsJson = False) -> None:
    """The latest cycles."""
    with _database().read() as connection:
        found = cycles.list_cycles(connection)
    emit([_row(cycle) for cycle in found], as_json)


def show(cycle_id: CycleId, as_json: AsJson = False) -> None:
    """One cycle: its state, facts, reasons, progress and history."""
    database = _database()
    cycle = _get(database, cycle_id)
    with database.read() as connection:
        shown: dict[str, Any] = cycle.model_dump(mode="json")
        shown["progress"] = progress.get(connection, cycle_id)
        shown["history"] = cycles.history(connection, cycle_id)
    emit(shown, as_json)


def trigger(
    model: Annotated[str, typer.Argument(help="The model_id of its events.")],
    by: Annotated[str, typer.Option("--by", help="Who asks for it.")],
    domain: str = "default",
    as_json: AsJson = False,
) -> None:
    """Open a cycle by hand."""
    with _database().write() as connection:
        cycle = cycles.open_cycle(
            connection,
            model_id=model,
            domain=domain,
            trigger_type=TriggerType.MANUAL,
            requested_by=by,
            facts={},
        )
    if cycle is None:
        _fail(f"{model} has an open cycle already: see `flywheel cycles ls`")
        return
    emit(_row(cycle), as_json)


def approve(cycle_id: CycleId, by: Person, comment: Comment = "") -> None:
    """Approve the cycle's present plan."""
    _decide(cycle_id, by, comment, approved=True)


def reject(cycle_id: CycleId, by: Person, comment: Comment = "") -> None:
    """Reject the cycle's present plan."""
    _decide(cycle_id, by, comment, approved=False)


def cancel(cycle_id: CycleId, by: Annotated[str, typer.Option("--by", help="Who cancels it.")]) -> None:
    """Cancel a cycle; what it has spent of the budget stays spent."""
    database = _database()
    while True:
        cycle = _get(database, cycle_id)
        if cycle.state in TERMINAL_STATES:
            _fail(f"cycle {cycle_id} is {cycle.state} already")
        try:
            with database.write() as connection:
                cycles.transition(connection, cycle, CycleState.CANCELLED, {"cancelled_by": by})
        except StaleCycle:
            continue
        typer.echo(f"cycle {cycle_id} is cancelled")
        return


def show_privacy(domain: str = "default", as_json: AsJson = False) -> None:
    """What a data domain has spent, and what is left."""
    from agents.training.ml.accounting import Phase, privacy_spent

    settings = load_settings()
    with _database().read() as connection:
        phases = ledger.phases(connection, domain)
        trained = ledger.trained_cycles(connection, domain)
    spent = privacy_spent([Phase(*phase) for phase in phases], settings.privacy.delta)
    emit(
        {
            "domain": domain,
            "epsilon": spent.epsilon,
            "delta": spent.delta,
            "remaining_budget": max(0.0, settings.privacy.epsilon - spent.epsilon),
            "accountant": spent.mechanism,
            "cycles": trained,
        },
        as_json,
    )


def _decide(cycle_id: str, by: str, comment: str, *, approved: bool) -> None:
    database = _database()
    cycle = _get(database, cycle_id)
    hours = load_settings().gate.approval_hours
    try:
        with database.write() as connection:
            approvals.decide(connection, cycle, reviewer=by, approved=approved, comment=comment, valid_hours=hours)
    except approvals.ApprovalRefused as refusal:
        _fail(str(refusal))
    typer.echo(f"{by} {'approved' if approved else 'rejected'} the plan of cycle {cycle_id}")


def _row(cycle: Cycle) -> dict[str, Any]:
    return {
        "cycle": cycle.cycle_id,
        "model": cycle.model_id,
        "domain": cycle.domain,
        "state": cycle.state.value,
        "trigger": cycle.trigger_type.value,
        "updated": cycle.updated_at,
        "reasons": "; ".join(reason["message"] for reason in cycle.reasons),
    }


def _database() -> Database:
    return open_database(load_settings(), timeout_s=10.0)


def _get(database: Database, cycle_id: str) -> Cycle:
    with database.read() as connection:
        cycle = cycles.get(connection, cycle_id)
    if cycle is None:
        _fail(f"there is no cycle {cycle_id!r}: see `flywheel cycles ls`")
        raise typer.Exit(1)
    return cycle


def _fail(message: str) -> None:
    typer.echo(f"flywheel: {message}", err=True)
    raise typer.Exit(1)
