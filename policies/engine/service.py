"""The engine over HTTP (port 8001 by default): the contract of `models.evaluation_api`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

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
from policies.engine.batching import MicroBatcher
from policies.engine.combine import HASH_MISMATCH, Verdict
from policies.engine.config import EngineConfig
from policies.engine.errors import EngineBusyError, EngineError
from policies.engine.evaluator import Judged, PolicyEvaluator
from policies.engine.limits import BearerToken, BodyLimit, error_response
from policies.engine.recent import RecentEvaluations
from policies.engine.telemetry import EngineMetrics

log = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, object]] = {
    401: {"model": ErrorResponse, "description": "No or a wrong bearer token"},
    413: {"model": ErrorResponse, "description": "The body is larger than the limit"},
    422: {"model": ErrorResponse, "description": "The request breaks the contract or a limit"},
    503: {"model": ErrorResponse, "description": "Still loading, or too many texts are waiting"},
}
_Asked = EvaluateRequest | ValidateRequest


class LimitError(Exception):
    """A request is over one of the engine's limits."""


class PolicyEngine:
    """What one running service holds: the evaluator once it is fitted, the batcher, recent decisions, metrics."""

    def __init__(self, config: EngineConfig, constitution: Constitution) -> None:
        self.config = config
        self.constitution = constitution
        self.metrics = EngineMetrics()
        self.recent = RecentEvaluations(config.recent_capacity)
        self.failure: str | None = None
        self._evaluator: PolicyEvaluator | None = None
        self._batcher = MicroBatcher(config.max_batch, config.max_waiting)

    @property
    def ready(self) -> bool:
        """True once the heads are fitted."""
        return self._evaluator is not None

    async def serve(self) -> None:
        """Load, then judge until cancelled. A failed load is kept in `failure`, and readiness tells it."""
        started = time.monotonic()
        try:
            evaluator = await anyio.to_thread.run_sync(PolicyEvaluator.load, self.constitution, self.config)
        except EngineError as error:
            self.failure = str(error)
            log.error("policy engine cannot start: %s", error)
            return
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            log.exception("policy engine cannot start")
            return
        self._evaluator = evaluator
        self.metrics.ready.set(1)
        self.metrics.load_seconds.set(time.monotonic() - started)
        log.info("policy engine ready in %.1f s: %s", time.monotonic() - started, evaluator.report)
        await self._batcher.run(evaluator.evaluate)

    def hash_matches(self, given: str) -> bool:
        """Whether a request speaks of the constitution in force."""
        return hmac.compare_digest(given.encode(), self.constitution.identifier.encode())

    async def evaluate(self, requests: Sequence[_Asked], endpoint: str) -> list[Evaluation]:
        """Decisions on requests, in order. Raises LimitError, EngineBusyError, or EngineError while loading."""
        self._check_limits(requests)
        if self._evaluator is None:
            raise EngineError(self.failure or "the heads are still being fitted; try again in some seconds")
        accepted = [request for request in requests if self.hash_matches(request.constitutional_hash)]
        with self.metrics.seconds.labels(endpoint).time():
            texts = [Judged(request.content, request.prompt) for request in accepted]
            verdicts = iter(await self._judge(texts) if texts else [])
        return [
            self._decision(
                request,
                next(verdicts) if self.hash_matches(request.constitutional_hash) else self._mismatch(request),
            )
            for request in requests
        ]

    async def _judge(self, texts: list[Judged]) -> list[Verdict]:
        try:
            return await self._batcher.judge(texts)
        finally:
            self.metrics.waiting.set(self._batcher.waiting)

    def _check_limits(self, requests: Sequence[_Asked]) -> None:
        limit = self.config.max_content_chars
        if len(requests) > self.config.max_batch:
            raise LimitError(f"{len(requests)} items; send at most {self.config.max_batch} a request")
        for number, request in enumerate(requests):
            for name, text in (("content", request.content), ("context.prompt", request.prompt or "")):
                if len(text) > limit:
                    raise LimitError(f"item {number}: {name} has {len(text)} characters; send at most {limit}")

    def _mismatch(self, request: _Asked) -> Verdict:
        reason = (
            f"constitutional hash {request.constitutional_hash[:80]!r} was sent, but the constitution in force is "
            f"{self.constitution.identifier!r}; send that one, or ask the engine that holds yours"
        )
        return Verdict(allow=False, confidence_score=0.0, violations=[HASH_MISMATCH], reason=reason, scores={})

    def _decision(self, request: _Asked, verdict: Verdict) -> Evaluation:
        decision_id = uuid.uuid4().hex
        self.recent.add(decision_id, request.context, verdict.confidence_score, verdict.allow)
        self.metrics.judged(verdict.allow, verdict.violations)
        return Evaluation(
            allow=verdict.allow,
            confidence_score=verdict.confidence_score,
            violations=verdict.violations,
            reason=verdict.reason,
            policy_version=f"{self.constitution.version}+{self.constitution.digest[:12]}",
            decision_id=decision_id,
            constitution_digest=self.constitution.digest,
            scores=verdict.scores,
        )


