"""`/audit`: the audit engine's record, searched and verified through its own API."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import TypeAdapter, ValidationError

from app.settings import Settings
from app.web.console.overview import Record
from app.web.console.parts import Console
from app.web.identity import Identity, Right
from app.wiring import audit_token
from models.audit import ChainReport, StoredEntry

SEARCH_WITHIN_S = 5.0
VERIFY_WITHIN_S = 600.0
PAGE = 50
_ENTRIES = TypeAdapter(list[StoredEntry])

# What the audit engine takes: another term would look as if it were away.
Term = Annotated[str | None, Query(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]


class AuditAway(RuntimeError):
    """The audit engine does not answer, or not as ours does."""


class Entries(Record):
    """Entries of the log, newest first. `older`: `before` of the next page; None where there are no more."""

    entries: list[StoredEntry]
    older: int | None


class Verification(Record):
    """What the last check of the whole chain found, or that one is under way."""

    running: bool
    at: float | None = None
    by: str | None = None
    report: ChainReport | None = None
    problem: str | None = None


class AuditReader:
    """Reads the audit log over HTTP."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.audit_engine.url
        self._settings = settings
        self._client: httpx.AsyncClient | None = None
        self.verification = Verification(running=False)
        self._task: asyncio.Task[None] | None = None

    async def search(self, within_s: float = SEARCH_WITHIN_S, **wanted: Any) -> Entries:
        """Entries that match, newest first; raises `AuditAway`."""
        limit = int(wanted.pop("limit", PAGE))
        params = {name: value for name, value in wanted.items() if value not in (None, "")}
        answer = await self._get("/api/v1/entries", params | {"newest": "true", "limit": limit}, within_s)
        try:
            found = _ENTRIES.validate_json(answer.content)
        except ValidationError:
            raise AuditAway(f"the audit engine at {self._url} answered with something that is no entries") from None
        return Entries(entries=found, older=found[-1].seq if len(found) == limit else None)

    def verify(self, by: str) -> None:
        """Begin a check of the whole chain, unless one is under way."""
        if self._task is None or self._task.done():
            self.verification = Verification(running=True, at=time.time(), by=by)
            self._task = asyncio.create_task(self._verify(by))

    async def aclose(self) -> None:
        """Close the connections; a check under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _verify(self, by: str) -> None:
        try:
            answer = await self._get("/api/v1/verify", {}, VERIFY_WITHIN_S)
            report = ChainReport.model_validate_json(answer.content)
            self.verification = Verification(running=False, at=time.time(), by=by, report=report)
        except (AuditAway, ValidationError) as error:
            problem = str(error) if isinstance(error, AuditAway) else "the answer is no report"
            self.verification = Verification(running=False, at=time.time(), by=by, problem=problem)

    async def _get(self, path: str, params: dict[str, Any], within_s: float) -> httpx.Response:
        if self._client is None:
            token = await asyncio.to_thread(audit_token, self._settings)
            headers = {"Authorization": f"Bearer {token}"}
            self._client = httpx.AsyncClient(base_url=self._url, headers=headers, trust_env=False)
        try:
            async with asyncio.timeout(within_s):
                answer = await self._client.get(path, params=params, timeout=within_s)
        except (httpx.HTTPError, TimeoutError) as error:
            raise AuditAway(f"the audit engine at {self._url} did not answer ({type(error).__name__})") from None
        if answer.status_code != httpx.codes.OK:
            raise AuditAway(f"the audit engine at {self._url} answered {answer.status_code} to {path}")
        return answer


def add(app: FastAPI, console: Console, reader: AuditReader) -> None:
    """Add the page, the search and the check."""
    may = Depends(console.guard.needs(Right.VIEW))
    may_all = Depends(console.guard.needs(Right.VIEW, everywhere=True))

    async def found(identity: Identity, domain: str | None, wanted: dict[str, Any]) -> Entries:
        return await reader.search(domain=_domain(identity, domain), **wanted)

    @app.get("/audit", response_class=HTMLResponse)
    async def page(
        request: Request,
        identity: Identity = may,
        event_type: Term = None,
        model_id: Term = None,
        cycle_id: Term = None,
        domain: Term = None,
        before: Annotated[int | None, Query(ge=0)] = None,
    ) -> HTMLResponse:
        """The search as a page."""
        wanted = {"event_type": event_type, "model_id": model_id, "cycle_id": cycle_id, "before": before}
        context: dict[str, Any] = {"wanted": wanted, "domain": domain, "v": reader.verification, "problem": None}
        try:
            entries = await found(identity, domain, wanted)
        except AuditAway as error:
            entries, context["problem"] = Entries(entries=[], older=None), str(error)
        context["domains"] = None if identity.domains is None else sorted(identity.domains)
        return await console.page(request, identity, "audit.html", context | {"found": entries})

    @app.get("/api/v1/audit/entries", tags=["audit"])
    async def entries_json(
        identity: Identity = may,
        event_type: Term = None,
        model_id: Term = None,
        cycle_id: Term = None,
        domain: Term = None,
        before: Annotated[int | None, Query(ge=0)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = PAGE,
    ) -> Entries:
        """Entries of the audit log, newest first."""
        wanted = {"event_type": event_type, "model_id": model_id, "cycle_id": cycle_id, "before": before}
        try:
            return await found(identity, domain, wanted | {"limit": limit})
        except AuditAway as error:
            raise HTTPException(503, str(error)) from None

    @app.post("/audit/verify", include_in_schema=False)
    async def verify_form(request: Request, identity: Identity = may_all) -> Response:
        """Check the chain, from the page."""
        fields = await console.guard.form(request, identity)
        reader.verify(identity.person or fields.get("by", "") or "anybody")
        return console.done("/audit", "The chain is being checked; the result stands on this page when it is done.")

    @app.post("/api/v1/audit/verify", tags=["audit"], status_code=202)
    async def verify_json(identity: Identity = may_all) -> Verification:
        """Begin a check of the whole chain; `GET` tells what it found."""
        reader.verify(identity.person or identity.role)
        return reader.verification

    @app.get("/api/v1/audit/verify", tags=["audit"], dependencies=[may_all])
    async def verification_json() -> Verification:
        """What the last check of the chain found."""
        return reader.verification


def _domain(identity: Identity, domain: str | None) -> str | None:
    """The domain to search in: those limited to some name one of theirs, else get their first."""
    if identity.domains is None:
        return domain or None
    if not domain:
        return min(identity.domains)
    if domain not in identity.domains:
        raise HTTPException(403, f"the domain {domain!r} is not yours to see")
    return domain
