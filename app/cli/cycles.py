"""Commands about cycles."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.cli.output import AsJson, complain, emit
from app.settings import load_settings
from app.store import Database, approvals, cycles, progress, switches, teacher_usage
from app.store.cycles import StaleCycle
from app.wiring import open_database
from models.cycle import TERMINAL_STATES, Cycle, CycleState, TriggerType

WATCH_S = 0.5
STAGE_OF = {CycleState.REVISING: "revise", CycleState.TRAINING: "train", CycleState.EVALUATING: "evaluate"}
"""The stage whose progress belongs to a state."""

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
    group.command()(watch)
    group.command()(halt)
    group.command()(resume)
    cli.add_typer(group, name="cycles")


def list_cycles(as_json: AsJson = False) -> None:
    """The latest cycles."""
    with _database().read() as connection:
        found = cycles.list_cycles(connection)
        stopped = switches.halted(connection)
    emit([_row(cycle) for cycle in found], as_json)
    if stopped is not None and not as_json:
        typer.echo(_standing_still(stopped))


def show(cycle_id: CycleId, as_json: AsJson = False) -> None:
    """One cycle: its state, facts, reasons, progress and history."""
    database = _database()
    cycle = _get(database, cycle_id)
    with database.read() as connection:
        shown: dict[str, Any] = cycle.model_dump(mode="json")
        shown["progress"] = progress.get(connection, cycle_id)
        shown["teacher"] = teacher_usage.of_cycle(connection, cycle_id)
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
        stopped = switches.halted(connection)
        if stopped is not None:
            _fail(_standing_still(stopped))
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
    """Approve what the cycle waits for: its present plan, or sending its text to a teacher (`cycles ls` says which)."""
    _decide(cycle_id, by, comment, approved=True)


def reject(cycle_id: CycleId, by: Person, comment: Comment = "") -> None:
    """Reject what the cycle waits for."""
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


def watch(cycle_id: CycleId) -> None:
    """Follow a cycle to its end: a bar for the stage at work, a line for each change of state."""
    database = _database()
    seen = _get(database, cycle_id)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(seen.state.value, total=None, detail="")
        while seen.state not in TERMINAL_STATES:
            with database.read() as connection:
                at_work = progress.get(connection, cycle_id) or {}
            mine = at_work if at_work.get("stage") == STAGE_OF.get(seen.state) else {}
            detail = ", ".join(f"{name} {value}" for name, value in (mine.get("detail") or {}).items())
            bars.update(bar, description=seen.state.value, total=mine.get("total"), completed=mine.get("done", 0),
                        detail=detail)  # fmt: skip
            time.sleep(WATCH_S)
            now = _get(database, cycle_id)
            if now.state is not seen.state:
                console.print(f"{now.updated_at}  {seen.state.value} -> {now.state.value}")
            seen = now
    emit(_row(seen), as_json=False)


def halt(by: Annotated[str, typer.Option("--by", help="Who stops them.")], comment: Comment = "") -> None:
    """Stop all cycles at once: none opens, none goes on, jobs at work end at their last checkpoint."""
    try:
        with _database().write() as connection:
            switches.halt(connection, changed_by=by, comment=comment)
    except switches.ChangeRefused as refusal:
        _fail(str(refusal))
    typer.echo("all cycles stand still; `flywheel cycles resume` lets them go on")


def resume(by: Annotated[str, typer.Option("--by", help="Who lets them go on.")], comment: Comment = "") -> None:
    """Let cycles go on, once the audit engine has been told."""
    try:
        with _database().write() as connection:
            switches.resume(connection, changed_by=by, comment=comment)
    except switches.ChangeRefused as refusal:
        _fail(str(refusal))
    typer.echo("cycles go on as soon as the audit engine knows")


def _decide(cycle_id: str, by: str, comment: str, *, approved: bool) -> None:
    database = _database()
    cycle = _get(database, cycle_id)
    hours = load_settings().gate.approval_hours
    try:
        with database.write() as connection:
            approvals.decide(connection, cycle, reviewer=by, approved=approved, comment=comment, valid_hours=hours)
    except approvals.ApprovalRefused as refusal:
        _fail(str(refusal))
    what = "sending the text to a teacher" if cycle.facts.get("teacher", {}).get("awaits") else "the plan"
    typer.echo(f"{by} {'approved' if approved else 'rejected'} {what} of cycle {cycle_id}")


def _standing_still(stopped: switches.Revision) -> str:
    if stopped.value is None:
        return f"all cycles stand still until the audit engine knows that {stopped.changed_by} lets them go on"
    why = f" ({stopped.comment})" if stopped.comment else ""
    return f"all cycles stand still: {stopped.changed_by} stopped them at {stopped.changed_at}{why}"


def _row(cycle: Cycle) -> dict[str, Any]:
    return {
        "cycle": cycle.cycle_id,
        "model": cycle.model_id,
        "domain": cycle.domain,
        "state": cycle.state.value,
        "trigger": cycle.trigger_type.value,
        "updated": cycle.updated_at,
        "reasons": "; ".join(reason["message"] for reason in cycle.reasons) or _waits_for(cycle),
    }


def _waits_for(cycle: Cycle) -> str:
    if cycle.state is not CycleState.AWAITING_APPROVAL:
        return ""
    teacher = cycle.facts.get("teacher", {})
    if teacher.get("awaits"):
        return f"waits for approval to send its text to {teacher['model']} at {teacher['endpoint']}"
    return "waits for approval of its plan"


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
    complain(message)
    raise typer.Exit(1)
