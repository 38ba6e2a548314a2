"""Commands about models: their versions, who is champion, and how that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from agents.training.adapter import AdapterError, export_version
from agents.training.context import DecisionContext
from agents.training.promotion import Deployed, NotPromotable, NoVerdict, Refused, promote, roll_back
from app.cli.output import AsJson, complain, emit
from app.cli.values import fail, name_of_person, reason_given
from app.deciding import decision_context
from app.settings import Settings, load_settings
from app.store import Database, registry, watch
from app.store.database import plain
from app.store.registry import StaleDeployment
from app.wiring import open_database
from policies.clients.audit_client import AuditClientError
from policies.constitution import ConstitutionError
from policies.gate import BundleError
from policies.gate.live import BundleUnavailable

VersionId = Annotated[str, typer.Argument(help="The version's id, as `flywheel models ls` shows it.")]
ModelId = Annotated[str, typer.Argument(help="The model_id of its events.")]
Person = Annotated[str, typer.Option("--by", help="Who decides.", callback=name_of_person)]
Comment = Annotated[
    str, typer.Option(help="Why; kept with the deployment, and in the audit log.", callback=reason_given)
]


def add(cli: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Model versions, and which one is champion.")
    group.command("ls")(list_versions)
    group.command()(show)
    group.command("promote")(promote_version)
    group.command("rollback")(rollback)
    group.command("export")(export)
    cli.add_typer(group, name="models")


def list_versions(
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None, as_json: AsJson = False
) -> None:
    """Versions, the newest first. `status`: champion, former, rolled_back, candidate, or how its cycle ended."""
    with _database(load_settings()).read() as connection:
        rows = registry.list_versions(connection, model)
        seen = {found.version_id: found for found in watch.champions(connection)}
    shown = []
    for row in rows:
        watched = seen.get(row["version_id"])
        shown.append(
            {
                "version": row["version_id"],
                "model": row["model_id"],
                "status": row["status"],
                "base": row["base_model"],
                "created": row["created_at"],
                "adherence": None if watched is None else round(watched.mean, 4),
                "evaluations": None if watched is None else watched.evaluations,
            }
        )
    emit(shown, as_json)


def show(version_id: VersionId, as_json: AsJson = False) -> None:
    """One version: figures, privacy statement, deployments, and what was seen of it as champion."""
    with _database(load_settings()).read() as connection:
        version = _version(connection, version_id)
        model_id = str(version.model_id)
        (status,) = [
            row["status"]
            for row in registry.list_versions(connection, model_id)
            if row["version_id"] == version.version_id
        ]
        shown = plain(version) | {"status": status}
        shown["deployments"] = [
            row | {"watch": watch.of_deployment(connection, row["seq"])}
            for row in registry.history(connection, model_id)
            if row["version_id"] == version_id
        ]
        target = registry.rollback_target(connection, model_id) if status == "champion" else None
        shown["rollback_goes_to"] = None if target is None else target.name
    emit(shown, as_json)


def promote_version(
    version_id: VersionId,
    by: Person,
    comment: Comment,
    again: Annotated[bool, typer.Option("--again", help="Also a version that was rolled back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, where the gate permits it by its stored evaluation and privacy statement.

    Not by who requested its cycle. Exit status 0: it is champion; 1: it is not, and why; 2: there is no verdict.
    """
    _decide(lambda context: promote(context, version_id, by=by, comment=comment, again=again), as_json)


def rollback(
    model: ModelId,
    by: Person,
    comment: Comment,
    without_verdict: Annotated[
        bool, typer.Option("--without-verdict", help="Also where the gate gives none; the audit log must know first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Return to the champion before, never to a version that was rolled back; without one, to the base model.

    Exit status as that of `promote`.
    """
    _decide(lambda context: roll_back(context, model, by=by, comment=comment, without_verdict=without_verdict), as_json)


def export(
    version_id: VersionId,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is not there yet.")],
    as_json: AsJson = False,
) -> None:
    """Write a version's adapter, privacy statement and evaluation, once the adapter's digest is the registered one."""
    with _database(load_settings()).read() as connection:
        version = _version(connection, version_id)
    try:
        files = export_version(version, directory)
    except AdapterError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{directory} cannot be written ({error.strerror}): name another directory")
    emit({"version": version_id, "written": str(directory), "files": files, "digest": version.digest}, as_json)


def _decide(ask: Callable[[DecisionContext], Coroutine[Any, Any, Deployed]], as_json: bool) -> None:
    settings = load_settings()
    database = _database(settings)

    async def run() -> Deployed:
        async with decision_context(settings, database) as context:
            return await ask(context)

    try:
        done = asyncio.run(run())
    except Refused as refusal:
        emit({"permitted": False, "reasons": refusal.reasons}, as_json)
        raise typer.Exit(1) from None
    except (NotPromotable, AdapterError, StaleDeployment) as error:
        fail(str(error))
    except (NoVerdict, AuditClientError, BundleError, BundleUnavailable, ConstitutionError) as error:
        complain(str(error))
        raise typer.Exit(2) from None
    finally:
        database.close()
    emit(
        {
            "model": done.model_id,
            "champion": done.version_id or "the base model",
            "replaced": done.replaced or "the base model",
            "deployment": done.deployment,
            "decision": done.decision_id,
        },
        as_json,
    )


def _version(connection: sa.Connection, version_id: str) -> sa.Row[Any]:
    version = registry.get(connection, version_id)
    if version is None:
        fail(f"there is no version {version_id!r}: see `flywheel models ls`")
    return version


def _database(settings: Settings) -> Database:
    return open_database(settings, timeout_s=10.0)
