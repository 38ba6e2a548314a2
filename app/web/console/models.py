"""`/models`: what serves, what was trained, and how it came to be so. What a person changes there: `promotion.py`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from sqlalchemy.engine import Connection

from app.store import registry
from app.store.tables import cycles, deployments, model_versions
from app.web.console.overview import Record
from app.web.console.parts import Console
from app.web.identity import Identity, Right
from models.cycle import TERMINAL_STATES

MOST_VERSIONS = 20
MOST_DEPLOYMENTS = 10


class Version(Record):
    """One trained adapter, with the figures of its evaluation. `state`: of its cycle."""

    version_id: str
    cycle_id: str
    domain: str
    state: str
    base_model: str
    created_at: str
    epsilon: float | None
    adherence: float | None
    over_refusal: float | None
    serves: bool
    promotable: bool
    """Whether the gate may be asked: it was evaluated, its cycle is over, and it does not serve."""
    rolled_back: bool


class Deployment(Record):
    """One change of what serves; `version_id` is None for the base model."""

    version_id: str | None
    reason: str
    created_at: str


class Model(Record):
    """One model: the champion (None: the base model), what a step back would lead to, and how it came to be so."""

    model_id: str
    champion: str | None
    back_to: str | None
    can_step_back: bool
    versions: list[Version]
    deployments: list[Deployment]


def add(app: FastAPI, console: Console) -> None:
    """Add the page and its JSON."""
    may = Depends(console.guard.needs(Right.VIEW))

    @app.get("/models", response_class=HTMLResponse)
    async def page(request: Request, identity: Identity = may) -> HTMLResponse:
        """The models as a page."""
        found = await console.read(lambda connection: read_models(connection, identity))
        return await console.page(request, identity, "models.html", {"models": found})

    @app.get("/api/v1/models", tags=["models"])
    async def models_json(identity: Identity = may) -> list[Model]:
        """Every model with its champion, its latest candidates and deployments."""
        return await console.read(lambda connection: read_models(connection, identity))


def read_models(connection: Connection, identity: Identity) -> list[Model]:
    """The models with a version or a deployment, as far as their domains are the caller's."""
    query = sa.select(model_versions.c.model_id).join(cycles, cycles.c.cycle_id == model_versions.c.cycle_id).distinct()
    if identity.domains is not None:
        query = query.where(cycles.c.domain.in_(sorted(identity.domains)))
    names = connection.execute(query.order_by(model_versions.c.model_id)).scalars().all()
    return [_model(connection, identity, name) for name in names]


def _model(connection: Connection, identity: Identity, model_id: str) -> Model:
    deployed = connection.execute(
        sa.select(deployments.c.version_id, deployments.c.reason, deployments.c.created_at)
        .where(deployments.c.model_id == model_id)
        .order_by(deployments.c.seq.desc())
        .limit(MOST_DEPLOYMENTS)
    ).all()
    champion = deployed[0].version_id if deployed else None
    return Model(
        model_id=model_id,
        champion=champion,
        back_to=None if (target := registry.rollback_target(connection, model_id)) is None else target.version_id,
        can_step_back=champion is not None,
        versions=_versions(connection, identity, model_id, champion),
        deployments=[
            Deployment(version_id=row.version_id, reason=row.reason, created_at=row.created_at) for row in deployed
        ],
    )


def _versions(connection: Connection, identity: Identity, model_id: str, champion: str | None) -> list[Version]:
    query = (
        sa.select(model_versions, cycles.c.domain, cycles.c.state)
        .join(cycles, cycles.c.cycle_id == model_versions.c.cycle_id)
        .where(model_versions.c.model_id == model_id)
        .order_by(model_versions.c.created_at.desc())
        .limit(MOST_VERSIONS)
    )
    if identity.domains is not None:
        query = query.where(cycles.c.domain.in_(sorted(identity.domains)))
    return [
        Version(
            version_id=row.version_id,
            cycle_id=row.cycle_id,
            domain=row.domain,
            state=row.state,
            base_model=row.base_model,
            created_at=row.created_at,
            epsilon=(row.statement or {}).get("epsilon"),
            adherence=_figure(row.evaluation, "adherence"),
            over_refusal=_figure(row.evaluation, "over_refusal"),
            serves=row.version_id == champion,
            promotable=bool(row.evaluation) and row.state in TERMINAL_STATES and row.version_id != champion,
            rolled_back=row.rolled_back_at is not None,
        )
        for row in connection.execute(query)
    ]


def domains_of(connection: Connection, model_id: str) -> set[str]:
    """The domains whose cycles trained a version of the model: all of them are touched by what serves."""
    query = sa.select(cycles.c.domain).join(model_versions, cycles.c.cycle_id == model_versions.c.cycle_id)
    return set(connection.execute(query.where(model_versions.c.model_id == model_id).distinct()).scalars())


def domains_seen(identity: Identity, connection: Connection, model_id: str) -> set[str]:
    """Which domains are the caller's: the model's own where all are."""
    return domains_of(connection, model_id) if identity.domains is None else set(identity.domains)


def _figure(evaluation: dict[str, Any] | None, name: str) -> float | None:
    value = ((evaluation or {}).get(name) or {}).get("candidate")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
