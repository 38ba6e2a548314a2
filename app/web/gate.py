"""The gate over HTTP: the bundle in force for OPA servers to poll, and decisions about inference for who asks.

Only `model_inference` may be asked for here. The other actions are decided from facts that the workers measured
themselves, never from what a caller says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from models.decision import GateDecision
from policies.gate.bundle import bundle_archive
from policies.gate.live import BundleUnavailable

if TYPE_CHECKING:
    from app.gate import Gate
    from app.workers import WorkerState

_RETRY = {"Retry-After": "1"}


class DecisionRequest(BaseModel):
    """What is asked: the action, and the facts as `policies/README.md` lists them."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["model_inference"]
    facts: dict[str, Any]


def add_gate(app: FastAPI, state: WorkerState, guard: list[Any]) -> None:
    """Add the endpoints to a worker that has a gate."""

    @app.get("/policies/bundle.tar.gz", dependencies=guard)
    async def bundle(request: Request) -> Response:
        """The bundle in force as OPA loads it; 304 where the caller has it (`If-None-Match`)."""
        try:
            present = await _gate(state).present(fresh=True)
        except BundleUnavailable as error:
            raise HTTPException(503, str(error), _RETRY) from error
        # Weak comparison, as a GET asks for (RFC 9110, section 13.1.2); OPA sends back what it was given.
        tag = f'"{present.bundle_revision[:32]}.{present.data_revision[:32]}"'
        known = [given.strip().removeprefix("W/") for given in request.headers.get("if-none-match", "").split(",")]
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if tag in known:
            return Response(status_code=304, headers=headers)
        content = await asyncio.to_thread(bundle_archive, present)
        return Response(content, media_type="application/gzip", headers=headers)

    @app.post("/api/v1/decisions", dependencies=guard)
    async def decide(asked: DecisionRequest) -> GateDecision:
        """Decide inference. The audit log has the decision before the answer goes out.

        A decision that could not be had is answered as one: `conclusive` is false and nothing is permitted.
        """
        return await _gate(state).decide(asked.action, asked.facts)


def _gate(state: WorkerState) -> Gate:
    if state.gate is None:
        raise HTTPException(503, "the worker has not opened its gate yet; try again", _RETRY)
    return state.gate
