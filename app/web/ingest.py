"""`POST /v1/logs`: OTLP/HTTP for those who run no collector. A request is answered 200 once Kafka has its records."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from app import wiring
from app.kafka import make_producer
from app.settings import Settings
from app.topics import AUDIT_EVENTS
from app.web.otlp import OtlpLimits, OtlpRejected, parse_export_request
from app.web.otlp_split import count_records, fitting, halves

CONTENT_TYPE_HEADER = [("content-type", b"application/x-protobuf")]
SEND_TIMEOUT_S = 20.0
WAIT_S = 5.0
"""How long a request waits for its turn. Not every exporter sends again what was answered 429: better a short wait."""
WORKING = 8
"""Requests whose bodies are in memory at a time. The others wait unread, and TCP holds their senders back."""
_MESSAGE_OVERHEAD = 4096
"""Of a Kafka message besides its value, rounded up: record batch, headers, what gzip adds to what it cannot shrink."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a request: `rejected` of its `records` can never be taken, `reason` says why."""

    records: int = 0
    rejected: int = 0
    reason: str = ""


class OtlpIngest:
    """Takes export requests, scrubs them and puts them on `otel-audit-events`."""

    def __init__(self, settings: Settings) -> None:
        web = settings.web
        self.limits = OtlpLimits(max_body_bytes=web.max_body_bytes, max_decoded_bytes=web.max_decompressed_bytes)
        self._max_bytes = min(AUDIT_EVENTS.max_message_bytes, settings.routing.max_message_bytes) - _MESSAGE_OVERHEAD
        self._max_records = settings.routing.max_records
        self._max_requests = web.max_requests
        self._in_flight = 0
        self._turn = 0
        self._working = asyncio.Semaphore(WORKING)
        self._settings = settings
        self._scrubber = wiring.scrubber(settings)
        self._scrubbed: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> OtlpIngest:
        # Not idempotent: what senders send may be refused, and what is written twice the router recognises.
        self._producer = make_producer(self._settings, idempotent=False)
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._producer is not None:
            await self._producer.stop()

    def snapshot(self) -> dict[str, Any]:
        """Since the worker started: what was masked, by type; records taken and rejected; answers by status. And
        `in_flight`, the requests under way now.
        """
        with self._counting:
            return {"scrubbed": dict(self._scrubbed), "in_flight": self._in_flight, **self._counts}

    def count(self, **counts: int) -> None:
        """Add to what `snapshot` shows."""
        with self._counting:
            self._counts.update(counts)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one of the places for requests at work. Raises `OtlpRejected` (429) where too many wait, or for long."""
        if self._in_flight >= self._max_requests:
            raise OtlpRejected(429, f"{self._max_requests} requests are under way", retry_after=1)
        self._in_flight += 1
        try:
            try:
                async with asyncio.timeout(WAIT_S):
                    await self._working.acquire()
            except TimeoutError as error:
                raise OtlpRejected(429, f"no place became free in {WAIT_S:g} s", retry_after=2) from error
            try:
                yield
            finally:
                self._working.release()
        finally:
            self._in_flight -= 1

    async def take(self, body: bytes, content_type: str, encoding: str | None) -> Taken:
        """Decode, scrub and publish one request; returns once Kafka has acknowledged it. Raises `OtlpRejected`."""
        parts = await asyncio.to_thread(self._prepared, body, content_type, encoding)
        records = sum(map(count_records, parts))
        if self._producer is None:
            raise OtlpRejected(503, "the worker is starting", retry_after=1)
        try:
            # All or nothing: what part of it Kafka has by then is sent again, and is a duplicate to the router.
            async with asyncio.timeout(SEND_TIMEOUT_S), asyncio.TaskGroup() as tasks:
                sends = [tasks.create_task(self._send(self._producer, part)) for part in parts]
        except TimeoutError as error:
            raise _kafka_is_away(error) from error
        except ExceptionGroup as errors:
            if (others := errors.split(KafkaError)[1]) is not None:
                raise others from errors
            raise _kafka_is_away(errors.exceptions[0]) from errors
        rejected = sum(send.result() for send in sends)
        self.count(records=records - rejected, rejected=rejected)
        reason = f"larger than a Kafka message may be ({self._max_bytes} bytes, or less by the broker's own limit)"
        return Taken(records, rejected, reason if rejected else "")

    def _prepared(self, body: bytes, content_type: str, encoding: str | None) -> list[ExportLogsServiceRequest]:
        request = parse_export_request(body, content_type, encoding, self.limits)
        found = self._scrubber.scrub_otlp(request)
        # Requests are prepared in several threads.
        with self._counting:
            self._scrubbed.update(found)
        return list(fitting(request, self._max_bytes, self._max_records))

    async def _send(self, producer: AIOKafkaProducer, part: ExportLogsServiceRequest) -> int:
        """Publish one message, or several where it is too large; returns how many records none can hold."""
        batch = await asyncio.to_thread(self._batch, producer, part)
        if batch is not None:
            try:
                partitions = sorted(await producer.partitions_for(AUDIT_EVENTS.name))
                self._turn += 1
                partition = partitions[self._turn % len(partitions)]
                await (await producer.send_batch(batch, AUDIT_EVENTS.name, partition=partition))
            except MessageSizeTooLargeError:
                pass
            else:
                return 0
        if count_records(part) == 1:
            return 1
        return sum([await self._send(producer, half) for half in halves(part)])

    def _batch(self, producer: AIOKafkaProducer, part: ExportLogsServiceRequest) -> Any:
        """A batch of one message, compressed here and not in the event loop; None where the message is too large.

        Of its own, so that the broker's refusal concerns no record of another request.
        """
        value = part.SerializeToString()
        if len(value) > self._max_bytes:
            return None
        batch = producer.create_batch()
        batch.append(key=None, value=value, timestamp=None, headers=CONTENT_TYPE_HEADER)
        batch.close()
        return batch


def _kafka_is_away(error: BaseException) -> OtlpRejected:
    return OtlpRejected(503, f"Kafka does not take records now ({type(error).__name__})", retry_after=5)
