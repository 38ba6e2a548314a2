"""Model versions and deployments: which adapter is champion. SQL decides; anything else mirrors it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import outbox
from app.store.database import insert_new, utc_now
from app.store.tables import deployments, model_versions


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


def champion(connection: Connection, model_id: str) -> sa.Row[Any] | None:
    """The version deployed for a model, or None where the base model serves."""
    deployed = connection.execute(
        sa.select(deployments.c.version_id)
        .where(deployments.c.model_id == model_id)
        .order_by(deployments.c.seq.desc())
        .limit(1),
    ).scalar_one_or_none()
    if deployed is None:
        return None
    return connection.execute(sa.select(model_versions).where(model_versions.c.version_id == deployed)).one()


def deploy(connection: Connection, model_id: str, version_id: str | None, reason: str) -> None:
    """Make a version the champion (None: the base model), with its audit entry."""
    connection.execute(
        sa.insert(deployments).values(model_id=model_id, version_id=version_id, reason=reason, created_at=utc_now()),
    )
    outbox.audit(
        connection,
        "deployment",
        {"model_id": model_id, "version_id": version_id, "context": {"reason": reason}},
    )
