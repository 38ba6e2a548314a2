"""Model versions and deployments: which adapter is champion. SQL decides; anything else mirrors it.

A model's deployments are a chain: each names the one that it replaces, and of two that would replace the same one the
database lets one in. The newest is in force. Before a model's first, and after a rollback of that, its base serves.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import adherence, notices, outbox
from app.store.database import insert_new, plain, utc_now
from app.store.tables import cycles, deployments, model_versions
from models.cycle import TERMINAL_STATES

BASE = "base:"
"""Begins the name of a base model where a version is named; it serves where no version is deployed."""


class Kind(StrEnum):
    """Why a deployment came about."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"
    """A person asked for it."""
    WATCH = "watch"
    """The watch over the champion rolled it back by itself."""


class StaleDeployment(RuntimeError):
    """Another worker or person deployed first. Look again and decide anew."""


@dataclass(frozen=True, slots=True)
class Authority:
    """By what something is deployed: who wants it and why, and the gate's decision, which the audit log has already."""

    by: str
    comment: str = ""
    decision_id: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a rollback returns to. `version_id` is None for the base model, `name` is never empty."""

    version_id: str | None
    name: str


def add_version(connection: Connection, row: dict[str, Any]) -> None:
    """Register a trained adapter (columns of `model_versions` without time); a cycle has one version."""
    insert_new(connection, model_versions, [{"evaluation": None, **row, "created_at": utc_now()}], ["version_id"])


def set_evaluation(connection: Connection, version_id: str, evaluation: dict[str, Any]) -> None:
    """Attach the evaluation's figures to a version."""
    connection.execute(
        sa.update(model_versions).where(model_versions.c.version_id == version_id).values(evaluation=evaluation),
    )


def version_of_cycle(connection: Connection, cycle_id: str) -> sa.Row[Any] | None:
    """The version that a cycle trained, or None."""
    return connection.execute(sa.select(model_versions).where(model_versions.c.cycle_id == cycle_id)).one_or_none()


def get(connection: Connection, version_id: str) -> sa.Row[Any] | None:
    """One version, or None."""
    return connection.execute(sa.select(model_versions).where(model_versions.c.version_id == version_id)).one_or_none()


def current(connection: Connection, model_id: str) -> sa.Row[Any] | None:
    """The deployment in force for a model, or None before its first. Its `version_id` is None for the base model."""
    return connection.execute(
        sa.select(deployments).where(deployments.c.model_id == model_id).order_by(deployments.c.seq.desc()).limit(1),
    ).one_or_none()


def champion(connection: Connection, model_id: str) -> sa.Row[Any] | None:
    """The version deployed for a model, or None where the base model serves."""
    deployed = current(connection, model_id)
    return None if deployed is None or deployed.version_id is None else get(connection, deployed.version_id)


def candidate(connection: Connection, model_id: str) -> sa.Row[Any] | None:
    """The model's trained version that has yet to be decided on (its cycle is open), or None."""
    ended = [state.value for state in TERMINAL_STATES]
    return connection.execute(
        sa.select(model_versions)
        .join(cycles, cycles.c.cycle_id == model_versions.c.cycle_id)
        .where(model_versions.c.model_id == model_id, cycles.c.state.not_in(ended))
        .order_by(model_versions.c.created_at.desc())
        .limit(1),
    ).one_or_none()


def list_versions(connection: Connection, model_id: str | None = None, limit: int = 1000) -> list[dict[str, Any]]:
    """Versions, the newest first: id, model, cycle, `cycle_version`, base model, `evaluated`, `status`, when made.

    `status` is champion, rolled_back, former (it was champion), candidate, or else the state that its cycle ended in.
    """
    table = model_versions.c
    newest = sa.select(sa.func.max(deployments.c.seq)).group_by(deployments.c.model_id)
    in_force = set(
        connection.execute(sa.select(deployments.c.version_id).where(deployments.c.seq.in_(newest))).scalars()
    )
    deployed = set(connection.execute(sa.select(deployments.c.version_id).distinct()).scalars())
    query = sa.select(
        table.version_id,
        table.model_id,
        table.cycle_id,
        table.base_model,
        table.created_at,
        table.rolled_back_at,
        # JSON's null is no SQL NULL; both mean that there is none.
        sa.and_(table.evaluation.is_not(None), sa.cast(table.evaluation, sa.Text) != "null").label("evaluated"),
        cycles.c.state.label("cycle_state"),
        cycles.c.version.label("cycle_version"),
    ).join(cycles, cycles.c.cycle_id == table.cycle_id)
    if model_id is not None:
        query = query.where(table.model_id == model_id)
    rows = connection.execute(query.order_by(table.created_at.desc(), table.version_id.desc()).limit(limit))
    found = [plain(row) for row in rows]
    for row in found:
        row["status"] = _status(row, in_force, deployed)
    return found


