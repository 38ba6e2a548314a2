"""Headers on every answer, and a bound on what is read of a request."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
"""Of a cycle's report, a document that a job wrote: it runs nothing and belongs to no origin."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: under it browsers send the forms' own origin as `null`, and it could not be checked.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class SecurityHeaders:
    """Puts the headers on every answer. Plain ASGI: a stream of events goes through it as it comes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault("Content-Security-Policy", POLICY)
                # What one caller was shown is nobody else's, nor a cache's. Static files say otherwise themselves.
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


MAX_BODY_BYTES = 1024 * 1024
_BOUNDED_ITSELF = frozenset({"/v1/logs"})


class BodyLimit:
    """Refuses bodies that are too large, or of unknown size, before anybody reads them: FastAPI reads a body whole
    before it asks who sent it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and scope["path"] not in _BOUNDED_ITSELF:
            headers = Headers(scope=scope)
            announced = headers.get("content-length", "0")
            refusal = None
            if "transfer-encoding" in headers or not announced.isdecimal():
                refusal = JSONResponse({"detail": "a request announces its length (Content-Length)"}, 411)
            elif int(announced[:20]) > MAX_BODY_BYTES:
                refusal = JSONResponse({"detail": f"a request has at most {MAX_BODY_BYTES} bytes"}, 413)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
