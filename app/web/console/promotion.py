"""Promotion by a person, from the models' page: the same gate, facts and rules as `flywheel models promote`."""

from __future__ import annotations

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from agents.training.adapter import AdapterError
from agents.training.promotion import NotPromotable, NoVerdict, Refused, promote
from app.deciding import decision_context
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


class Promotion(BaseModel):
    """Who promotes, and why. `again`: also a version that was rolled back."""

    model_config = ConfigDict(extra="forbid")

    comment: str = Field(min_length=1, max_length=500)
    again: bool = False
    by: str | None = None


def add(app: FastAPI, console: Console) -> None:
    """Add promotion by form and by JSON."""
    may_operate = Depends(console.guard.needs(Right.OPERATE))

    async def decide(identity: Identity, version_id: str, asked: Promotion) -> str:
        by = identity.acting(asked.by)
        await console.read(lambda connection: _require(connection, identity, version_id))
        try:
            async with decision_context(console.settings, console.state.database) as context:
                done = await promote(context, version_id, by=by, comment=asked.comment, again=asked.again)
        except (NotPromotable, Refused, StaleDeployment) as refusal:
            raise HTTPException(409, str(refusal)) from None
        except AdapterError as error:
            raise HTTPException(409, f"{error} (adapters lie with the training worker: ask on its pages)") from None
        except (NoVerdict, AuditClientError, BundleError, BundleUnavailable, ConstitutionError) as error:
            raise HTTPException(503, str(error), {"Retry-After": "5"}) from None
        return f"{version_id} is the champion of {done.model_id}; before, {done.replaced or 'the base model'} was."

    @app.post("/models/promote", include_in_schema=False)
    async def promote_form(request: Request, identity: Identity = may_operate) -> Response:
        """Promote, from the page."""
        fields = await console.guard.form(request, identity)
        comment = fields.get("comment", "").strip()
        if not comment:
            raise HTTPException(422, "say why: the comment is empty")
        asked = Promotion(comment=comment[:500], again=fields.get("again") == "yes", by=fields.get("by"))
        return console.done("/models", await decide(identity, fields.get("version_id", ""), asked))

    @app.post("/api/v1/models/versions/{version_id}/promote", tags=["models"])
    async def promote_json(version_id: str, asked: Promotion, identity: Identity = may_operate) -> Done:
        """Make a version the champion, where the gate permits it by its stored evaluation and privacy statement.

        409: it does not, or there is nothing to ask it about; 503: there is no verdict, and nothing has changed.
        """
        return Done(said=await decide(identity, version_id, asked))


def _require(connection: Connection, identity: Identity, version_id: str) -> None:
    version = registry.get(connection, version_id)
    if version is None or not domains_of(connection, version.model_id) <= domains_seen(
        identity, connection, version.model_id
    ):
        raise absent(f"version {version_id!r} of a model whose domains are all yours")
