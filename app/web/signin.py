"""Signing in with a token: a browser gets a session that scripts cannot read and other sites' requests do not carry."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app.web.console.parts import Console
from app.web.guard import FORM_KEY, read_form
from app.web.identity import Identity
from app.web.sessions import SESSION_COOKIE, VISIT_COOKIE


def add(app: FastAPI, console: Console) -> None:
    """Add the page, signing in and signing out. They ask for no token: they are how one is given."""
    guard = console.guard

    @app.get("/sign-in", response_class=HTMLResponse)
    async def page(request: Request, next: str = "/") -> HTMLResponse:  # noqa: A002 - the query's name
        """The form that takes a token."""
        return await console.page(request, None, "sign_in.html", {"next": _inside(next), "problem": None})

    @app.post("/sign-in", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        """Take a token, give a session."""
        fields = await read_form(request)
        visit = request.cookies.get(VISIT_COOKIE, "")
        to = _inside(fields.get("next", "/"))
        if not console.signer.form_is_ours(visit, "", fields.get(FORM_KEY, "")):
            raise HTTPException(403, "the form does not come from a page of this server: load the page again")
        try:
            identity = await guard.sign_in(request, fields.get("token", "").strip())
            grant = _grant_of(identity)
        except HTTPException as refusal:
            if refusal.status_code not in {401, 403}:
                raise
            context = {"next": to, "problem": refusal.detail}
            return await console.page(request, None, "sign_in.html", context, refusal.status_code)
        answer = RedirectResponse(to, 303)
        console.set_cookie(answer, SESSION_COOKIE, console.signer.new_session(grant), console.signer.seconds)
        return answer

    @app.post("/sign-out", include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        """End the browser's session."""
        guard.refuse_other_origin(request)
        answer = RedirectResponse("/sign-in", 303)
        answer.delete_cookie(SESSION_COOKIE)
        return answer


def _grant_of(identity: Identity) -> str:
    """The grant that a session names; a service has none, and does not browse."""
    if identity.person is None:
        raise HTTPException(403, "this is a service's token; sign in with a person's (`flywheel access token`)")
    return identity.key


def _inside(to: str) -> str:
    """A path of ours to go on to; anything else is `/`, so that nobody is led elsewhere."""
    parts = urlsplit(to)
    ours = to.startswith("/") and not to.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return to if ours and to.isprintable() and "\\" not in to else "/"
