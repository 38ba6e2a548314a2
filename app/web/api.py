"""A worker's web: pages, their API, statistics, metrics, health; doors for reviews and, on the router, for events."""

from __future__ import annotations

import asyncio
import http
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from app import __version__, wiring
from app.roles import Role
from app.settings import Settings
from app.store.database import DatabaseUnavailable
from app.web import health, live, signin
from app.web.console import audit_log, cycle, dead_letters, models, overview, promotion, review, routing
from app.web.console.parts import Console, make_templates
from app.web.feedback import FeedbackIntake, add_feedback
from app.web.gate import add_gate
from app.web.guard import Guard
from app.web.identity import Authenticator, Right
from app.web.ingest import OtlpIngest
from app.web.ingest_route import add_ingest
from app.web.reporter import Reporter
from app.web.security import BodyLimit, SecurityHeaders
from app.web.sessions import SESSION_COOKIE, Signer

if TYPE_CHECKING:
    from app.workers import WorkerState

STATIC = Path(__file__).parent / "static"
MOST_FAULTS, MOST_NAME = 10, 100
"""Of one request, that are told; characters of a name."""


def create_web(settings: Settings, role: Role, state: WorkerState) -> FastAPI:
    """The ASGI application of a role. Nothing connects here; what is needed opens with the worker."""
    ingest = OtlpIngest(settings) if role is Role.ROUTE else None
    feedback = FeedbackIntake(settings)
    reporter = Reporter(state, wiring.holder_name(role.value))
    audit = audit_log.AuditReader(settings)
    console = _console(settings, role, state, feedback, reporter)
    if ingest is not None:
        state.snapshots["ingest"] = ingest.snapshot
    state.snapshots["feedback"] = feedback.snapshot

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for door in (ingest, feedback):
                if door is not None:
                    await stack.enter_async_context(door)
            stack.push_async_callback(audit.aclose)
            reporter.start()
            stack.push_async_callback(asyncio.to_thread, reporter.stop)
            yield

    # No page of FastAPI's own: it loads scripts from elsewhere, which the headers forbid.
    title = f"Constitutional Flywheel: {role.value}"
    app = FastAPI(
        title=title, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        # A slash too many is led nowhere: that would come before anybody is asked who they are, to a Host they name.
        redirect_slashes=False,
    )  # fmt: skip
    if ingest is not None:
        # It has limits of its own, in requests under way.
        add_ingest(app, ingest, [Depends(console.guard.needs(Right.INGEST, counted=False))])
    add_feedback(app, console)
    if role is Role.TRAIN:
        add_gate(app, state, [Depends(console.guard.needs(Right.DECIDE, counted=False))])
    health.add(app, console)
    _add_figures(app, role, state, console)
    overview.add(app, console)
    cycle.add(app, console, audit)
    review.add(app, console)
    dead_letters.add(app, console)
    models.add(app, console)
    promotion.add(app, console)
    routing.add(app, console)
    audit_log.add(app, console, audit)
    signin.add(app, console)
    app.state.ticker = live.add(app, console)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_errors(app, console)
    app.add_middleware(BodyLimit)
    app.add_middleware(SecurityHeaders)
    return app


def _console(
    settings: Settings, role: Role, state: WorkerState, feedback: FeedbackIntake, reporter: Reporter
) -> Console:
    signer = Signer(wiring.session_key(settings), settings.web.session_hours)
    authenticator = Authenticator(settings, lambda: state.database, signer)
    guard = Guard(settings, authenticator, signer)
    return Console(settings, role, state, guard, signer, reporter, feedback, make_templates())


def _add_figures(app: FastAPI, role: Role, state: WorkerState, console: Console) -> None:
    # Figures of a whole worker belong to all domains.
    may_read = Depends(console.guard.needs(Right.VIEW, everywhere=True, counted=False))
    may_view = Depends(console.guard.needs(Right.VIEW))

    @app.get("/stats", tags=["figures"], dependencies=[may_read])
    async def stats() -> JSONResponse:
        """The worker's counters, and on roles with a store its counts, as JSON."""
        state.count_tasks()
        return JSONResponse(await asyncio.to_thread(_stats, role, state))

    @app.get("/metrics", tags=["figures"], dependencies=[may_read])
    async def metrics(request: Request) -> Response:
        """Prometheus or OpenMetrics text, as the scraper asks."""
        state.count_tasks()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await asyncio.to_thread(encode, state.registry)
        return Response(body, media_type=content_type)

    @app.get("/openapi.json", include_in_schema=False, dependencies=[may_view])
    async def document() -> JSONResponse:
        """This API's document."""
        return JSONResponse(app.openapi())


def _add_errors(app: FastAPI, console: Console) -> None:
    """Browsers get errors as pages, and who has to sign in is led there; programs get them as JSON."""

    def wants_page(request: Request) -> bool:
        return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")

    async def refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, AnyHTTPException):
            raise error
        if not wants_page(request):
            return await http_exception_handler(request, error)
        if error.status_code == http.HTTPStatus.UNAUTHORIZED and "authorization" not in request.headers:
            back = request.url.path if request.method == "GET" else "/"
            answer = RedirectResponse(f"/sign-in?next={quote(back)}", 303)
            answer.delete_cookie(SESSION_COOKIE)
            return answer
        try:
            identity = await console.guard.authenticator.identify(request)
        except HTTPException:
            identity = None
        context = {"status": error.status_code, "phrase": http.HTTPStatus(error.status_code).phrase,
                   "detail": str(error.detail)}  # fmt: skip
        page = await console.page(request, identity, "error.html", context, error.status_code)
        page.headers.update(error.headers or {})
        return page

    async def invalid(request: Request, error: Exception) -> Response:
        # Not FastAPI's own answer: it repeats what was sent, which may be what JSON cannot hold (NaN, half a surrogate
        # pair), and then there is no answer at all.
        found = error.errors() if isinstance(error, RequestValidationError) else []
        faults = [{"loc": [_named(part) for part in one["loc"]], "msg": one["msg"], "type": one["type"]}
                  for one in found[:MOST_FAULTS]]  # fmt: skip
        if wants_page(request):
            told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
            return await refused(request, HTTPException(422, told))
        return JSONResponse({"detail": faults}, 422)

    async def gone(_request: Request, _error: Exception) -> Response:
        # Nobody is there to read it; unhandled, each caller who hangs up would be an error with a traceback in the log.
        return Response(status_code=http.HTTPStatus.BAD_REQUEST)

    app.add_exception_handler(AnyHTTPException, refused)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(RequestValidationError, invalid)


def _named(part: str | int) -> str | int:
    """A part of a fault's place, which may be a name that the caller chose."""
    return part if isinstance(part, int) else part[:MOST_NAME].encode("utf-8", "replace").decode()


def _stats(role: Role, state: WorkerState) -> dict[str, Any]:
    stats: dict[str, Any] = {"role": role.value, "version": __version__}
    stats.update({name: dict(snapshot()) for name, snapshot in state.snapshots.items()})
    try:
        stats["store"] = dict(state.store_counts())
    except (sa.exc.SQLAlchemyError, DatabaseUnavailable) as error:
        stats["store"] = {"unavailable": type(error).__name__}
    return stats
