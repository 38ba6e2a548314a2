"""Commands about users: what the gate permits them, where its data comes from SQL."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer

from app.cli.output import AsJson, complain, emit
from app.cli.values import MOST_ROWS
from app.settings import load_settings
from app.store import Database, permissions, usage
from app.store.permissions import ChangeRefused, Revision
from app.wiring import open_database
from policies.gate.bundle import load_bundle

UserId = Annotated[str, typer.Argument(help="The user's id, as `user.id` has it in the gate's facts.")]
Person = Annotated[str, typer.Option("--by", help="Who changes it; kept in the audit log.")]
Comment = Annotated[str, typer.Option(help="Why; kept with the change.")]

IN_FORCE = "in force"
WAITS_FOR_AUDIT = "waits for the audit engine"


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What users may use (gate.data = sql).")
    group.command("ls")(list_users)
    group.command("grant")(grant)
    group.command("revoke")(revoke)
    group.command("history")(show_history)
    cli.add_typer(group, name="users")


def list_users(as_json: AsJson = False) -> None:
    """Who may use what, and what was used of it this month."""
    with _database().read() as connection:
        changes = permissions.current(connection)
        granted = permissions.audited(connection).values
        used = usage.hours_this_month(connection)
    rows = []
    for user in sorted({*granted, *(name for name, change in changes.items() if not change.audited)}):
        change = changes[user]
        rows.append(
            {
                "user": user,
                **granted.get(user, {"gpu_hours_monthly": None, "max_risk_level": None}),
                "gpu_hours_used": used.get(user, 0.0),
                "by": change.changed_by,
                "at": change.changed_at,
                "change": _effect(change),
            }
        )
    emit(rows, as_json)


def grant(
    user: UserId,
    by: Person,
    gpu_hours: Annotated[float, typer.Option(help="GPU hours a calendar month (UTC).")],
    max_risk: Annotated[str, typer.Option(help="The highest risk level of a model that the user may use.")],
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Permit a user so much; counts once the audit engine has the change."""
    levels = list(load_bundle().data["risk_levels"])
    with _database().write() as connection:
        try:
            change = permissions.grant(
                connection,
                user,
                gpu_hours_monthly=gpu_hours,
                max_risk_level=max_risk,
                risk_levels=levels,
                changed_by=by,
                comment=comment,
            )
        except ChangeRefused as refusal:
            _refuse(refusal)
    emit(_row(change), as_json)


def revoke(user: UserId, by: Person, comment: Comment = "", as_json: AsJson = False) -> None:
    """Permit a user nothing any more; counts once the audit engine has the change."""
    with _database().write() as connection:
        try:
            change = permissions.revoke(connection, user, changed_by=by, comment=comment)
        except ChangeRefused as refusal:
            _refuse(refusal)
    emit(_row(change), as_json)


def show_history(limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS)] = 100, as_json: AsJson = False) -> None:
    """The latest changes, newest first."""
    with _database().read() as connection:
        found = permissions.history(connection, limit)
    emit([_row(change) for change in found], as_json)


def _row(change: Revision) -> dict[str, Any]:
    return {
        "revision": change.revision,
        "user": change.name,
        "value": change.value,
        "by": change.changed_by,
        "at": change.changed_at,
        "comment": change.comment,
        "change": _effect(change),
    }


def _effect(change: Revision) -> str:
    return IN_FORCE if change.audited else WAITS_FOR_AUDIT


def _refuse(refusal: ChangeRefused) -> NoReturn:
    complain(str(refusal))
    raise typer.Exit(2)


def _database() -> Database:
    return open_database(load_settings())
