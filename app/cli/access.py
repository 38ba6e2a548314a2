"""Commands about who may use the web: tokens, and people whom a trusted proxy signs in."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer

from app.cli.output import AsJson, complain, emit
from app.cli.values import MOST_ROWS
from app.settings import load_settings
from app.store import Database, access
from app.store.access import ChangeRefused, Revision, UserRole
from app.wiring import open_database

By = Annotated[str, typer.Option("--by", help="Who gives or takes it; kept in the audit log.")]
Comment = Annotated[str, typer.Option(help="Why; kept with the change.")]
Role = Annotated[UserRole, typer.Option(help="viewer: figures; reviewer: also text and decisions; operator: all.")]
Domains = Annotated[
    list[str] | None, typer.Option("--domain", help="A data domain they are limited to; may be repeated. All if none.")
]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Who may use the web (web.access = tokens).")
    group.command("ls")(list_grants)
    group.command("token")(new_token)
    group.command("grant")(grant)
    group.command("revoke")(revoke)
    group.command("history")(show_history)
    cli.add_typer(group, name="access")


def list_grants(as_json: AsJson = False) -> None:
    """Tokens and people, what they may, and until when."""
    with _database().read() as connection:
        newest = access.listing(connection)
        counts = access.in_force(connection)
    rows = []
    for name, change in sorted(newest.items()):
        if change.value is None:
            continue
        known = counts.get(name)
        effect = "waits for the audit engine" if known is None else "expired" if known.is_expired else "in force"
        rows.append(_row(change) | {"effect": effect})
    emit(rows, as_json)


def new_token(
    person: Annotated[str, typer.Option(help="Whose it is: decisions carry this name.")],
    role: Role,
    by: By,
    domain: Domains = None,
    days: Annotated[float, typer.Option(help="How long it holds.")] = 90.0,
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once; it counts as soon as the audit engine has the change."""
    try:
        with _database().write() as connection:
            token, change = access.issue(
                connection,
                person=person,
                role=role,
                domains=domain or [access.EVERY_DOMAIN],
                days=days,
                changed_by=by,
                comment=comment,
            )
    except ChangeRefused as refusal:
        _refuse(refusal)
    emit({"token": token} | _row(change), as_json)


def grant(
    person: Annotated[str, typer.Argument(help="As the proxy's header names them.")],
    role: Role,
    by: By,
    domain: Domains = None,
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Give a person whom a trusted proxy signs in a role (web.proxy_header)."""
    try:
        with _database().write() as connection:
            change = access.permit(
                connection,
                person,
                role=role,
                domains=domain or [access.EVERY_DOMAIN],
                changed_by=by,
                comment=comment,
            )
    except ChangeRefused as refusal:
        _refuse(refusal)
    emit(_row(change), as_json)


def revoke(
    name: Annotated[str, typer.Argument(help="The grant's name, as `flywheel access ls` shows it.")],
    by: By,
    comment: Comment = "",
) -> None:
    """Take a token or a person's role back, at once."""
    try:
        with _database().write() as connection:
            access.take_back(connection, name, changed_by=by, comment=comment)
    except ChangeRefused as refusal:
        _refuse(refusal)
    typer.echo(f"{name} opens nothing any more")


def show_history(limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS)] = 100, as_json: AsJson = False) -> None:
    """The latest changes, newest first."""
    with _database().read() as connection:
        found = access.history(connection, limit)
    emit([_row(change) | {"comment": change.comment, "audited": change.audited} for change in found], as_json)


def _row(change: Revision) -> dict[str, Any]:
    value = change.value or {}
    return {
        "name": change.name,
        "person": value.get("person"),
        "role": value.get("role"),
        "domains": value.get("domains"),
        "expires": value.get("expires_at"),
        "by": change.changed_by,
        "at": change.changed_at,
    }


def _refuse(refusal: ChangeRefused) -> NoReturn:
    complain(str(refusal))
    raise typer.Exit(2)


def _database() -> Database:
    return open_database(load_settings(), timeout_s=10.0)
