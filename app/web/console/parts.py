"""What every page works with: who asks, the store, templates, and how an act is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.engine import Connection

from app import __version__
from app.roles import Role
from app.settings import Settings
from app.store.database import DatabaseUnavailable
from app.web.guard import FORM_KEY, Guard
from app.web.identity import Identity, Means, Right
from app.web.sessions import SAID_COOKIE, VISIT_COOKIE, Signer, new_visit

if TYPE_CHECKING:
    from app.web.feedback import FeedbackIntake
    from app.web.reporter import Reporter
    from app.workers import WorkerState

T = TypeVar("T")

TEMPLATES = Path(__file__).parents[1] / "templates"
NAVIGATION = (
    ("/", "Overview", Right.VIEW),
    ("/review", "Review", Right.REVIEW),
    ("/dead-letters", "Dead letters", Right.VIEW),
    ("/models", "Models", Right.VIEW),
    ("/routing", "Routing", Right.VIEW),
    ("/audit", "Audit log", Right.VIEW),
)


@dataclass(frozen=True, slots=True)
class Console:
    """The parts; made once a worker."""

    settings: Settings
    role: Role
    state: WorkerState
    guard: Guard
    signer: Signer
    reporter: Reporter
    feedback: FeedbackIntake
    templates: Environment

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a thread over a transaction that reads. Raises HTTPException 503 while SQL is away."""

        def run() -> T:
            with self.state.database.read() as connection:
                return work(connection)

        return await self._stored(run)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a thread over a transaction that writes: the change and its audit entry, or neither."""

        def run() -> T:
            with self.state.database.write() as connection:
                return work(connection)

        return await self._stored(run)

    async def page(
        self,
        request: Request,
        identity: Identity | None,
        template: str,
        context: dict[str, Any],
        status: int = 200,
    ) -> HTMLResponse:
        """Render a page for a caller."""
        visit = request.cookies.get(VISIT_COOKIE) or new_visit()
        said = self.signer.heard(request.cookies.get(SAID_COOKIE, ""))
        caller = "" if identity is None else identity.key
        shared = {
            "path": request.url.path,
            "navigation": [(to, name) for to, name, right in NAVIGATION if identity and identity.may(right)],
            "identity": identity,
            "asks_who": identity is not None and identity.means is Means.OPEN,
            "form_key": self.signer.form_key(visit, caller),
            "form_key_name": FORM_KEY,
            "said": said,
            "role": self.role.value,
            "version": __version__,
        }
        html = await asyncio.to_thread(self.templates.get_template(template).render, shared | context)
        answer = HTMLResponse(html, status)
        if VISIT_COOKIE not in request.cookies:
            self.set_cookie(answer, VISIT_COOKIE, visit)
        if said is not None:
            answer.delete_cookie(SAID_COOKIE)
        return answer

    def done(self, to: str, said: str) -> Response:
        """After an act: on to a page that says what was done (RFC 9110: 303, so that a reload repeats nothing)."""
        answer = RedirectResponse(quote(to, safe="/?=&:#"), 303)
        self.set_cookie(answer, SAID_COOKIE, self.signer.said(said), max_age=60)
        return answer

    def set_cookie(self, answer: Response, name: str, value: str, max_age: int | None = None) -> None:
        """Set a cookie that scripts cannot read and other sites' requests do not carry."""
        secure = (self.settings.web.public_url or "").startswith("https://")
        answer.set_cookie(name, value, max_age=max_age, path="/", httponly=True, samesite="strict", secure=secure)

    async def _stored(self, run: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(run)
        except (sa.exc.OperationalError, sa.exc.InterfaceError, DatabaseUnavailable) as error:
            message = f"the store does not answer ({type(error).__name__}): try again"
            raise HTTPException(503, message, {"Retry-After": "5"}) from None


def visible(identity: Identity, domain: str, what: str) -> None:
    """Raise HTTPException 404 where a domain is not the caller's: that it exists is not theirs to know either."""
    if not identity.sees(domain):
        raise absent(what)


def absent(what: str) -> HTTPException:
    """404."""
    return HTTPException(404, f"there is no {what}")


def make_templates() -> Environment:
    """The templates' environment: everything is escaped, and a name that is not there is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        when=lambda stamp: str(stamp)[:19].replace("T", " "),
        words=lambda text: str(text).replace("_", " "),
        share=lambda value: f"{100 * value:.1f} %",
        number=lambda value: f"{value:,.0f}".replace(",", "\u202f"),
        rate=lambda value: f"{value:,.1f}".replace(",", "\u202f"),
        figure=_figure,
    )
    return environment


def _figure(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_figure, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(inner)}" for name, inner in value.items()) or "none"
    return str(value)
