"""What is seen of each champion since it was deployed: adherence over its own evaluations, as `adherence` weighs them.

One row a deployment, so a version that is deployed anew begins anew. The evaluations come with those of `adherence`, in
the same transaction as their positions: each counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.store import adherence, registry
from app.store.adherence import Observation
from app.store.database import insert_new, utc_now
from app.store.tables import champion_watch, deployments


@dataclass(frozen=True, slots=True)
class Watched:
    """A champion and what was seen of it. `weight`: of the evaluations that still count; `evaluations`: those seen."""

    model_id: str
    version_id: str
    deployment: int
    since: str
    mean: float
    weight: float
    evaluations: int


def take(connection: Connection, fresh: Sequence[Observation], half_life: float) -> int:
    """Take in what is new (`adherence.advance`) and concerns a champion; returns how many. `half_life`: evaluations."""
    by_model: dict[str, list[Observation]] = {}
    for one in fresh:
        by_model.setdefault(one.model_id, []).append(one)
    taken = 0
    for model_id, group in sorted(by_model.items()):
        deployed = registry.current(connection, model_id)
        if deployed is None or deployed.version_id is None:
            continue
        counted = [one for one in group if concerns(one, deployed)]
        if counted:
            _take(connection, int(deployed.seq), counted, half_life)
        taken += len(counted)
    return taken


def concerns(one: Observation, deployed: sa.Row[Any]) -> bool:
    """Whether an evaluation is of the deployed version, and of an answer given since it was deployed.

    One that names a version counts for that alone. One that names none counts for the champion when the router stamped
    it after the deployment, and so does its own time, where it tells one: history that is routed anew does not count.
    """
    if not one.arrived_at or one.arrived_at <= deployed.created_at:
        return False
    if one.model_version:
        return one.model_version == str(deployed.version_id)
    return not one.told_at or one.told_at > deployed.created_at


def champions(connection: Connection) -> list[Watched]:
    """Every champion of which something was seen."""
    newest = sa.select(sa.func.max(deployments.c.seq)).group_by(deployments.c.model_id)
    rows = connection.execute(
        sa.select(deployments, champion_watch)
        .join(champion_watch, champion_watch.c.deployment == deployments.c.seq)
        .where(deployments.c.seq.in_(newest), deployments.c.version_id.is_not(None), champion_watch.c.weight > 0)
        .order_by(deployments.c.model_id),
    )
    return [
        Watched(
            row.model_id,
            row.version_id,
            row.seq,
            row.created_at,
            row.adherent / row.weight,
            row.weight,
            row.evaluations,
        )
        for row in rows
    ]


def of_deployment(connection: Connection, seq: int) -> dict[str, Any] | None:
    """What was seen under a deployment: `adherence`, `weight`, `evaluations`; None where nothing was."""
    row = connection.execute(sa.select(champion_watch).where(champion_watch.c.deployment == seq)).one_or_none()
    if row is None or not row.weight:
        return None
    return {"adherence": row.adherent / row.weight, "weight": row.weight, "evaluations": row.evaluations}


def _take(connection: Connection, seq: int, group: Sequence[Observation], half_life: float) -> None:
    key = champion_watch.c.deployment == seq
    empty = {"deployment": seq, "adherent": 0.0, "weight": 0.0, "evaluations": 0, "updated_at": utc_now()}
    insert_new(connection, champion_watch, [empty], ["deployment"])
    row = connection.execute(sa.select(champion_watch).where(key).with_for_update()).one()
    adherent, weight = adherence.fade_in(row.adherent, row.weight, group, half_life)
    values = {"adherent": adherent, "weight": weight, "evaluations": row.evaluations + len(group)}
    connection.execute(sa.update(champion_watch).where(key).values(**values, updated_at=utc_now()))