def history(connection: Connection, model_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """A model's deployments, the newest first."""
    rows = connection.execute(
        sa.select(deployments)
        .where(deployments.c.model_id == model_id)
        .order_by(deployments.c.seq.desc())
        .limit(limit),
    )
    return [plain(row) for row in rows]


def rollback_target(connection: Connection, model_id: str) -> Target | None:
    """The champion before the one in force, passing over what was rolled back; None where nothing is deployed.

    Before the first version that was ever deployed there was the base model.
    """
    now = champion(connection, model_id)
    if now is None:
        return None
    # One that is no longer marked was promoted anew after it had been rolled back.
    unmarked = sa.and_(deployments.c.version_id != now.version_id, model_versions.c.rolled_back_at.is_(None))
    before = connection.execute(
        sa.select(deployments.c.version_id)
        .outerjoin(model_versions, model_versions.c.version_id == deployments.c.version_id)
        .where(deployments.c.model_id == model_id, sa.or_(deployments.c.version_id.is_(None), unmarked))
        .order_by(deployments.c.seq.desc())
        .limit(1),
    ).scalar_one_or_none()
    return Target(before, BASE + now.base_model if before is None else before)


def deploy(
    connection: Connection,
    model_id: str,
    version_id: str | None,
    reason: str,
    authority: Authority | None = None,
    *,
    expected: int | None = None,
) -> int:
    """Make a version the champion (None: the base model), with its audit entry; returns the deployment's `seq`.

    `expected` is the `seq` of the deployment that it is to replace (0: there is none yet), where one was looked at.
    Raises `StaleDeployment` where another is in force by now.
    """
    _lift_mark(connection, version_id)
    return _append(connection, model_id, version_id, reason, Kind.PROMOTION, authority or Authority(""), expected, {})


def roll_back(
    connection: Connection,
    model_id: str,
    target: Target,
    reason: str,
    authority: Authority,
    *,
    kind: Kind,
    expected: int,
    measured: dict[str, Any] | None = None,
) -> int:
    """Replace the champion by `target` and mark it as rolled back, with the audit entry; returns the new `seq`.

    `expected` is the `seq` of the deployment that is rolled back, `measured` what the watch found. Raises
    `StaleDeployment` where another deployment is in force by now.
    """
    replaced = connection.execute(
        sa.select(deployments.c.version_id).where(deployments.c.seq == expected, deployments.c.model_id == model_id),
    ).scalar_one_or_none()
    if replaced is None:
        raise StaleDeployment(f"deployment {expected} of {model_id} deployed no version: there is nothing to roll back")
    told = {"rolled_back": replaced, "returned_to": target.name, **(measured or {})}
    seq = _append(connection, model_id, target.version_id, reason, kind, authority, expected, told)
    connection.execute(
        sa.update(model_versions)
        .where(model_versions.c.version_id == replaced)
        .values(rolled_back_at=utc_now(), rolled_back_reason=reason),
    )
    notices.of_rollback(connection, model_id, replaced, target.version_id, reason)
    return seq


def _append(
    connection: Connection,
    model_id: str,
    version_id: str | None,
    reason: str,
    kind: Kind,
    authority: Authority,
    expected: int | None,
    told: dict[str, Any],
) -> int:
    now = current(connection, model_id)
    previous = 0 if now is None else int(now.seq)
    if expected is not None and expected != previous:
        raise StaleDeployment(f"deployment {previous} of {model_id} is in force by now, not {expected}: look again")
    row = {
        "model_id": model_id,
        "version_id": version_id,
        "reason": reason,
        "created_at": utc_now(),
        "previous": previous,
        "kind": kind.value,
        "deployed_by": authority.by,
        "comment": authority.comment,
        "decision_id": authority.decision_id,
    }
    try:
        # A savepoint: the index refuses a rival that we could not see yet, and the caller's transaction goes on.
        with connection.begin_nested():
            inserted = sa.insert(deployments).values(**row).returning(deployments.c.seq)
            seq = int(connection.execute(inserted).scalar_one())
    except sa.exc.IntegrityError as error:
        present = current(connection, model_id)
        if present is None or present.seq == previous:
            raise  # no rival: the version is not in the registry
        raise StaleDeployment(f"another deployment of {model_id} came first: look again") from error
    # Another version answers from now on: what was seen of the one before says nothing of it.
    adherence.restart(connection, model_id)
    context = {name: row[name] for name in ("reason", "kind", "deployed_by", "decision_id") if row[name]} | told
    outbox.audit(
        connection,
        "deployment",
        {
            "model_id": model_id,
            "version_id": version_id,
            "context": context | {"why": authority.comment} if authority.comment else context,
            "entry_id": f"deployment-{uuid.uuid4().hex}",
        },
    )
    return seq


def _lift_mark(connection: Connection, version_id: str | None) -> None:
    connection.execute(
        sa.update(model_versions)
        .where(model_versions.c.version_id == version_id, model_versions.c.rolled_back_at.is_not(None))
        .values(rolled_back_at=None, rolled_back_reason=None),
    )


def _status(row: dict[str, Any], in_force: set[str], deployed: set[str]) -> str:
    if row["version_id"] in in_force:
        return "champion"
    if row["rolled_back_at"] is not None:
        return "rolled_back"
    if row["version_id"] in deployed:
        return "former"
    state = row["cycle_state"]
    return state if state in {ended.value for ended in TERMINAL_STATES} else "candidate"
