"""What of the registry a mirror has shown already, and what is left: by comparing, so nothing is missed or told twice.

A position in a list would not do: a version changes in place, and on PostgreSQL a lower number may become visible after
a higher one. Each version, and the aliases of each model, has a `state`; it is left while the mirrored one differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import registry
from app.store.database import insert_new, utc_now
from app.store.tables import deployments, mirrored, model_versions

VERSION = "version"
ALIASES = "aliases"


@dataclass(frozen=True, slots=True)
class Left:
    """Something that has yet to be mirrored. `name`: a version's id or a model's; `remote`: what is known of it there.

    `showing` is the version's status, and of aliases the versions that they name.
    """

    kind: str
    name: str
    state: str
    remote: dict[str, Any]
    showing: dict[str, str | None]


def left(connection: Connection, mirror: str) -> list[Left]:
    """What has yet to be shown in `mirror` (at most 64 characters; another one is shown everything anew).

    Versions come first, the oldest first, then aliases.
    """
    known = {(row.kind, row.name): row for row in connection.execute(sa.select(mirrored))}
    versions = registry.list_versions(connection, limit=100_000)
    found = []
    for row in reversed(versions):
        state = f"{mirror}|{row['cycle_version']}|{int(bool(row['evaluated']))}|{row['status']}"
        showing = {"status": row["status"]}
        found.append(_left(known.get((VERSION, row["version_id"])), VERSION, row["version_id"], state, mirror, showing))
    for model_id in sorted({row["model_id"] for row in versions}):
        named = aliases(connection, model_id)
        state = f"{mirror}|{named['champion'] or ''}|{named['candidate'] or ''}"
        found.append(_left(known.get((ALIASES, model_id)), ALIASES, model_id, state, mirror, named))
    return [one for one in found if one is not None]


def aliases(connection: Connection, model_id: str) -> dict[str, str | None]:
    """The versions that a model's aliases name: `champion` and `candidate`."""
    champion = registry.champion(connection, model_id)
    candidate = registry.candidate(connection, model_id)
    return {
        "champion": None if champion is None else champion.version_id,
        "candidate": None if candidate is None else candidate.version_id,
    }


def remote_of(connection: Connection, kind: str, name: str, mirror: str) -> dict[str, Any]:
    """What is known of a thing in `mirror`; empty where it is not there."""
    row = connection.execute(sa.select(mirrored).where(mirrored.c.kind == kind, mirrored.c.name == name)).one_or_none()
    return dict(row.remote) if row is not None and row.state.startswith(f"{mirror}|") else {}


def done(connection: Connection, shown: Left, remote: dict[str, Any]) -> None:
    """Note that it has been shown, and what it is there."""
    row = {"kind": shown.kind, "name": shown.name, "state": shown.state, "remote": remote, "mirrored_at": utc_now()}
    if not insert_new(connection, mirrored, [row], ["kind", "name"]):
        key = (mirrored.c.kind == shown.kind, mirrored.c.name == shown.name)
        connection.execute(sa.update(mirrored).where(*key).values(**row))


def forget(connection: Connection, model_id: str) -> None:
    """Forget that a model's versions and aliases were shown: the mirror has lost them."""
    of_model = sa.select(model_versions.c.version_id).where(model_versions.c.model_id == model_id)
    connection.execute(sa.delete(mirrored).where(mirrored.c.kind == VERSION, mirrored.c.name.in_(of_model)))
    connection.execute(sa.delete(mirrored).where(mirrored.c.kind == ALIASES, mirrored.c.name == model_id))


def deployed_at(connection: Connection, version_id: str) -> str | None:
    """When a version was deployed last, or None."""
    found: str | None = connection.execute(
        sa.select(sa.func.max(deployments.c.created_at)).where(deployments.c.version_id == version_id),
    ).scalar_one()
    return found


def _left(
    known: sa.Row[Any] | None, kind: str, name: str, state: str, mirror: str, showing: dict[str, str | None]
) -> Left | None:
    if known is not None and known.state == state:
        return None
    here = known is not None and known.state.startswith(f"{mirror}|")
    return Left(kind, name, state, dict(known.remote) if known is not None and here else {}, showing)
