"""The audit engine's endpoints."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import AfterValidator, BaseModel, BeforeValidator
from sqlalchemy import Engine

from models.audit import AuditEntry, AuditReceipt, ChainReport, RecentOptimization, RecentViolation, StoredEntry
from policies.audit import queries
from policies.audit.config import AuditConfig
from policies.audit.door import matches, unauthorised
from policies.audit.errors import AuditStoreUnavailable, EntryConflict, EntryRejected
from policies.audit.metrics import CONFLICT, REJECTED, UNAVAILABLE, WRITTEN, AuditMetrics
from policies.audit.queries import EntryFilter, Page
from policies.audit.sealer import SealLoop
from policies.audit.store import AuditStore
from policies.audit.verify import Witness
from policies.audit.writer import GroupWriter

MAX_CURSOR = 2**63 - 1
NEXT_CURSOR = "X-Next-Cursor"
LOG_PATH = "/api/v1/log"

Cursor = Annotated[int | None, Query(ge=0, le=MAX_CURSOR, description="X-Next-Cursor of the answer before")]
Before = Annotated[int | None, Query(ge=0, le=MAX_CURSOR, description="the number of an entry, itself not among them")]
Limit = Annotated[int, Query(ge=1, le=1000)]


def _no_number(value: object) -> object:
    # pydantic takes a bare number for seconds, which the document does not say.
    try:
        float(str(value))
    except ValueError:
        return value
    raise ValueError("write it as RFC 3339, such as 2026-01-31T12:00:00Z")


def _in_utc(value: datetime | None) -> datetime | None:
    # An offset may take a time at either end of the calendar out of it.
    try:
        return value if value is None or value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC it lies outside the years 1 to 9999; send one within them") from None


Moment = Annotated[datetime | None, BeforeValidator(_no_number), AfterValidator(_in_utc)]
Filter = Annotated[str | None, Query(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
_bearer = HTTPBearer(auto_error=False)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


class Problem(BaseModel):
    """Why a request was not served."""

    detail: str


class Health(BaseModel):
    """Answer of the health endpoints."""

    status: str


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What the endpoints work with; made when the service starts, kept in `app.state.parts`.

    `sealing` and `witness` are absent where no heads are signed.
    """

    config: AuditConfig
    engine: Engine
    store: AuditStore
    writer: GroupWriter
    metrics: AuditMetrics
    verifying: asyncio.Lock
    sealing: SealLoop | None
    witness: Witness | None


# The dependencies are coroutines because FastAPI sends plain functions through a thread, which costs more than they do.
async def _parts(request: Request) -> ServiceParts:
    parts: ServiceParts = request.app.state.parts
    return parts


Parts = Annotated[ServiceParts, Depends(_parts)]


async def _may_write(parts: Parts, credentials: Credentials) -> None:
    if not matches("" if credentials is None else credentials.credentials, parts.config.token):
        raise unauthorised("writing")


async def _may_read(parts: Parts, credentials: Credentials) -> None:
    wanted = parts.config.read_token
    given = "" if credentials is None else credentials.credentials
    if wanted is not None and not matches(given, wanted) and not matches(given, parts.config.token):
        raise unauthorised("reading")


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


writing = APIRouter(dependencies=[Depends(_may_write)], responses=_problems(400, 401, 409, 413, 422, 503))
reading = APIRouter(dependencies=[Depends(_may_read)], responses=_problems(401, 422, 503))
operating = APIRouter(responses=_problems(503))


@writing.post(LOG_PATH)
async def log(entry: AuditEntry, parts: Parts) -> AuditReceipt:
    """Append an entry. The answer comes once it is durable; the same entry again gets the same answer."""
    try:
        receipt = await parts.writer.append(parts.store.prepare(entry))
    except EntryRejected as error:
        parts.metrics.writes.labels(REJECTED).inc()
        raise HTTPException(422, str(error)) from error
    except EntryConflict as error:
        parts.metrics.writes.labels(CONFLICT).inc()
        raise HTTPException(409, str(error)) from error
    except AuditStoreUnavailable:
        parts.metrics.writes.labels(UNAVAILABLE).inc()
        raise
    parts.metrics.writes.labels(WRITTEN).inc()
    return receipt


@reading.get("/api/v1/violations/recent", response_model=list[RecentViolation])
async def violations_recent(parts: Parts, after: Cursor = None, limit: Limit = 100) -> Response:
    """Violations found by constitutional validations, oldest first; `limit` counts validations.

    Without `after`, the newest.
    """
    return _answer(await asyncio.to_thread(queries.recent_violations, parts.engine, after, limit))


@reading.get("/api/v1/optimizations/recent", response_model=list[RecentOptimization])
async def optimizations_recent(parts: Parts, after: Cursor = None, limit: Limit = 100) -> Response:
    """Finished optimization cycles, oldest first. Without `after`, the newest."""
    return _answer(await asyncio.to_thread(queries.recent_optimizations, parts.engine, after, limit))


@reading.get("/api/v1/entries", response_model=list[StoredEntry])
async def entries(
    parts: Parts,
    event_type: Filter = None,
    model_id: Filter = None,
    cycle_id: Filter = None,
    domain: Filter = None,
    since: Moment = None,
    until: Moment = None,
    after: Cursor = None,
    before: Before = None,
    newest: bool = False,
    limit: Limit = 100,
) -> Response:
    """Search the log, oldest first. `since` is inclusive, `until` is not; a time without offset is UTC.

    With `newest`, newest first: `before` then takes the place of `after`.
    """
    wanted = EntryFilter(event_type, model_id, cycle_id, domain, since, until)
    if newest:
        return _answer(await asyncio.to_thread(queries.search_back, parts.engine, wanted, before, limit))
    return _answer(await asyncio.to_thread(queries.search, parts.engine, wanted, after or 0, limit))


@reading.get("/api/v1/verify")
async def verify(parts: Parts) -> ChainReport:
    """Recompute the chain and name the first entry that is changed, missing, reordered or beyond the head.

    A chain that was computed anew is found by the signed heads in the checkpoint file; `unsealed` counts the entries
    that no signed head covers yet.
    """
    # It reads the whole log: one at a time, however many ask.
    async with parts.verifying:
        return await asyncio.to_thread(parts.store.verify, parts.witness)


@operating.get("/health/live")
async def live(parts: Parts) -> Health:
    """Whether entries are being taken off the queue; restart the service where they are not."""
    if not parts.writer.alive:
        raise HTTPException(503, "the audit engine's writer has ended; restart the service")
    return Health(status="ok")


@operating.get("/health/ready")
async def ready(parts: Parts) -> Health:
    """Whether an entry could be written now, and the log is what was sealed."""
    if await asyncio.to_thread(parts.store.head) is None or not parts.writer.alive:
        raise HTTPException(503, "the audit log has no head row; verify and restore its database")
    if parts.sealing is not None and parts.sealing.broken is not None:
        detail = "the audit log is not what was sealed; see this service's log, and run `flywheel audit verify`"
        raise HTTPException(503, detail)
    return Health(status="ok")


@operating.get("/metrics", response_class=Response)
async def metrics(parts: Parts) -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _answer(page: Page[RecentViolation] | Page[RecentOptimization] | Page[StoredEntry]) -> Response:
    # ASCII only: a stored text may hold half a surrogate pair, which UTF-8 has no bytes for.
    content = json.dumps([item.model_dump() for item in page.items])
    return Response(content, media_type="application/json", headers={NEXT_CURSOR: str(page.cursor)})
