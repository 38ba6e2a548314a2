"""ASGI middleware before anything is parsed: the size of a body, and who may ask."""

from __future__ import annotations

import hmac

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.evaluation_api import ErrorResponse

_DRAIN_FACTOR = 4


def error_response(status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error in the engine's form."""
    return JSONResponse(ErrorResponse(error=error, detail=detail).model_dump(), status, headers)


class BodyLimit:
    """Answers 413 to a request whose body is larger than `max_bytes`, whatever length it declares.

    A body is gathered here as far as the limit and handed on whole, so nothing larger reaches the parser. What
    comes beyond is read and dropped for a while: a client that is still sending when the connection closes
    would see a broken connection instead of the answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"}:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            chunk, more = message.get("body", b""), message.get("more_body", False)
            received += len(chunk)
            if received <= self._max_bytes:
                body += chunk
            elif received > _DRAIN_FACTOR * self._max_bytes:
                break
        if received > self._max_bytes:
            await self._refuse(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body is larger than {self._max_bytes} bytes; send fewer or shorter items"
        await error_response(413, "body_too_large", detail, {"connection": "close"})(scope, receive, send)


class BearerToken:
    """Answers 401 to requests for the API without the right bearer token; health and metrics stay open."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/api/"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                detail = "send the header Authorization: Bearer <token> with the engine's token"
                refusal = error_response(401, "unauthorized", detail, {"www-authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
