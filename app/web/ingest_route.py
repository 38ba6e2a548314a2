"""The HTTP side of `POST /v1/logs`: places, bounded bodies, and every answer in the encoding that was asked in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from app.web.ingest import OtlpIngest
from app.web.otlp import OtlpRejected, answer_type, error_body, success_body

BODY_TIMEOUT_S = 30.0
"""How long a body may take to arrive: who trickles holds a place."""


def add_ingest(app: FastAPI, ingest: OtlpIngest, guard: list[Any]) -> None:
    """Add `POST /v1/logs` to a worker's web."""

    class OtlpRoute(APIRoute):
        """Answers refusals as OTLP/HTTP has them, also the guard's: a `google.rpc.Status`."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                kind = answer_type(request.headers.get("content-type"))
                try:
                    response = await handle(request)
                except OtlpRejected as refusal:
                    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else None
                    response = _refusal(refusal.status, refusal.message, kind, headers)
                except HTTPException as refusal:
                    response = _refusal(refusal.status_code, refusal.detail, kind, refusal.headers)
                ingest.count(**{f"status_{response.status_code}": 1})
                return response

            return answer

    router = APIRouter(route_class=OtlpRoute, dependencies=guard)

    @router.post("/v1/logs")
    async def logs(request: Request) -> Response:
        """OTLP/HTTP logs: protobuf or JSON, gzip or plain."""
        content_type = request.headers.get("content-type", "")
        async with ingest.turn():
            body = await _bounded_body(request, ingest.limits.max_body_bytes)
            taken = await ingest.take(body, content_type, request.headers.get("content-encoding"))
        kind = answer_type(content_type)
        return Response(success_body(kind, taken.rejected, taken.reason), media_type=kind)

    app.include_router(router)


def _refusal(status: int, message: str, kind: str, headers: Any) -> Response:
    return Response(error_body(status, message, kind), status, headers, media_type=kind)


async def _bounded_body(request: Request, limit: int) -> bytes:
    """The body, never more than `limit` bytes of it in memory. Raises `OtlpRejected`."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except ClientDisconnect as error:
        raise OtlpRejected(400, "the body ended early") from error
    except TimeoutError as error:
        # Not 408, which some exporters take for "drop it"; the slow network may be better next time.
        raise OtlpRejected(503, f"the body took more than {BODY_TIMEOUT_S:g} s", retry_after=5) from error
    return b"".join(chunks)


def _too_large(limit: int) -> OtlpRejected:
    return OtlpRejected(413, f"the body is larger than {limit} bytes; send smaller batches")
