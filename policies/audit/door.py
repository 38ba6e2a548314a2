"""The door for entries: serves `POST /api/v1/log` before FastAPI sees it.

An entry costs FastAPI's machinery (routing, dependencies, general validation and serialisation) twice what it costs
to be read, digested and queued. The route stays declared in `routes.py`: that is what the OpenAPI document tells, and
its function is what is called here.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.audit import AuditEntry, AuditReceipt
from policies.audit.errors import AuditStoreUnavailable
from policies.wording import faults_in_few_words

RETRY_AFTER_S = 1

_SCHEME = "bearer "


class EntryDoor:
    """ASGI middleware: entries go to `write`, with `app.state.parts`; everything else goes on to the application.

    Asks for the writers' token first, and takes at most `max_bytes` of a body, whatever its Content-Length says.
    """

    def __init__(
        self, app: ASGIApp, path: str, write: Callable[[AuditEntry, Any], Awaitable[AuditReceipt]], max_bytes: int
    ) -> None:
        self._app = app
        self._path = path
        self._write = write
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers: dict[str, str] = {}
        try:
            status, content = 200, await self._receipt(scope, receive)
        except HTTPException as problem:
            status, content = problem.status_code, _detail(problem.detail)
            headers = dict(problem.headers or {})
        except AuditStoreUnavailable as problem:
            status, content = 503, _detail(str(problem))
            headers = {"Retry-After": str(RETRY_AFTER_S)}
        await send(_start(status, len(content), headers))
        await send({"type": "http.response.body", "body": content})

    async def _receipt(self, scope: Scope, receive: Receive) -> bytes:
        parts = scope["app"].state.parts
        given = dict(scope["headers"])
        if not matches(bearer_token(given.get(b"authorization", b"").decode("latin-1")), parts.config.token):
            raise unauthorised("writing")
        declared = given.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        receipt = await self._write(_entry(await self._body(receive)), parts)
        return receipt.model_dump_json().encode()

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "the request ended before its body did")
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"the request body is larger than {self._max_bytes} bytes; send less, or raise the limit"
        )


def bearer_token(header: str) -> str:
    """The token that an Authorization header presents; empty where it presents none."""
    return header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else ""


def matches(given: str, token: str) -> bool:
    """Whether a token is the right one; the time it takes tells nothing."""
    return hmac.compare_digest(given.encode(), token.encode())


def unauthorised(what: str) -> HTTPException:
    """The answer to somebody who may not."""
    detail = f"{what} the audit log needs a valid bearer token"
    return HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def _entry(body: bytes) -> AuditEntry:
    try:
        # The standard library's reader: unlike pydantic's it takes half a surrogate pair, which JSON allows.
        return AuditEntry.model_validate(json.loads(body))
    except ValidationError as error:
        raise HTTPException(422, faults_in_few_words(error.errors(include_url=False, include_input=False))) from None
    except (ValueError, RecursionError) as error:
        cause = "nested too deep" if isinstance(error, RecursionError) else "not valid"
        raise HTTPException(422, f"the body is no entry: its JSON is {cause}") from None


def _detail(text: str) -> bytes:
    return json.dumps({"detail": text}).encode()


def _start(status: int, length: int, headers: dict[str, str]) -> Message:
    own = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    return {
        "type": "http.response.start",
        "status": status,
        "headers": own + [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
