"""`POST /v1/logs`: OTLP/HTTP for those who run no collector. A request is answered 200 once Kafka has its records."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from fastapi import FastAPI, Request
from fastapi.responses import Response

from app import wiring
from app.kafka import make_producer
from app.settings import Settings
from app.topics import AUDIT_EVENTS
from app.web.otlp import OtlpLimits, OtlpRejected, answer_type, error_body, parse_export_request, success_body

CONTENT_TYPE_HEADER = [("content-type", b"application/x-protobuf")]
SEND_TIMEOUT_S = 20.0


class OtlpIngest:
    """Takes export requests, scrubs them and puts them on `otel-audit-events`."""

    def __init__(self, settings: Settings) -> None:
        self.limits = OtlpLimits(
            max_body_bytes=settings.web.max_body_bytes, max_decoded_bytes=settings.web.max_decompressed_bytes
        )
        self._settings = settings
        self._scrubber = wiring.scrubber(settings)
        self._scrubbed: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> OtlpIngest:
        self._producer = make_producer(self._settings, linger_ms=5)
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()

    def snapshot(self) -> dict[str, Any]:
        """What was masked since the worker started, by type."""
        with self._counting:
            return {"scrubbed": dict(self._scrubbed)}

    async def take(self, body: bytes, content_type: str, encoding: str | None) -> None:
        """Decode, scrub and publish one request; returns once Kafka has acknowledged it. Raises `OtlpRejected`."""
        value = await asyncio.to_thread(self._prepared, body, content_type, encoding)
        if not value:
            return
        if self._producer is None:
            raise OtlpRejected(503, "the worker is starting", retry_after=1)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._producer.send_and_wait(AUDIT_EVENTS.name, value, headers=CONTENT_TYPE_HEADER)
        except (KafkaError, TimeoutError) as error:
            raise OtlpRejected(
                503, f"Kafka does not take records now ({type(error).__name__})", retry_after=5
            ) from error

    def _prepared(self, body: bytes, content_type: str, encoding: str | None) -> bytes:
        request = parse_export_request(body, content_type, encoding, self.limits)
        found = self._scrubber.scrub_otlp(request)
        # Requests are prepared in several threads.
        with self._counting:
            self._scrubbed.update(found)
        value: bytes = request.SerializeToString()
        return value


def add_ingest(app: FastAPI, ingest: OtlpIngest, guard: list[Any]) -> None:
    """Add `POST /v1/logs` to a worker's web."""

    @app.post("/v1/logs", dependencies=guard)
    async def logs(request: Request) -> Response:
        """OTLP/HTTP logs: protobuf or JSON, gzip or plain."""
        content_type = request.headers.get("content-type", "")
        kind = answer_type(content_type)
        try:
            body = await _bounded_body(request, ingest.limits.max_body_bytes)
            await ingest.take(body, content_type, request.headers.get("content-encoding"))
        except OtlpRejected as rejection:
            headers = {"Retry-After": str(rejection.retry_after)} if rejection.retry_after else None
            return Response(
                error_body(rejection.status, str(rejection), kind), rejection.status, headers, media_type=kind
            )
        return Response(success_body(kind), media_type=kind)


async def _bounded_body(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise OtlpRejected(413, f"the body is larger than {limit} bytes; send smaller batches")
        chunks.append(chunk)
    return b"".join(chunks)
