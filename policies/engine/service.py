"""The engine over HTTP (port 8001 by default): the contract of `models.evaluation_api`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Query, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from models.evaluation_api import (
    ErrorResponse,
    EvaluateBatchRequest,
    EvaluateBatchResponse,
    EvaluateRequest,
    Evaluation,
    MetricsResponse,
    ValidateRequest,
    ValidateResponse,
)
from policies.constitution import Constitution
from policies.engine.config import EngineConfig
from policies.engine.decisions import PolicyEngine
from policies.engine.failures import add_error_handlers
from policies.engine.limits import BearerToken, BodyLimit

NEXT_CURSOR = "X-Next-Cursor"
_WHAT_FAILED = {
    400: "The body cannot be read at all",
    401: "No or a wrong bearer token",
    413: "The body is larger than the limit",
    422: "The request breaks the contract or a limit",
    500: "A fault of the engine",
    503: "Still loading, or too many texts are waiting",
}
# `BearerToken` checks the token before anything is parsed; this tells the OpenAPI document that there is one.
_BEARER = Depends(HTTPBearer(auto_error=False))


class Live(BaseModel):
    """The process answers."""

    status: str


class Ready(BaseModel):
    """Whether the heads are fitted: `ready`, `loading`, or `failed` with the reason.

    `judge` is the judge model's state: `answering`, `budget_used_up`, `resting` after failures, or what kept its last
    answer away; null where there is none. The engine serves without it.
    """

    status: str
    constitution_digest: str
    reason: str | None = None
    judge: str | None = None


def create_engine_app(config: EngineConfig, constitution: Constitution) -> FastAPI:
    """The ASGI application. Nothing is loaded here; its lifespan starts loading and does not wait for it, so
    /health/live answers at once and /health/ready when the heads are fitted.

    UnfitSettings where the settings name principles that the constitution has not got.
    """
    engine = PolicyEngine(config, constitution)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving = asyncio.create_task(engine.serve())
        try:
            yield
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            await engine.aclose()

    app = FastAPI(title="Policy engine", version=constitution.version, lifespan=lifespan, redirect_slashes=False)
    if config.token is not None:
        app.add_middleware(BearerToken, token=config.token)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    add_error_handlers(app)
    _add_api(app, engine, [_BEARER] if config.token is not None else [])
    _add_operations(app, engine)
    return app


def run(config: EngineConfig, constitution: Constitution, host: str, port: int) -> None:
    """Serve until the process is told to stop. The access log is off: request lines are no place for events."""
    app = create_engine_app(config, constitution)
    uvicorn.run(app, host=host, port=port, log_config=None, access_log=False)


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorResponse, "description": _WHAT_FAILED[status]} for status in statuses}


def _add_api(app: FastAPI, engine: PolicyEngine, access: list[Any]) -> None:
    judging = _failures(400, 401, 413, 422, 500, 503)
    reading = _failures(401, 422, 500)

    @app.post("/api/v1/evaluate", responses=judging, dependencies=access)
    async def evaluate(request: EvaluateRequest) -> Evaluation:
        """Judge one text, or the answer `content` to the request `context.prompt`."""
        return (await engine.evaluate([request], "evaluate"))[0]

    @app.post("/api/v1/evaluate/batch", responses=judging, dependencies=access)
    async def evaluate_batch(request: EvaluateBatchRequest) -> EvaluateBatchResponse:
        """Judge many texts at once; several times faster a text than one by one."""
        return EvaluateBatchResponse(results=await engine.evaluate(request.items, "evaluate_batch"))

    @app.post("/api/v1/validate", responses=judging, dependencies=access)
    async def validate(request: ValidateRequest) -> ValidateResponse:
        """Whether a text passes: right constitution, allowed, and at least the threshold."""
        decision = (await engine.evaluate([request], "validate"))[0]
        return ValidateResponse(
            valid=decision.allow and decision.confidence_score >= engine.config.combine.threshold,
            compliance_score=decision.confidence_score,
            hash_match=engine.hash_matches(request.constitutional_hash),
            reason=decision.reason,
            decision_id=decision.decision_id,
            constitution_digest=decision.constitution_digest,
        )

    @app.get("/api/v1/metrics", responses=reading, dependencies=access)
    async def recent(
        response: Response, after: Annotated[int, Query(ge=0, le=2**63 - 1, description="cursor")] = 0
    ) -> MetricsResponse:
        """Decisions after the cursor, oldest first; the next cursor comes in the header X-Next-Cursor."""
        entries, cursor = engine.recent.after(after)
        response.headers[NEXT_CURSOR] = str(cursor)
        return MetricsResponse(recent_evaluations=entries)


def _add_operations(app: FastAPI, engine: PolicyEngine) -> None:
    @app.get("/health/live")
    async def live() -> Live:
        """The process answers."""
        return Live(status="live")

    @app.get("/health/ready", responses={200: {"model": Ready}, 503: {"model": Ready}})
    async def ready() -> JSONResponse:
        """The heads are fitted."""
        status = "ready" if engine.ready else "failed" if engine.failure else "loading"
        told = Ready(
            status=status,
            constitution_digest=engine.constitution.digest,
            reason=engine.failure,
            judge=None if engine.judge is None else engine.judge.state,
        )
        return JSONResponse(told.model_dump(), 200 if engine.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)
