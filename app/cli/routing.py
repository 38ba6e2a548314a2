"""Commands about live settings: what of the routing is changed while it runs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, NoReturn

import typer

from agents.routing import live
from agents.routing.live import CATALOGUE, LiveSettingError
from app.cli.output import AsJson, complain, emit
from app.cli.values import MOST_ROWS
from app.live import Document, configured_values, read_copy
from app.settings import load_settings
from app.store import Database, live_settings
from app.store.live_settings import ChangeRefused, Revision
from app.wiring import open_database

SettingName = Annotated[str, typer.Argument(help="A live setting, as `flywheel routing ls` shows it.")]
Person = Annotated[str, typer.Option("--by", help="Who changes it; kept in the audit log.")]
Comment = Annotated[str, typer.Option(help="Why; kept with the change.")]

CONFIGURED = "as configured"
IN_FORCE = "in force"
WAITS_FOR_AUDIT = "waits for the audit engine"
WAITS_FOR_COPY = "waits for the monitoring agent"
UNKNOWN = "audited; Redis holds no copy or does not answer"


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Live settings of the routing.")
    group.command("ls")(list_settings)
    # A value may begin with a minus, if only to be refused by its bounds.
    group.command("set", context_settings={"ignore_unknown_options": True})(set_value)
    group.command("unset")(unset)
    group.command("history")(show_history)
    cli.add_typer(group, name="routing")


def list_settings(as_json: AsJson = False) -> None:
    """Every live setting: value in force, configured value, who changed it last, whether that has taken effect."""
    settings = load_settings()
    with _database().read() as connection:
        changes = live_settings.current(connection)
        audited = live_settings.audited(connection)
    copy = asyncio.run(read_copy(settings))
    # Routers that have lost sight of the copy keep what they had, and that was audited.
    values = audited.values if copy is None else copy.values
    configured = configured_values(settings)
    rows = []
    for name, setting in CATALOGUE.items():
        change, default = changes.get(name), setting.read(configured)
        row = {
            "name": name,
            "value": values.get(name, default),
            "configured": default,
            "set": None if change is None else change.value,
            "by": None if change is None else change.changed_by,
            "at": None if change is None else change.changed_at,
            "revision": None if change is None else change.revision,
            "effect": _effect(change, copy),
            "bounds": setting.kind.bounds,
            "meaning": setting.meaning,
        }
        rows.append(row)
    emit(rows if as_json else [_brief(row) for row in rows], as_json)


def set_value(
    name: SettingName,
    value: Annotated[str, typer.Argument(help="The new value.")],
    by: Person,
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Change a live setting; the routers apply it within seconds of the audit engine's having the change."""
    try:
        parsed = live.parse(name, value)
    except LiveSettingError as refusal:
        _fail(refusal, 2)
    _change(name, parsed, by, comment, as_json)


def unset(name: SettingName, by: Person, comment: Comment = "", as_json: AsJson = False) -> None:
    """Give a live setting back to the configuration."""
    try:
        live.find(name)
    except LiveSettingError as refusal:
        _fail(refusal, 2)
    _change(name, None, by, comment, as_json)


def show_history(
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="How many changes at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """The latest changes, newest first."""
    with _database().read() as connection:
        found = live_settings.history(connection, limit)
    emit([_row(change) for change in found], as_json)


def _change(name: str, value: Any, by: str, comment: str, as_json: bool) -> None:
    try:
        with _database().write() as connection:
            change = live_settings.change(connection, name, value, changed_by=by, comment=comment)
    except ChangeRefused as refusal:
        _fail(refusal, 1)
    if as_json:
        emit(_row(change), as_json)
        return
    done = f"{name} is given back to the configuration" if value is None else f"{name} is set to {value}"
    typer.echo(f"{done} by revision {change.revision}, which takes effect once it is in the audit log")


def _row(change: Revision) -> dict[str, Any]:
    return {
        "revision": change.revision,
        "name": change.name,
        "value": change.value,
        "by": change.changed_by,
        "at": change.changed_at,
        "comment": change.comment,
        "audited": change.audited,
    }


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """A setting as a table has room for it."""
    brief = {name: row[name] for name in ("name", "value", "configured")}
    if row["revision"] is None:
        return brief | {"last change": "", "effect": row["effect"]}
    value = "unset" if row["set"] is None else row["set"]
    return brief | {
        "last change": f"{value} by {row['by']}, {row['at'][:19]}Z, revision {row['revision']}",
        "effect": row["effect"],
    }


def _effect(change: Revision | None, copy: Document | None) -> str:
    """How far the newest change of a setting has come."""
    if change is None:
        return CONFIGURED
    if not change.audited:
        return WAITS_FOR_AUDIT
    if copy is None:
        return UNKNOWN
    return IN_FORCE if copy.revision >= change.revision else WAITS_FOR_COPY


def _database() -> Database:
    return open_database(load_settings(), timeout_s=10.0)


def _fail(refusal: Exception, status: int) -> NoReturn:
    complain(str(refusal))
    raise typer.Exit(status)
