"""Promotion and rollback by a person, from the models' page: the same gate, facts and rules as `flywheel models`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from agents.training.adapter import AdapterError
from agents.training.context import DecisionContext
from agents.training.promotion import NotPromotable, NoVerdict, Refused, promote, roll_back
from app.deciding import KeptPolicies, decision_context
from app.store import registry
from app.store.registry import StaleDeployment
from app.web.console.cycle import Done
from app.web.console.models import domains_of, domains_seen
from app.web.console.parts import Console, absent
from app.web.identity import Identity, Right
from policies.clients.audit_client import AuditClientError
from policies.constitution import ConstitutionError
from policies.gate import BundleError
from policies.gate.live import BundleUnavailable

STEP_BACK_ANYWAY = "; or step back without its verdict, where that cannot wait (`without_verdict`)"


class Promotion(BaseModel):
    """Who promotes, and why. `again`: also a version that was rolled back."""

    model_config = ConfigDict(extra="forbid")

    comment: str = Field(min_length=1, max_length=500)
    again: bool = False
    by: str | None = None


class StepBack(BaseModel):
    """Who steps back from which champion, and why: a step from one that serves no more is refused.

    `without_verdict`: also where the gate gives none; see `agents.training.promotion.roll_back`.
    """

    model_config = ConfigDict(extra="forbid")

    champion: str
    comment: str = Field(min_length=1, max_length=500)
    without_verdict: bool = False
    by: str | None = None


def add(app: FastAPI, console: Console) -> None:
    """Add promotion and rollback by form and by JSON."""
    may_operate = Depends(console.guard.needs(Right.OPERATE))
    policies = KeptPolicies(console.settings)

    async def decide(identity: Identity, version_id: str, asked: Promotion) -> str:
        by = identity.acting(asked.by)
        await console.read(lambda connection: _require_version(connection, identity, version_id))
        async with _deciding(console, policies) as context:
            done = await promote(context, version_id, by=by, comment=asked.comment, again=asked.again)
        return f"{version_id} is the champion of {done.model_id}; before, {done.replaced or 'the base model'} was."

    async def step_back(identity: Identity, model_id: str, asked: StepBack) -> str:
        by = identity.acting(asked.by)
        await console.read(lambda connection: _require_model(connection, identity, model_id))
        async with _deciding(console, policies, without_gate=STEP_BACK_ANYWAY) as context:
            done = await roll_back(
                context,
                model_id,
                by=by,
                comment=asked.comment,
                champion=asked.champion,
                without_verdict=asked.without_verdict,
            )
        unheard = "" if done.decision_id else " The gate gave no verdict; the audit log says so."
        return f"{model_id} is rolled back from {done.replaced} to {done.version_id or 'the base model'}.{unheard}"

    @app.post("/models/promote", include_in_schema=False)
    async def promote_form(request: Request, identity: Identity = may_operate) -> Response:
        """Promote, from the page."""
        fields = await console.guard.form(request, identity)
        asked = Promotion(comment=_comment(fields), again=fields.get("again") == "yes", by=fields.get("by"))
        return console.done("/models", await decide(identity, fields.get("version_id", ""), asked))

    @app.post("/api/v1/models/versions/{version_id}/promote", tags=["models"])
    async def promote_json(version_id: str, asked: Promotion, identity: Identity = may_operate) -> Done:
        """Make a version the champion, where the gate permits it by its stored evaluation and privacy statement.

        409: it does not, or there is nothing to ask it about; 503: there is no verdict, and nothing has changed.
        """
        return Done(said=await decide(identity, version_id, asked))

    @app.post("/models/rollback", include_in_schema=False)
    async def rollback_form(request: Request, identity: Identity = may_operate) -> Response:
        """Step back, from the page."""
        fields = await console.guard.form(request, identity)
        asked = StepBack(
            champion=fields.get("champion", ""),
            comment=_comment(fields),
            without_verdict=fields.get("without_verdict") == "yes",
            by=fields.get("by"),
        )
        return console.done("/models", await step_back(identity, fields.get("model_id", ""), asked))

    @app.post("/api/v1/models/{model_id:path}/rollback", tags=["models"])
    async def rollback_json(model_id: str, asked: StepBack, identity: Identity = may_operate) -> Done:
        """Let the champion before the present one, or the base model, serve again.

        409: another serves by now, or the gate refuses; 503: there is no verdict and `without_verdict` is not set, or
        the audit engine is away: nothing has changed.
        """
        return Done(said=await step_back(identity, model_id, asked))


@asynccontextmanager
async def _deciding(console: Console, policies: KeptPolicies, without_gate: str = "") -> AsyncIterator[DecisionContext]:
    """The gate and the audit engine; what they refuse as 409, and as 503 what they say nothing to."""
    try:
        async with decision_context(console.settings, console.state.database, policies) as context:
            yield context
    except (NotPromotable, Refused, StaleDeployment) as refusal:
        raise HTTPException(409, str(refusal)) from None
    except AdapterError as error:
        raise HTTPException(409, f"{error} (adapters lie with the training worker: ask on its pages)") from None
    except NoVerdict as none:
        raise HTTPException(503, f"{none}{without_gate}", {"Retry-After": "5"}) from None
    except (AuditClientError, BundleError, BundleUnavailable, ConstitutionError) as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from None


def _comment(fields: Mapping[str, str]) -> str:
    comment = fields.get("comment", "").strip()
    if not comment:
        raise HTTPException(422, "say why: the comment is empty")
    return comment[:500]


def _require_version(connection: Connection, identity: Identity, version_id: str) -> None:
    version = registry.get(connection, version_id)
    if version is None or not _all_theirs(connection, identity, version.model_id):
        raise absent(f"version {version_id!r} of a model whose domains are all yours")


def _require_model(connection: Connection, identity: Identity, model_id: str) -> None:
    if not domains_of(connection, model_id) or not _all_theirs(connection, identity, model_id):
        raise absent(f"model {model_id!r} whose domains are all yours")


def _all_theirs(connection: Connection, identity: Identity, model_id: str) -> bool:
    return domains_of(connection, model_id) <= domains_seen(identity, connection, model_id)
