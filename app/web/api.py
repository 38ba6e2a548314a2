"""A worker's web: operations page, statistics, metrics, health; on the router the doors for events and reviews too."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.templating import Jinja2Templates
from prometheus_client.exposition import choose_encoder

from app import __version__
from app.roles import Role
from app.settings import Settings
from app.store import cycles, examples
from app.store.database import DatabaseUnavailable
from app.web.feedback import FeedbackIntake, add_feedback
from app.web.gate import add_gate
from app.web.ingest import OtlpIngest
from app.web.ingest_route import add_ingest

if TYPE_CHECKING:
    from app.workers import WorkerState

TEMPLATES = Jinja2Templates(directory=Path(__file__).parent / "templates")
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
}


def create_web(settings: Settings, role: Role, state: WorkerState) -> FastAPI:
    """The ASGI application of a role. Nothing connects here; producers open with the worker."""
    ingest = OtlpIngest(settings) if role is Role.ROUTE else None
    feedback = FeedbackIntake(settings) if role is Role.ROUTE else None
    if ingest is not None:
        state.snapshots["ingest"] = ingest.snapshot
    if feedback is not None:
        state.snapshots["feedback"] = feedback.snapshot

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for door in (ingest, feedback):
                if door is not None:
                    await stack.enter_async_context(door)
            yield

    # No page of FastAPI's own: it loads scripts from elsewhere, which the headers below forbid.
    title = f"Constitutional Flywheel: {role.value}"
    app = FastAPI(title=title, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    guard = [Depends(_bearer(settings))]
    if ingest is not None:
        add_ingest(app, ingest, guard)
    if feedback is not None:
        add_feedback(app, feedback, guard)
    if role is Role.TRAIN:
        add_gate(app, state, guard)
    _add_health(app)
    _add_views(app, role, state, guard)

    @app.middleware("http")
    async def secure(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response: Response = await call_next(request)
        response.headers.update(SECURITY_HEADERS)
        return response

    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The worker's loop turns."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """The worker is up: Faust starts the web server once its agents run."""
        return {"status": "ready"}


def _add_views(app: FastAPI, role: Role, state: WorkerState, guard: list[Any]) -> None:
    @app.get("/stats", dependencies=guard)
    async def stats() -> JSONResponse:
        """The worker's counters, and on roles with a store its counts, as JSON."""
        return JSONResponse(await asyncio.to_thread(_stats, role, state))

    @app.get("/metrics", dependencies=guard)
    async def metrics(request: Request) -> Response:
        """Prometheus or OpenMetrics text, as the scraper asks."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await asyncio.to_thread(encode, state.registry)
        return Response(body, media_type=content_type)

    @app.get("/", dependencies=guard)
    async def page(request: Request) -> HTMLResponse:
        """The operations page."""
        shown = await asyncio.to_thread(_page, role, state)
        return TEMPLATES.TemplateResponse(request, "operations.html", shown)


def _bearer(settings: Settings) -> Callable[[Request], None]:
    expected = settings.web.token

    def check(request: Request) -> None:
        if expected is None:
            return
        # RFC 6750: the scheme, in any case, and the token.
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), expected.get_secret_value().encode())
        if scheme.lower() != "bearer" or not right:
            raise HTTPException(401, "a bearer token is required", headers={"WWW-Authenticate": "Bearer"})

    return check


def _stats(role: Role, state: WorkerState) -> dict[str, Any]:
    stats: dict[str, Any] = {"role": role.value, "version": __version__}
    stats.update({name: dict(snapshot()) for name, snapshot in state.snapshots.items()})
    try:
        stats["store"] = dict(state.store_counts())
    except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
        stats["store"] = {"unavailable": type(error).__name__}
    return stats


def _page(role: Role, state: WorkerState) -> dict[str, Any]:
    shown = _stats(role, state) | {"cycles": [], "waiting": []}
    try:
        with state.database.read() as connection:
            shown["cycles"] = cycles.list_cycles(connection, limit=20)
            shown["waiting"] = examples.count_new(connection)
    except (sa.exc.SQLAlchemyError, DatabaseUnavailable):
        pass
    return shown