def create_engine_app(config: EngineConfig, constitution: Constitution) -> FastAPI:
    """The ASGI application. Nothing is loaded here; its lifespan starts loading and does not wait for it, so
    /health/live answers at once and /health/ready when the heads are fitted."""
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

    app = FastAPI(title="Policy engine", version=constitution.version, lifespan=lifespan)
    if config.token is not None:
        app.add_middleware(BearerToken, token=config.token)
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    _add_error_handlers(app)
    _add_api(app, engine)
    _add_operations(app, engine)
    return app


def _add_api(app: FastAPI, engine: PolicyEngine) -> None:
    @app.post("/api/v1/evaluate", responses=_ERRORS)
    async def evaluate(request: EvaluateRequest) -> Evaluation:
        """Judge one text, or the answer `content` to the request `context.prompt`."""
        return (await engine.evaluate([request], "evaluate"))[0]

    @app.post("/api/v1/evaluate/batch", responses=_ERRORS)
    async def evaluate_batch(request: EvaluateBatchRequest) -> EvaluateBatchResponse:
        """Judge many texts at once; several times faster a text than one by one."""
        return EvaluateBatchResponse(results=await engine.evaluate(request.items, "evaluate_batch"))

    @app.post("/api/v1/validate", responses=_ERRORS)
    async def validate(request: ValidateRequest) -> ValidateResponse:
        """Whether a text passes: right constitution, allowed, and at least the threshold."""
        decision = (await engine.evaluate([request], "validate"))[0]
        return ValidateResponse(
            valid=decision.allow and decision.confidence_score >= engine.config.combine.threshold,
            compliance_score=decision.confidence_score,
            hash_match=engine.hash_matches(request.constitutional_hash),
        )

    @app.get("/api/v1/metrics", responses={401: _ERRORS[401], 422: _ERRORS[422]})
    async def recent(
        response: Response, after: Annotated[int, Query(ge=0, le=2**63 - 1, description="cursor")] = 0
    ) -> MetricsResponse:
        """Decisions after the cursor, oldest first; the next cursor comes in the header X-Next-Cursor."""
        entries, cursor = engine.recent.after(after)
        response.headers["X-Next-Cursor"] = str(cursor)
        return MetricsResponse(recent_evaluations=entries)


def _add_operations(app: FastAPI, engine: PolicyEngine) -> None:
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: {"description": "Loading, or loading failed"}})
    async def ready() -> JSONResponse:
        """The heads are fitted."""
        if engine.ready:
            return JSONResponse({"status": "ready", "constitution_digest": engine.constitution.digest})
        return JSONResponse({"status": "failed" if engine.failure else "loading", "reason": engine.failure}, 503)

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Never the input itself: it is somebody's text.
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        return error_response(422, "invalid_request", "; ".join(faults[:10]))

    @app.exception_handler(LimitError)
    async def over_limit(_: Request, error: LimitError) -> JSONResponse:
        return error_response(422, "over_limit", str(error))

    @app.exception_handler(EngineBusyError)
    async def busy(_: Request, error: EngineBusyError) -> JSONResponse:
        return error_response(503, "busy", str(error), {"retry-after": "1"})

    @app.exception_handler(EngineError)
    async def not_ready(_: Request, error: EngineError) -> JSONResponse:
        return error_response(503, "not_ready", str(error), {"retry-after": "5"})


def run(config: EngineConfig, constitution: Constitution, host: str, port: int) -> None:
    """Serve until the process is told to stop. The access log is off: request lines are no place for events."""
    app = create_engine_app(config, constitution)
    uvicorn.run(app, host=host, port=port, log_config=None, access_log=False)
